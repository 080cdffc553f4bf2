"""Every rule of the V2 protocol over HTTP: what breaks it is refused in words, and what keeps it is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import orjson
import pytest
from bad_input import CASES, Case
from front_house import Reply, Served, http, infer, tensor

from millstream.front.explain import explain
from millstream.types import Output, Request, Turn


def ask(*raw: bytes) -> tuple[list[Reply], Served]:
    async def run() -> tuple[list[Reply], Served]:
        async with Served() as served:
            return [await served.ask(one) for one in raw], served

    return asyncio.run(run())


def sent(case: Case) -> bytes:
    url = f"/v2/models/{case.model}{f'/versions/{case.version}' if case.version else ''}/infer"
    text = orjson.dumps(case.document)
    if case.raw is None:
        return http("POST", url, text)
    return http("POST", url, text + case.raw, Inference_Header_Content_Length=len(text))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_breaks_a_rule_is_refused_in_words(case: Case) -> None:
    (reply,), served = ask(sent(case))
    assert reply.status == case.status, reply.body
    assert reply.headers["content-type"] == "application/json"
    for part in case.parts:
        assert part in reply.error, reply.error
    if case.error.status == 400:
        assert not served.door.calls, "nothing wrong may reach the door"


def test_the_names_of_the_cases_are_different() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("wrong", "statuses"), [(-4, [400, 400]), (4, [400, 400]), (0, [200, 200])])
def test_a_wrong_content_length_harms_no_other_connection(wrong: int, statuses: list[int]) -> None:
    """Too short: the rest is no request. Too long: it takes a part of the next, and what is left of that is none."""
    text = orjson.dumps({"inputs": [X]})
    raw = http("POST", "/v2/models/affine/infer", text, Content_Length=len(text) + wrong)

    async def run() -> None:
        async with asyncio.timeout(60), Served() as served:
            client = await served.connect()
            client.send(raw + http("GET", "/v2/health/live"))
            assert [(await client.read()).status for _ in statuses] == statuses
            client.close()
            assert (await served.ask(http("GET", "/v2/health/live"))).status == 200

    asyncio.run(run())


X = tensor("x", "FP32", [1, 3], data=[1, 0, 0])


def request(**parameters: Any) -> tuple[Request, dict[str, Any]]:
    (reply,), served = ask(infer("count", [tensor("x", "FP32", [1, 1], data=[1])], parameters=parameters))
    assert reply.status == 200, reply.body
    (call,) = served.door.calls
    assert isinstance(call, Request)
    return call, reply.json


def test_priority_timeout_and_key_reach_the_door() -> None:
    call, _ = request(priority=7, timeout=1500, key="u", custom=[1])
    assert (call.priority, call.timeout_s, call.key, call.turn) == (7, 0.0015, "u", None)


@pytest.mark.parametrize(
    ("parameters", "turn"),
    [
        ({"sequence_id": 5, "sequence_start": True}, Turn("5", start=True)),
        ({"sequence_id": 2**64 - 1, "sequence_start": True}, Turn(str(2**64 - 1), start=True)),
        ({"sequence_id": "s", "sequence_start": True, "sequence_end": True}, Turn("s", True, True)),
        ({"sequence_id": "s", "sequence_start": True, "sequence_step": 1}, Turn("s", True, step=1)),
        ({"sequence_id": 0, "sequence_start": True}, Turn(start=True)),
        ({"sequence_start": True, "resume_token": "t"}, Turn(start=True, token="t")),
        ({"sequence_id": 0, "sequence_start": False, "sequence_end": False}, None),
        ({"sequence_id": ""}, None),
    ],
)
def test_a_turn_of_a_session(parameters: dict[str, Any], turn: Turn | None) -> None:
    call, answer = request(**parameters)
    assert call.turn == turn
    if turn is None:
        assert answer["parameters"] == {"arm": "live", "policy": 3}
    else:
        ident = turn.id or answer["parameters"]["sequence_id"]
        token = f"token-anyone-{ident}"
        assert answer["parameters"] == {
            "arm": "live", "policy": 3, "sequence_id": ident, "sequence_step": 1, "resume_token": token
        }  # fmt: skip


def test_a_session_is_found_by_its_token_until_it_ends() -> None:
    def step(**parameters: Any) -> bytes:
        said = {"binary_data_output": True, **parameters}
        x = [tensor("x", "FP32", [1, 1], parameters={"binary_data_size": 4})]
        return infer("count", x, b"\0" * 4, parameters=said)

    where = http("GET", "/v2/models/count/sequences/token-anyone-a%2Fb")
    replies, _ = ask(
        step(sequence_id="a/b", sequence_start=True),
        step(resume_token="token-anyone-a/b"),
        where,
        step(sequence_id="a/b"),
        step(sequence_id="a/b", sequence_end=True),
        where,
        step(sequence_id="a/b"),
    )
    assert [reply.status for reply in replies] == [200, 200, 200, 200, 200, 404, 404]
    assert [np.frombuffer(replies[at].body[-8:], "<i8")[0] for at in (0, 1, 3, 4)] == [1, 2, 3, 4]
    said = {"sequence_id": "a/b", "sequence_step": 2, "resume_token": "token-anyone-a/b"}
    assert replies[2].json == {"model_name": "count"} | said
    head = orjson.loads(replies[1].body[: int(replies[1].headers["inference-header-content-length"])])
    assert head["parameters"] == {"arm": "live", "policy": 3} | said


def test_a_row_that_belongs_to_all() -> None:
    one = tensor("a", "INT64", [1, 2], data=[1, 2])
    many = tensor("b", "FP32", [3], data=[0.5, 1.5, 2.5])
    (reply,), served = ask(infer("pair", [one, many]))
    assert reply.json["outputs"] == [tensor("s", "FP32", [3], data=[3.5, 4.5, 5.5])]
    (call,) = served.door.calls
    assert isinstance(call, Request)
    assert (call.rows, call.inputs["a"].shape, call.inputs["b"].shape) == (3, (1, 2), (3,))


def picks(model: str, shape: list[int], data: list[Any], name: str = "v", raw: bool = False, **wish: Any) -> Any:
    outputs = [{"name": name, "parameters": wish}]
    (reply,), _ = ask(infer(model, [tensor("v", "FP32", shape, data=data)], outputs=outputs))
    assert reply.status == 200, reply.body
    return reply if raw else reply.json["outputs"]


def test_top_k_of_one_number_a_row() -> None:
    values = [0.5, 2.0, -1.0, 2.0, 7.0]
    assert picks("score", [5], values, top_k=3) == [
        tensor("v", "FP32", [3], data=[7.0, 2.0, 2.0]),
        tensor("v_index", "INT64", [3], data=[4, 1, 3]),
    ]
    assert picks("score", [5], values, "w", top_k=2) == [
        tensor("w", "FP32", [2, 1], data=[7.0, 2.0]),
        tensor("w_index", "INT64", [2], data=[4, 1]),
    ]
    assert picks("score", [5], values, top_k=99)[1]["data"] == [4, 1, 3, 0, 2], "more than there are: all"


def test_top_k_of_each_row() -> None:
    assert picks("echo-FP32", [2, 3], [1, 3, 2, 9, 9, 8], top_k=2) == [
        tensor("v", "FP32", [2, 2], data=[3.0, 2.0, 9.0, 9.0]),
        tensor("v_index", "INT64", [2, 2], data=[1, 2, 0, 1]),
    ]


def test_top_k_in_binary_brings_its_indexes_so_too() -> None:
    reply = picks("score", [3], [1, 3, 2], raw=True, top_k=2, binary_data=True)
    head = int(reply.headers["inference-header-content-length"])
    sizes = [one["parameters"]["binary_data_size"] for one in orjson.loads(reply.body[:head])["outputs"]]
    assert sizes == [8, 16]
    assert np.frombuffer(reply.body[head : head + 8], "<f4").tolist() == [3, 2]
    assert np.frombuffer(reply.body[head + 8 :], "<i8").tolist() == [1, 2]


def test_classification() -> None:
    assert picks("echo-FP32", [2, 3], [0.1, 0.9, 0.5, 3, 1, 2], classification=2) == [
        tensor("v", "BYTES", [2, 2], data=["0.900000:1", "0.500000:2", "3.000000:0", "2.000000:2"])
    ]
    assert picks("score", [3], [1, 3, 2], classification=9) == [
        tensor("v", "BYTES", [3], data=["3.000000:1", "2.000000:2", "1.000000:0"])
    ]


EXPLAINED = 'version="1", queue_us=120, mates=1, rows=2, padding=0.25, copy_us=3, compute_us=40'


def test_why_it_took_so_long_is_said_when_asked() -> None:
    body = orjson.dumps({"inputs": [X]})
    url = "/v2/models/affine/infer"
    asks = [http("POST", url, body, Millstream_Explain=value) for value in ("1", "?1", "true", "0", "")]
    asks += [http("POST", url, body), infer("affine", [X], parameters={"explain": True})]
    replies, _ = ask(*asks)
    assert [reply.headers.get("millstream-explain") for reply in replies] == [EXPLAINED] * 3 + [None] * 3 + [EXPLAINED]


def test_what_is_said_of_one_call_is_not_remembered_for_the_next() -> None:
    """A binary header that comes again is not parsed again; one that speaks of a single call must not come again."""

    async def run() -> None:
        async with Served() as served:
            x = [tensor("x", "FP32", [1, 3], parameters={"binary_data_size": 12})]
            for said in (
                {},
                {"priority": 1},
                {"timeout": 9},
                {"explain": True},
                {"key": "u"},
                {"sequence_start": True},
            ):
                for _ in range(2):
                    assert (await served.ask(infer("affine", x, b"\0" * 12, parameters=said))).status == 200
            route = served.http.routes._known[b"/v2/models/affine/infer"]
            assert len(route.run.__self__._plan._layouts) == 1  # type: ignore[attr-defined]
            turns = [call.turn for call in served.door.calls if isinstance(call, Request) and call.turn]
            assert len(turns) == 2 and turns[0] is not turns[1]

    asyncio.run(run())


def test_an_answer_with_nothing_to_explain_names_its_version() -> None:
    assert explain(Output({}, "m", '1"\\\n@é')) == 'version="1???@?", queue_us=0'
