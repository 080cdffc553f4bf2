"""The access log: a line for every request of both borders, nothing secret in it, and no answer that waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from front_house import Client, House, affine, http, infer, tensor

from millstream.clock import FakeClock, SystemClock
from millstream.errors import Misconfigured
from millstream.front import Http, HttpLimits
from millstream.front.access import AccessLog, AccessSettings, line
from millstream.front.grpc import Grpc
from millstream.front.grpc.service import Inference
from millstream.front.record import Observer, Record
from millstream.front.trace import Ids
from millstream.meter import Meter
from millstream.types import Principal

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Observed:
    """A House behind both ports, with an access log, on a loop of its own."""

    def __init__(self, folder: Path, limits: HttpLimits | None = None, **settings: Any) -> None:
        self.meter = Meter()
        self.door = House(self.meter)
        settings.setdefault("file", "access.log")
        self.log = AccessLog(AccessSettings(**settings), folder, self.meter)
        self.observer = Observer(SystemClock(), [Ids(), self.log])
        self.path, self.limits = folder / settings["file"], limits
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Observed:
        self.thread.start()
        self.observer.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self.observer.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.loop.close()

    async def _start(self) -> None:
        self.http = Http(self.door, self.meter, SystemClock(), self.limits, observer=self.observer)
        service = Inference(self.door, SystemClock(), self.observer)
        self.grpc = Grpc(service, self.meter, SystemClock(), observer=self.observer)
        self.port, self.grpc_port = await self.http.start(port=0), await self.grpc.start(port=0)

    async def _stop(self) -> None:
        await asyncio.gather(self.http.stop(), self.grpc.stop())

    def run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(30)

    def ask(self, *requests: bytes) -> list[int]:
        """The statuses of requests of one connection."""

        async def ask() -> list[int]:
            client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
            statuses = []
            for request in requests:
                client.send(request)
                statuses.append((await client.read()).status)
            client.close()
            return statuses

        return self.run(ask())  # type: ignore[no-any-return]

    def lines(self, count: int) -> list[dict[str, Any]]:
        until(lambda: self.path.exists() and len(self.path.read_bytes().splitlines()) >= count)
        return [json.loads(one) for one in self.path.read_bytes().splitlines()]


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.01)


def test_every_http_request_leaves_a_line_with_what_is_known(tmp_path: Path) -> None:
    with Observed(tmp_path) as house:
        statuses = house.ask(
            affine("a1").replace(b"\r\n", f"\r\ntraceparent: {PARENT}\r\n".encode(), 1),
            http("GET", "/v2/models/affine?key=secret"),
            http("GET", "/v2/models/count/sequences/secret-token"),
            infer("nobody", [tensor("x", "FP32", [1, 3], data=[1, 2, 3])]),
            http("GET", "/" + "x" * 500, X_Request_Id="mine"),
            http("GET", "/v2", Upgrade="h2c").replace(b"/1.1", b"/1.1"),
        )
        lines = house.lines(6)
    first = lines[0]
    assert first.pop("ms") > 0 and first.pop("time").endswith("Z") and first.pop("bytes_out") > 100
    assert first == {
        "peer": "127.0.0.1",
        "border": "http",
        "method": "POST",
        "route": "/v2/models/affine/infer",
        "model": "affine",
        "version": "1",
        "arm": "live",
        "rows": 1,
        "status": 200,
        "bytes_in": len(affine("a1").partition(b"\r\n\r\n")[2]),
        "request": "a1",
        "trace": PARENT[3:35],
    }
    assert [one["status"] for one in lines] == statuses
    assert lines[1]["route"] == "/v2/models/affine" and lines[2]["route"].endswith("/sequences/TOKEN")
    assert lines[3]["model"] == "nobody" and "version" not in lines[3]
    assert len(lines[4]["route"]) == 200 and lines[4]["request"] == "mine"
    assert "secret" not in house.path.read_text()


def test_what_cannot_be_read_and_who_goes_away_leave_a_line_too(tmp_path: Path) -> None:
    with Observed(tmp_path) as house:
        assert house.ask(b"rubbish\r\n\r\n") == [400]
        house.door.held = []

        async def leave() -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", house.port)
            writer.write(affine("gone"))
            while not house.door.held:
                await asyncio.sleep(0.001)
            writer.close()

        house.run(leave())
        lines = house.lines(2)
    assert [one["status"] for one in lines] == [400, 499]
    assert lines[1]["request"] == "gone" and "bytes_out" not in lines[1]


def test_the_name_of_the_key_is_there_and_never_the_key(tmp_path: Path) -> None:
    with Observed(tmp_path) as house:
        house.door.keys = {"k1": Principal("shop", ("affine:infer",))}
        bearer = affine("p").replace(b"\r\n", b"\r\nAuthorization: Bearer k1\r\n", 1)
        wrong = affine("p").replace(b"\r\n", b"\r\nAuthorization: Bearer not-a-key\r\n", 1)
        other = infer("score", [tensor("v", "FP32", [1], data=[1])])
        other = other.replace(b"\r\n", b"\r\nAuthorization: Bearer k1\r\n", 1)
        assert house.ask(bearer, other, wrong) == [200, 403, 401]
        lines = house.lines(3)
    assert [one.get("key") for one in lines] == ["shop", "shop", None]
    assert lines[1]["model"] == "score"
    assert "k1" not in house.path.read_text() and "not-a-key" not in house.path.read_text()


def test_every_call_of_grpc_and_every_request_of_a_stream_leaves_a_line(tmp_path: Path) -> None:
    import tritonclient.grpc as triton

    with Observed(tmp_path) as house:
        client = triton.InferenceServerClient(f"127.0.0.1:{house.grpc_port}")
        x = triton.InferInput("x", [2, 3], "FP32")
        x.set_data_from_numpy(np.ones((2, 3), np.float32))
        client.infer("affine", [x], request_id="g1", headers={"traceparent": PARENT})
        with pytest.raises(triton.InferenceServerException):
            client.infer("nobody", [x])
        client.get_model_metadata("affine")
        answers: list[Any] = []
        client.start_stream(lambda result, error: answers.append((result, error)))
        client.async_stream_infer("affine", [x], request_id="s1")
        client.async_stream_infer("nobody", [x], request_id="s2")
        until(lambda: len(answers) == 2)
        client.stop_stream()
        client.close()
        lines = house.lines(6)
    unary, missing, metadata, one, two, stream = lines
    assert unary["border"] == "grpc" and unary["method"] == "ModelInfer" and unary["status"] == "OK"
    assert (unary["model"], unary["version"], unary["rows"], unary["request"]) == ("affine", "1", 2, "g1")
    assert unary["trace"] == PARENT[3:35] and unary["bytes_in"] > 20 and unary["bytes_out"] > 20
    assert (missing["status"], missing["model"]) == ("NOT_FOUND", "nobody")
    assert metadata["method"] == "ModelMetadata"
    assert (one["status"], one["request"], one["version"]) == ("OK", "s1", "1")
    assert (two["status"], two["model"]) == ("NOT_FOUND", "nobody")
    assert stream["method"] == "ModelStreamInfer" and stream["status"] in ("OK", "CANCELLED")


def test_the_file_is_bounded_and_lines_stay_whole(tmp_path: Path) -> None:
    meter = Meter()
    log = AccessLog(AccessSettings(file="a.log", bytes_max=2000, files=2), tmp_path, meter)
    for at in range(100):
        log._take([Record(0.0, request=f"r{at}", time=1e9, route="/v2")])
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["a.log", "a.log.1", "a.log.2"]
    assert all((tmp_path / name).stat().st_size <= 2000 for name in names)
    kept = [json.loads(one)["request"] for name in names[::-1] for one in (tmp_path / name).read_text().splitlines()]
    assert kept == [f"r{at}" for at in range(100 - len(kept), 100)]


def test_several_processes_turn_one_file_over_together(tmp_path: Path) -> None:
    logs = [AccessLog(AccessSettings(file="a.log", bytes_max=3000, files=50), tmp_path, Meter()) for _ in range(3)]

    def write(log: AccessLog, name: str) -> None:
        for at in range(100):
            log._take([Record(0.0, request=f"{name}-{at}", time=1e9)])

    threads = [threading.Thread(target=write, args=(log, f"p{at}")) for at, log in enumerate(logs)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    found = [json.loads(row)["request"] for one in tmp_path.iterdir() for row in one.read_text().splitlines()]
    assert sorted(found) == sorted(f"p{log}-{at}" for log in range(3) for at in range(100))


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    log = AccessLog(AccessSettings(file="a.log"), tmp_path, Meter())
    log._take([Record(0.0, request="one")])
    (tmp_path / "a.log").rename(tmp_path / "moved")
    log._take([Record(0.0, request="two")])
    assert json.loads((tmp_path / "a.log").read_text())["request"] == "two"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_stops_no_answer_is_said_once_and_the_log_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "access.log").symlink_to("/dev/full")
    with Observed(tmp_path) as house:
        lost = house.meter.counter("millstream_access_lost_total", "", {"cause": "disk"})
        for _ in range(3):
            before = lost.value
            assert house.ask(affine()) == [200]
            until(lambda before=before: lost.value > before)
        assert lost.value == 3
        (tmp_path / "access.log").unlink()
        assert house.ask(affine("again")) == [200]
        assert house.lines(1)[0]["request"] == "again"
    said = [one.getMessage() for one in caplog.records if "access log" in one.getMessage()]
    assert len(said) == 2 and "No space left" in said[0] and "3 lines are missing" in said[1]


def test_a_disk_that_hangs_holds_no_answer_and_what_waits_is_bounded(tmp_path: Path) -> None:
    hangs = threading.Event()
    with Observed(tmp_path, waiting_max=5) as house:
        house.log._aside._take = lambda records: hangs.wait(30)  # type: ignore[assignment]
        for _ in range(30):
            assert house.ask(affine()) == [200]
            time.sleep(0.02)
        dropped = house.meter.counter("millstream_access_lost_total", "", {"cause": "queue"})
        assert dropped.value > 0
        hangs.set()


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="a file it can write"):
        AccessLog(AccessSettings(file="no/such/folder/a.log"), tmp_path, Meter())


def test_stdout_gets_the_same_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(AccessSettings(file="-"), tmp_path, Meter())
    log._take([Record(0.0, request="one", time=1.0)])
    assert capfd.readouterr().out.encode() == line(Record(0.0, request="one", time=1.0))
    assert not list(tmp_path.iterdir())


def test_processes_that_share_a_pipe_tear_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, data: written.append(bytes(data)) or len(data))
    log = AccessLog(AccessSettings(file="-"), tmp_path, Meter())
    records = [Record(0.0, request=f"r{at}", route="x" * (9000 if at == 70 else 40), time=1e9) for at in range(200)]
    log._take(records)
    monkeypatch.undo()
    assert b"".join(written) == b"".join(map(line, records))
    assert all(one.endswith(b"\n") and (len(one) <= 4096 or one.count(b"\n") == 1) for one in written)
    assert 4 < len(written) < 20


def test_a_line_that_broke_off_takes_no_other_with_it(tmp_path: Path) -> None:
    log = AccessLog(AccessSettings(file="a.log"), tmp_path, Meter())
    (tmp_path / "a.log").write_text('{"time":"2026')
    log._torn = True
    log._take([Record(0.0, request="whole")])
    assert json.loads((tmp_path / "a.log").read_text().splitlines()[1])["request"] == "whole"


def test_without_an_observer_nothing_is_recorded() -> None:
    async def test() -> None:
        meter = Meter()
        house = House(meter)
        server = Http(house, meter, FakeClock())
        port = await server.start(port=0)
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        house.held = []
        client.send(affine())
        while not house.held:
            await asyncio.sleep(0.001)
        assert next(iter(server.connections))._pending[0].record is None  # type: ignore[attr-defined]
        house.release([0])
        assert (await client.read()).status == 200
        client.close()
        while server.connections:
            await asyncio.sleep(0.001)
        await server.stop()

    asyncio.run(test())
