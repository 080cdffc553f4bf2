"""The client against a real server that misbehaves on command."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from millstream import errors
from millstream.client import Client
from millstream.types import Listing, Outcome


class House(ThreadingHTTPServer):
    """Answers like the service. `commands`, one a request: a status, "drop" (hang up unheard), "deaf" (do it, then hang
    up), "hang up" (a good answer, then close without a word), or seconds to sleep first."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.commands: deque[object] = deque()
        self.refuse: Callable[[dict[str, Any]], bool] = lambda outcome: False
        self.outcomes_max = 10_000
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.heard: Counter[str] = Counter()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.gate = threading.Event()
        self.gate.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news here."""


class Desk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: House

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        self.server.gate.wait(30)
        command = self.server.commands.popleft() if self.server.commands else None
        if isinstance(command, float):
            time.sleep(command)
        if command == "drop":
            self.close_connection = True
            return
        if isinstance(command, int):
            self._say(command, b'{"error": "on command"}', {"Retry-After": "0"})
            return
        status, headers, content = self._work(body)
        if command == "deaf":
            self.close_connection = True
            return
        self._say(status, content, headers)
        self.close_connection = self.close_connection or command == "hang up"

    def _work(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.path == "/v1/outcomes":
            return self._outcomes(json.loads(body)["outcomes"])
        if self.path == "/v1/recommend":
            asked = json.loads(body)
            items = [{"item": item, "score": 1.0 / n} for n, item in enumerate(sorted(asked["candidates"]), 1)]
            ranked = {"id": asked["id"], "model": "ranker", "version": "3@17", "items": items}
            return 200, {}, json.dumps(ranked).encode()
        return self._infer(body)

    def _outcomes(self, told: list[dict[str, Any]]) -> tuple[int, dict[str, str], bytes]:
        if len(told) > self.server.outcomes_max:
            return 413, {}, b'{"error": "split"}'
        if any(self.server.refuse(outcome) for outcome in told):
            return 400, {}, b'{"error": "outcomes[0].kind is empty"}'
        for outcome in told:
            self.server.heard[outcome["id"]] += 1
            self.server.outcomes[outcome["id"]] = outcome
        return 200, {}, json.dumps({"accepted": len(told)}).encode()

    def _infer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Gives the inputs back; those that are called json* as JSON."""
        size = int(self.headers["Inference-Header-Content-Length"])
        head, at, parts = json.loads(body[:size]), size, []
        for tensor in head["inputs"]:
            raw = body[at : at + tensor["parameters"]["binary_data_size"]]
            at += len(raw)
            if tensor["name"].startswith("json"):
                tensor["parameters"] = {}
                tensor["data"] = np.frombuffer(raw, "<i8").tolist()
            else:
                parts.append(raw)
        answer = json.dumps({"model_name": "m", "outputs": head["inputs"]}).encode()
        return 200, {"Inference-Header-Content-Length": str(len(answer))}, answer + b"".join(parts)

    def _say(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    thread = threading.Thread(target=house.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield house
    house.gate.set()
    house.shutdown()
    house.server_close()
    thread.join()


# -- traffic ----------------------------------------------------------------------------------------------------------


def test_a_change_of_traffic_is_sent_once_also_when_no_answer_comes(house: House) -> None:
    with Client(house.url) as client:
        client.recommend("u", ["a"])  # leaves a kept connection, which nothing that changes traffic may use
        house.commands.append("drop")
        with pytest.raises(errors.Busy, match="cannot reach"):
            client.promote("a model/1", "13", policy=6, why="better")
        (path, _, body) = house.requests[-1]
        assert path == "/v1/traffic/a%20model%2F1/promote" and len(house.requests) == 2
        assert json.loads(body) == {"version": "13", "policy": 6, "why": "better"}
        house.commands.append(409)
        with pytest.raises(errors.Conflict, match="409: on command"):
            client.roll_back("m")


# -- predict and recommend --------------------------------------------------------------------------------------------


def test_predict_carries_arrays_of_every_datatype_there_and_back(house: House) -> None:
    given = {
        dtype: np.arange(6).reshape(3, 2).astype(dtype)
        for dtype in ("?", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", ">f4", ">i8")
    }
    given["strided"] = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    given["json"] = np.arange(3)
    given["empty"] = np.zeros((0, 4), np.float32)
    with Client(house.url) as client:
        answer = client.predict("m", given)
    assert set(answer) == set(given)
    for name, array in given.items():
        np.testing.assert_array_equal(answer[name], array)
        assert answer[name].dtype == array.dtype.newbyteorder("<"), name


def test_predict_takes_lists_and_text(house: House) -> None:
    with Client(house.url) as client:
        answer = client.predict("m", {"x": [[1.5, 2.5]], "n": [1, 2], "t": ["é", ""], "b": np.array([b"x", b"yz"])})
    assert answer["x"].dtype == np.float32 and answer["n"].dtype == np.int64
    assert answer["t"].tolist() == ["é", ""] and answer["b"].tolist() == ["x", "yz"]


def test_predict_names_model_version_and_key(house: House) -> None:
    with Client(house.url + "/base/", key="ms_secret") as client:
        client.predict("a model/1", {"x": [1.0]}, version="7")
        client.predict("m", {"x": [1.0]})
    (first, headers, _), (second, *_) = house.requests
    assert first == "/base/v2/models/a%20model%2F1/versions/7/infer" and second == "/base/v2/models/m/infer"
    assert headers["Authorization"] == "Bearer ms_secret"


def test_what_has_no_datatype_is_refused_before_it_is_sent(house: House) -> None:
    with Client(house.url) as client, pytest.raises(errors.BadInput, match="'x': complex128 has no V2 datatype"):
        client.predict("m", {"x": np.zeros(2, complex)})
    assert not house.requests


def test_recommend_makes_an_id_and_a_time_unless_given(house: House) -> None:
    with Client(house.url) as client:
        ranked = client.recommend("u", ["b", "a"])
        assert isinstance(ranked, Listing) and [one.item for one in ranked.items] == ["a", "b"]
        assert ranked.version == "3@17" and len(ranked.id) == 32
        assert client.recommend("u", ["a"], id="mine", event_time=5.0).id == "mine"
    first, second = (json.loads(body) for _, _, body in house.requests)
    assert abs(first["event_time"] - time.time()) < 60 and second["event_time"] == 5.0


@pytest.mark.parametrize(
    ("status", "raised"),
    [(400, errors.BadInput), (401, errors.Unauthenticated), (403, errors.Forbidden), (404, errors.NotFound),
     (405, errors.BadInput), (408, errors.Late), (409, errors.Conflict), (413, errors.TooLarge), (429, errors.Busy),
     (500, errors.Error), (502, errors.Busy), (503, errors.Busy), (504, errors.Late), (507, errors.Full)],
)  # fmt: skip
def test_an_error_is_raised_as_what_the_server_raised(house: House, status: int, raised: type[errors.Error]) -> None:
    house.commands.append(status)
    with Client(house.url) as client:
        with pytest.raises(errors.Error, match=f"/v1/recommend: {status}: on command") as caught:
            client.recommend("u", ["a"])
        assert type(caught.value) is raised
        assert client.recommend("u", ["a"]).items  # the connection is still good


def test_no_answer_in_time_is_late_and_no_server_is_busy(house: House) -> None:
    house.commands.append(2.0)
    with Client(house.url, timeout_s=0.2) as client, pytest.raises(errors.Late, match=r"within 0\.2 s"):
        client.recommend("u", ["a"])
    with Client("http://127.0.0.1:1") as client, pytest.raises(errors.Busy, match="cannot reach"):
        client.recommend("u", ["a"])
    for url in ("127.0.0.1:8000", "ftp://x", "http://"):
        with pytest.raises(errors.Misconfigured, match="looks like"):
            Client(url)


def test_a_kept_connection_that_was_closed_is_replaced_without_a_word(house: House) -> None:
    house.commands.append("hang up")
    with Client(house.url) as client:
        client.recommend("u", ["a"])
        time.sleep(0.1)
        client.recommend("u", ["a"])
        assert house.connections == 2
        house.commands.extend(["drop", "drop"])  # a second time in a row it is an error
        with pytest.raises(errors.Busy):
            client.recommend("u", ["a"])


def test_connections_are_kept_and_bounded(house: House) -> None:
    with Client(house.url, connections=3) as client:
        threads = [
            threading.Thread(target=lambda: [client.predict("m", {"x": [1.0]}) for _ in range(10)]) for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(house.requests) == 120
    assert house.connections <= 3


def test_no_free_connection_in_time_is_busy(house: House) -> None:
    house.commands.extend([0.3] * 8)
    ended: list[str] = []

    def ask() -> None:
        try:
            client.recommend("u", ["a"])
            ended.append("good")
        except errors.Busy as error:
            ended.append(str(error))

    with Client(house.url, connections=1, timeout_s=0.8) as client:
        threads = [threading.Thread(target=ask) for _ in range(8)]  # 2.4 s of work one after the other
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "good" in ended
    assert "/v1/recommend: all 1 connections stayed busy for 0.8 s; allow more" in ended


# -- outcomes ---------------------------------------------------------------------------------------------------------


def tell(client: Client, count: int) -> None:
    for n in range(count):
        client.outcome("r", f"i{n}", "click", event_time=float(n), id=f"o{n}")


def test_outcomes_arrive_whole(house: House) -> None:
    with Client(house.url) as client:
        client.outcome("r1", "i1", "like", value=0.5, event_time=3.0, id="mine", text="fine")
        client.outcome("r1", "i2", "impression")
        assert client.flush(5)
        mine = {"request": "r1", "item": "i1", "kind": "like", "value": 0.5, "event_time": 3.0, "id": "mine"}
        assert house.outcomes.pop("mine") == {**mine, "text": "fine"}
        (other,) = house.outcomes.values()
        assert len(other["id"]) == 32 and abs(other["event_time"] - time.time()) < 60 and "text" not in other


def test_whatever_passes_is_tried_again_with_the_same_ids_and_nothing_is_lost(house: House) -> None:
    house.commands.extend([503, "drop", 429, "deaf", 500, "drop", 504, 507])
    with Client(house.url, batch=40) as client:
        tell(client, 200)
        assert client.flush(30)
        assert client.dropped == 0
    assert set(house.heard) == {f"o{n}" for n in range(200)}
    assert max(house.heard.values()) == 2  # the deaf answer: heard twice, one id


def test_a_server_that_is_away_for_a_while_gets_everything(house: House) -> None:
    house.commands.extend(["drop"] * 6)
    with Client(house.url) as client:
        tell(client, 10)
        assert not client.flush(0.05)
        assert client.flush(20)
    assert len(house.outcomes) == 10


def test_telling_does_not_wait_and_a_full_buffer_is_counted_and_reported(house: House) -> None:
    lost: list[tuple[list[Outcome], str]] = []
    house.gate.clear()
    with Client(house.url, buffer=50, batch=10, on_drop=lambda outcomes, why: lost.append((outcomes, why))) as client:
        teller = threading.Thread(target=tell, args=(client, 80))
        teller.start()
        teller.join(5)
        assert not teller.is_alive()  # though the server has not answered anything
        assert client.dropped == 30
        assert [one.id for outcomes, _ in lost for one in outcomes] == [f"o{n}" for n in range(50, 80)]
        assert lost[0][1] == "all 50 places of the buffer are taken"
        house.gate.set()
        assert client.flush(10)
    assert len(house.outcomes) == 50


def test_losses_are_logged_once_an_overflow(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.gate.clear()
    with Client(house.url, buffer=5) as client:
        tell(client, 20)
        house.gate.set()
    assert client.dropped == 15
    assert [record.getMessage() for record in caplog.records] == [
        "1 outcomes are lost: all 5 places of the buffer are taken"
    ]


def test_one_bad_outcome_does_not_take_its_neighbours_along(house: House) -> None:
    lost: list[str] = []
    house.refuse = lambda outcome: outcome["id"] in ("o7", "o33")
    house.gate.clear()
    with Client(house.url, on_drop=lambda outcomes, why: lost.extend(one.id for one in outcomes)) as client:
        tell(client, 50)
        house.gate.set()
        assert client.flush(10)
    assert sorted(lost) == ["o33", "o7"] and len(house.outcomes) == 48


def test_a_batch_that_is_too_large_is_split(house: House) -> None:
    house.outcomes_max = 3
    with Client(house.url) as client:
        tell(client, 50)
        assert client.flush(10)
    assert len(house.outcomes) == 50 and client.dropped == 0


def test_a_key_that_is_not_known_is_not_tried_forever(house: House) -> None:
    house.commands.append(401)
    reasons: list[str] = []
    with Client(house.url, on_drop=lambda _, why: reasons.append(why)) as client:
        client.outcome("r", "i", "click")
        assert client.flush(5) and client.dropped == 1
        client.outcome("r", "i", "click")  # the thread lives on
        assert client.flush(5)
    assert len(house.outcomes) == 1 and reasons == ["/v1/outcomes: 401: on command"]


def test_what_cannot_be_delivered_in_its_time_is_given_up(house: House) -> None:
    house.commands.extend([503] * 50)
    with Client(house.url, retry_s=0.3) as client:
        client.outcome("r", "i", "click")
        assert client.flush(5)
        assert client.dropped == 1 and len(house.requests) >= 2


def test_closing_gives_up_what_is_left_and_says_so(house: House) -> None:
    house.commands.extend([503] * 100)
    lost: list[str] = []
    client = Client(house.url, batch=1, on_drop=lambda outcomes, why: lost.extend(one.id for one in outcomes))
    tell(client, 5)
    client.close(timeout_s=0.2)
    client.close()
    client.outcome("r", "late", "click", id="after")
    deadline = time.monotonic() + 5
    while client.dropped < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(lost) == ["after", "o0", "o1", "o2", "o3", "o4"]
    with pytest.raises(RuntimeError, match="closed"):
        client.recommend("u", ["a"])


def test_a_failing_callback_does_not_stop_the_sender(house: House) -> None:
    def fail(outcomes: list[Outcome], why: str) -> None:
        raise ZeroDivisionError

    house.commands.append(403)
    with Client(house.url, on_drop=fail) as client:
        client.outcome("r", "i", "click")
        assert client.flush(5)
        client.outcome("r", "i", "click")
        assert client.flush(5)
    assert len(house.outcomes) == 1


def test_text_that_is_no_unicode_is_the_callers_mistake(house: House) -> None:
    with Client(house.url) as client, pytest.raises(errors.BadInput, match="cannot be written as JSON"):
        client.outcome("r", "\ud800", "click")


def test_a_program_that_ends_without_closing_loses_nothing(house: House) -> None:
    program = (
        "from millstream.client import Client\n"
        f"client = Client({house.url!r})\n"
        "for n in range(20): client.outcome('r', str(n), 'click')\n"
    )
    house.commands.append(503)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert len(house.outcomes) == 20
