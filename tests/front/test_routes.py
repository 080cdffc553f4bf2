"""Every endpoint answers as documented, and every mistake of a client is a 4xx with a sentence to act on."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import numpy as np
import orjson
import pytest
from front_house import Reply, Served, affine, affine_binary, chunked, http, infer, models, tensor

from millstream import errors
from millstream.front import HttpLimits
from millstream.types import Outcome, Principal, Rank, Request


def ask(*raw: bytes, **house: Any) -> tuple[Reply, Served]:
    async def run() -> tuple[Reply, Served]:
        async with Served(HttpLimits(outcomes_max=3, body_bytes_max=4096)) as served:
            for name, value in house.items():
                setattr(served.door, name, value)
            return await served.ask(*raw), served

    return asyncio.run(run())


X = tensor("x", "FP32", [1, 3])
DATA = {**X, "data": [1, 2, 3]}
A, B = tensor("a", "INT64", [1, 2], data=[1, 2]), tensor("b", "FP32", [1], data=[0.5])


def sized(size: object, **more: object) -> list[dict[str, object]]:
    return [{**X, "parameters": {"binary_data_size": size}, **more}]


def text(elements: bytes) -> bytes:
    spec = tensor("v", "BYTES", [1, 1], parameters={"binary_data_size": len(elements)})
    return infer("echo-BYTES", [spec], elements)


def body(raw: bytes, url: str = "/v2/models/affine/infer", **headers: object) -> bytes:
    return http("POST", url, raw, **headers)


RANK, OUTCOME = "/v1/recommend", "/v1/outcomes"

# case: request, status, words that the sentence must have
MISTAKES: dict[str, tuple[bytes, int, str]] = {
    "broken JSON": (body(b'{"inputs": ['), 400, "not JSON"),
    "empty body": (http("POST", "/v2/models/affine/infer"), 400, "empty"),
    "not an object": (body(b"[1]"), 400, "got [1], expected a JSON object"),
    "not UTF-8": (body(b'{"id": "\xff"}'), 400, "not JSON"),
    "deep nesting": (body(b"[" * 4000), 400, "not JSON"),
    "NaN in JSON": (body(orjson.dumps({"inputs": [DATA]}).replace(b"1,2", b"NaN,2")), 400, "not JSON"),
    "1e999 in JSON": (body(orjson.dumps({"inputs": [DATA]}).replace(b"1,2", b"1e999,2")), 400, "not JSON"),
    "header length is a word": (body(b"{}", Inference_Header_Content_Length="two"), 400, "'two' length"),
    "header length is negative": (body(b"{}", Inference_Header_Content_Length=-1), 400, "'-1'"),
    "header length is huge": (body(b"{}", Inference_Header_Content_Length=10**30), 400, "length"),
    "header length past the body": (body(b"{}", Inference_Header_Content_Length=3), 400, "3 2 bytes"),
    "header length of nothing": (body(b"{}", Inference_Header_Content_Length=0), 400, "empty"),
    "header length within the JSON": (body(b'{"inputs":[]}', Inference_Header_Content_Length=5), 400, "not JSON"),
    "unknown version, metadata": (http("GET", "/v2/models/affine/versions/9"), 404, "'9'"),
    "unknown model, ready": (http("GET", "/v2/models/nobody/ready"), 404, "'nobody'"),
    "unknown route": (http("GET", "/v3"), 404, "/v3 GET /"),
    "unknown verb of a model": (http("POST", "/v2/models/affine/explain", b"{}"), 404, "explain"),
    "empty model name": (http("GET", "/v2/models//ready"), 404, "no route"),
    "GET infer": (http("GET", "/v2/models/affine/infer"), 405, "POST GET"),
    "POST metadata": (http("POST", "/v2/models/affine", b"{}"), 405, "GET, HEAD"),
    "DELETE recommend": (http("DELETE", RANK), 405, "POST"),
    "a coding that is not read": (body(b"{}", Content_Encoding="br"), 415, "'br' gzip deflate plain"),
    "two codings": (body(b"{}", Content_Encoding="gzip, deflate"), 415, "'gzip, deflate' once"),
    "two codings in two headers": (
        b"POST / HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Encoding: gzip\r\n\r\n",
        415,
        "once",
    ),
    "not gzip": (body(b"{}", Content_Encoding="gzip"), 400, "Content-Encoding gzip unpacked plain"),
    "not zlib": (body(b"{}", Content_Encoding="deflate"), 400, "Content-Encoding deflate unpacked plain"),
    "truncated gzip": (body(gzip.compress(b"{}")[:-4], Content_Encoding="gzip"), 400, "gzip truncated"),
    "damaged gzip": (body(gzip.compress(b"{}")[:-8] + bytes(8), Content_Encoding="gzip"), 400, "gzip unpacked"),
    "bytes after gzip": (body(gzip.compress(b"{}") + b"more", Content_Encoding="gzip"), 400, "gzip after"),
    "gzip after gzip": (body(gzip.compress(b"{}") * 2, Content_Encoding="gzip"), 400, "gzip after"),
    "nothing in gzip": (body(gzip.compress(b""), Content_Encoding="gzip"), 400, "empty"),
    "no body in gzip": (http("POST", "/v2/models/affine/infer", Content_Encoding="gzip"), 400, "empty"),
    "a bomb": (body(gzip.compress(bytes(1 << 20)), Content_Encoding="gzip"), 413, "unpacks 4096"),
    "oversized body": (body(b"x" * 5000), 413, "5000 4096"),
    "bad Content-Length": (http("POST", "/v2", Content_Length="ten"), 400, "Content-Length"),
    "negative Content-Length": (http("POST", "/v2", Content_Length=-5), 400, "Content-Length"),
    "overflowing Content-Length": (http("POST", "/v2", Content_Length=10**40), 400, "Content-Length"),
    "two framings": (http("POST", "/v2", Content_Length=3, Transfer_Encoding="chunked"), 400, "Transfer-Encoding"),
    "bad chunk": (http("POST", "/v2", Transfer_Encoding="chunked") + b"zz\r\n", 400, "chunk"),
    "not HTTP": (b"HELO there\r\n\r\n", 400, "HTTP/1.1"),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n\r\n", 400, "HTTP/1.1"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400, "HTTP/1.1"),
    "large header": (http("GET", "/", X=("y" * 60_000)), 431, "32768"),
    "endless header": (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000, 431, "32768"),
    "long URL": (http("GET", "/" + "y" * 60_000), 431, "32768"),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 70 + b"\r\n", 431, "64 fewer"),
    "strange X-Request-Id": (http("POST", "/v1/recommend", b"{}", X_Request_Id="é"), 400, "X-Request-Id ASCII"),
    "recommend nothing": (http("POST", RANK), 400, "empty candidates"),
    "recommend no user": (http("POST", RANK, b'{"candidates": ["a"]}'), 400, "user"),
    "recommend an empty user": (http("POST", RANK, b'{"user": "", "candidates": ["a"]}'), 400, "user empty"),
    "recommend a number": (http("POST", RANK, b'{"user": "u", "candidates": ["a", 1]}'), 400, "$.candidates[1]"),
    "recommend no candidates": (http("POST", RANK, b'{"user": "u", "candidates": []}'), 400, "candidates empty"),
    "recommend a misspelt field": (
        http("POST", RANK, b'{"user": "u", "candidates": ["a"], "event_tme": 1}'),
        400,
        "event_tme",
    ),
    "recommend at infinity": (
        http("POST", RANK, b'{"user": "u", "candidates": ["a"], "event_time": 1e999}'),
        400,
        "event_time",
    ),
    "recommend brackets": (http("POST", RANK, b"[" * 4000), 400, "recommend"),
    "recommend a lone surrogate": (http("POST", RANK, b'{"user": "\\ud800", "candidates": ["a"]}'), 400, "recommend"),
    "recommend bytes": (http("POST", RANK, b'{"user": "\xff", "candidates": ["a"]}'), 400, "recommend"),
    "outcomes nothing": (http("POST", OUTCOME), 400, "empty"),
    "outcomes number": (http("POST", OUTCOME, b"3"), 400, "outcomes"),
    "outcomes empty list": (http("POST", OUTCOME, b"[]"), 400, "empty"),
    "outcome no kind": (http("POST", OUTCOME, b'{"event_time": 1}'), 400, "kind"),
    "outcome empty kind": (http("POST", OUTCOME, b'{"kind": "", "event_time": 1}'), 400, "outcomes[0].kind"),
    "outcome misspelt": (http("POST", OUTCOME, b'{"kind": "like", "event_time": 1, "vlaue": 2}'), 400, "vlaue"),
    "outcomes too many": (http("POST", OUTCOME, b'[{"kind":"a","event_time":1}' + b',{"kind":"a","event_time":1}' * 3
                               + b"]"), 413, "4 3"),
    "outcomes and more": (http("POST", OUTCOME, b'{"outcomes": [], "other": 1}'), 400, "other"),
    "outcome long id": (
        http("POST", OUTCOME, b'{"kind": "a", "event_time": 1, "id": "' + b"x" * 2000 + b'"}'),
        400,
        "id 1024",
    ),
    "outcomes brackets": (http("POST", OUTCOME, b"[" * 4000), 400, "outcomes"),
    "outcome number overflow": (http("POST", OUTCOME, b'{"kind":"a","event_time":1,"value":1e999}'), 400, "value"),
    "index of a list": (http("POST", "/v2/repository/index", b"[]"), 400, "object"),
    "index of broken JSON": (http("POST", "/v2/repository/index", b"{"), 400, "JSON"),
    "index by a number": (http("POST", "/v2/repository/index", b'{"ready": 1}'), 400, "ready true"),
    "load with a configuration": (
        http("POST", "/v2/repository/models/pair/load", b'{"parameters": {"config": "{}"}}'),
        400,
        "'config' repository",
    ),
    "load what cannot be loaded": (http("POST", "/v2/repository/models/broken/load"), 400, "'broken' ONNX"),
    "load nobody": (http("POST", "/v2/repository/models/nobody/load"), 404, "'nobody'"),
    "GET load": (http("GET", "/v2/repository/models/pair/load"), 405, "POST"),
    "GET index": (http("GET", "/v2/repository/index"), 405, "POST"),
    "POST config": (http("POST", "/v2/models/pair/config", b"{}"), 405, "GET"),
    "configuration of nobody": (http("GET", "/v2/models/nobody/config"), 404, "'nobody'"),
    "statistics of nobody": (http("GET", "/v2/models/nobody/stats"), 404, "'nobody'"),
    "statistics of no version": (http("GET", "/v2/models/pair/versions/9/stats"), 404, "'9'"),
    "a session that is not there": (http("GET", "/v2/models/count/sequences/token-x"), 404, "token"),
    "shared memory": (http("POST", "/v2/systemsharedmemory/region/r/register", b"{}"), 501, "body"),
    "traces": (http("POST", "/v2/trace/setting", b"{}"), 501, "Millstream-Explain"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_clients_mistake_is_a_4xx_that_says_what_to_do(case: str) -> None:
    raw, status, words = MISTAKES[case]
    reply, served = ask(raw)
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    for word in words.split():
        assert word in reply.error
    assert not served.door.calls, "nothing wrong may reach the door"


def test_405_names_the_methods() -> None:
    assert ask(http("GET", "/v2/models/affine/infer"))[0].headers["allow"] == "POST"
    assert ask(http("PUT", "/metrics"))[0].headers["allow"] == "GET, HEAD"


def test_infer_json() -> None:
    reply, served = ask(affine("r-1"))
    assert reply.json == {
        "id": "r-1",
        "model_name": "affine",
        "model_version": "1",
        "parameters": {"arm": "live", "policy": 3},
        "outputs": [tensor("y", "FP32", [1, 2], data=[1.0, 2.0]), tensor("n", "INT64", [1], data=[0])],
    }
    (request,) = served.door.calls
    assert isinstance(request, Request)
    assert (request.rows, request.id, request.version, request.key, request.outputs) == (1, "r-1", "", "", ())


def test_infer_binary_both_ways() -> None:
    reply, _ = ask(affine_binary("r-2", (1, 0, 0, 0, 1, 0)))
    head = int(reply.headers["inference-header-content-length"])
    assert reply.headers["content-type"] == "application/octet-stream"
    document = orjson.loads(reply.body[:head])
    assert document["id"] == "r-2"
    assert document["outputs"] == [
        tensor("y", "FP32", [2, 2], parameters={"binary_data_size": 16}),
        tensor("n", "INT64", [2], parameters={"binary_data_size": 16}),
    ]
    assert np.frombuffer(reply.body[head : head + 16], "<f4").tolist() == [1, 2, 3, 4]
    assert np.frombuffer(reply.body[head + 16 :], "<i8").tolist() == [0, 1]


def test_each_output_leaves_as_it_was_asked() -> None:
    wanted = [{"name": "n"}, {"name": "y", "parameters": {"binary_data": True}}]
    reply, served = ask(infer("affine", [DATA], outputs=wanted, id="m"))
    document = orjson.loads(reply.body[: int(reply.headers["inference-header-content-length"])])
    assert [output["name"] for output in document["outputs"]] == ["n", "y"]
    assert document["outputs"][0]["data"] == [0]
    assert "data" not in document["outputs"][1]
    assert len(reply.body[int(reply.headers["inference-header-content-length"]) :]) == 8
    assert served.door.calls[0].outputs == ("n", "y")  # type: ignore[union-attr]


def test_version_key_and_the_order_of_binary_and_json_tensors() -> None:
    raw = np.array([0.5], "<f4").tobytes()
    mixed = [A, {**tensor("b", "FP32", [1]), "parameters": {"binary_data_size": 4}}]
    head = orjson.dumps({"inputs": mixed, "parameters": {"key": "user-7"}})
    url = "/v2/models/p%61ir/versions/2/infer?trace=1"
    reply, served = ask(http("POST", url, head + raw, Inference_Header_Content_Length=len(head)))
    assert reply.json["outputs"][0]["data"] == [3.5]
    request = served.door.calls[0]
    assert isinstance(request, Request)
    assert (request.model, request.version, request.key) == ("pair", "2", "user-7")


def test_ids_are_echoed_or_made() -> None:
    async def run() -> None:
        async with Served() as served:
            made = [(await served.ask(infer("affine", [DATA]))).json["id"] for _ in range(3)]
            assert len(set(made)) == 3
            given = http("POST", "/v2/models/affine/infer", orjson.dumps({"inputs": [DATA]}), X_Request_Id="mine")
            assert (await served.ask(given)).json["id"] == "mine"
            for odd in ('quo"te', "back\\slash", "é✓", "tab\t"):
                assert (await served.ask(affine(odd))).json["id"] == odd
                reply = await served.ask(affine_binary(odd))
                head = int(reply.headers["inference-header-content-length"])
                assert orjson.loads(reply.body[:head])["id"] == odd
                assert len(reply.body) == head + 16

    asyncio.run(run())


def test_a_changed_model_is_seen_at_once() -> None:
    async def run() -> None:
        async with Served() as served:
            assert (await served.ask(affine())).status == 200
            served.door.served["affine"] = served.door.served["pair"]
            assert "'x'" in (await served.ask(affine())).error
            del served.door.served["affine"]
            assert (await served.ask(affine())).status == 404

    asyncio.run(run())


def test_an_equal_description_keeps_the_plan() -> None:
    """A Door that makes its descriptions anew must not cost a plan (its parsed headers, its templates) a request."""

    async def run() -> None:
        async with Served() as served:
            plans = []
            for _ in range(2):
                served.door.served = models()
                await served.ask(affine_binary())
                infer = served.http.routes._known[b"/v2/models/affine/infer"].run.__self__  # type: ignore[attr-defined]
                plans.append(infer._plan)
            assert plans[0] is plans[1]

    asyncio.run(run())


def test_the_small_routes() -> None:
    async def run() -> None:
        async with Served() as served:
            assert (await served.ask(http("GET", "/"))).json["name"] == "millstream"
            assert "binary_tensor_data" in (await served.ask(http("GET", "/v2"))).json["extensions"]
            assert (await served.ask(http("GET", "/v2/health/live"))).status == 200
            assert (await served.ask(http("GET", "/v2/health/ready"))).status == 200
            metadata = (await served.ask(http("GET", "/v2/models/affine"))).json
            assert metadata["inputs"] == [tensor("x", "FP32", [-1, 3])]
            assert metadata["versions"] == ["1", "2"]
            assert (await served.ask(http("GET", "/v2/models/affine/versions/2/ready"))).json["ready"] is True
            listed = (await served.ask(http("GET", "/v2/models"))).json["models"]
            assert [one["name"] for one in listed] == list(served.door.served)
            index = [http("POST", "/v2/repository/index", body) for body in (b"", b'{"ready": true}')]
            everything, ready = [(await served.ask(one)).json for one in index]
            assert {one["state"] for one in ready} == {"READY"}
            assert [one for one in everything if one not in ready] == [
                {"name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "model.onnx: not an ONNX file"}
            ]
            served.door.up = False
            unready = await served.ask(http("GET", "/v2/health/ready"))
            assert (unready.status, unready.headers["retry-after"]) == (503, "1")
            assert (await served.ask(http("GET", "/v2/models/affine/ready"))).status == 503

    asyncio.run(run())


def test_metrics_count_answers_by_route_and_status() -> None:
    async def run() -> None:
        async with Served() as served:
            await served.ask(affine())
            await served.ask(body(b"{}"))
            reply = await served.ask(http("GET", "/metrics"))
            assert reply.headers["content-type"].startswith("text/plain")
            page = reply.body.decode()
            assert 'millstream_http_answers_total{route="infer",status="200"} 1\n' in page
            assert 'millstream_http_answers_total{route="infer",status="400"} 1\n' in page
            assert 'millstream_http_seconds_count{route="infer"} 2\n' in page

    asyncio.run(run())


def test_recommend() -> None:
    asked = {"id": "q", "user": "u", "candidates": ["a", "b", "c"], "model": "m", "event_time": 5.0}
    reply, served = ask(http("POST", RANK, orjson.dumps(asked)))
    assert list(reply.json) == ["id", "model", "version", "items"]
    assert sorted(item["item"] for item in reply.json["items"]) == ["a", "b", "c"]
    scores = [item["score"] for item in reply.json["items"]]
    assert scores == sorted(scores, reverse=True)
    assert served.door.calls == [Rank(id="q", user="u", candidates=("a", "b", "c"), model="m", event_time=5.0)]
    assert ask(http("POST", RANK, b'{"user": "u", "candidates": ["a"]}'))[0].json["id"]


@pytest.mark.parametrize("form", ["%b", "[%b]", ' {"outcomes": [%b]}', "[%b,%b]"])
def test_outcomes_in_each_form(form: str) -> None:
    one = b'{"request": "q", "item": "a", "kind": "like", "value": 2, "event_time": 5.5, "id": "i"}'
    count = form.count("%b")
    reply, served = ask(http("POST", OUTCOME, form.encode() % ((one,) * count)))
    assert reply.json == {"accepted": count}
    assert (
        served.door.outcomes == [Outcome(request="q", item="a", kind="like", value=2.0, event_time=5.5, id="i")] * count
    )


def test_a_key_in_a_trailer_opens_nothing() -> None:
    late = chunked(affine())[:-2] + b"Authorization: Bearer secret\r\n\r\n"
    assert ask(late, keys={"secret": Principal("ann")})[0].status == 401


def test_keys() -> None:
    keys = {"secret": Principal("ann")}
    assert ask(affine(), keys=keys)[0].status == 401
    body = affine().partition(b"\r\n\r\n")[2]
    url = "/v2/models/affine/infer"
    for given, status in (("Bearer secret", 200), ("bearer  secret ", 200), ("Bearer other", 401), ("Basic x", 401)):
        reply, _ = ask(http("POST", url, body, Authorization=given), keys=keys)
        assert reply.status == status, given
    assert ask(http("GET", "/v2/health/live"), keys=keys)[0].status == 200
    assert ask(http("GET", "/metrics"), keys=keys)[0].status == 401
    assert ask(http("POST", url, b"{}"), keys=keys)[0].headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("url", ["/v2/models/affine/infer", "/v2/models/nowhere/infer", OUTCOME])
def test_a_key_without_the_right_learns_nothing_from_a_body(url: str) -> None:
    keys = {"secret": Principal("ann", ("pair:infer", "*:recommend"))}
    reply, served = ask(http("POST", url, b"{}", Authorization="Bearer secret"), keys=keys)
    assert reply.status == 403 and "ann may not" in reply.error
    assert "FP32" not in reply.error and served.door.calls == []
    allowed, _ = ask(http("POST", "/v2/models/pair/infer", b"{}", Authorization="Bearer secret"), keys=keys)
    assert allowed.status == 400 and "inputs" in allowed.error


FAULTS = [
    (errors.Busy("the queue is full", 2.2), 503, "queue is full"),
    (errors.Forbidden("ann may not call affine"), 403, "ann"),
    (errors.Late("no answer in 10 ms"), 504, "10 ms"),
    (errors.Full("the disk is full"), 507, "disk"),
    (ValueError("secret inside"), 500, "internal error"),
    (errors.Error("a bug"), 500, "internal error"),
]


@pytest.mark.parametrize(("fault", "status", "words"), FAULTS)
def test_what_the_door_raises(fault: Exception, status: int, words: str, caplog: pytest.LogCaptureFixture) -> None:
    reply, _ = ask(affine(), fault=fault)
    assert reply.status == status
    assert words in reply.error
    assert ("retry-after" in reply.headers) == (status == 503)
    if status == 503:
        assert reply.headers["retry-after"] == "3"
    if words == "internal error":
        assert str(fault) not in reply.error
        assert str(fault) in caplog.text


def test_what_a_future_raises() -> None:
    async def run() -> None:
        async with Served() as served:
            client = await served.connect()
            for fault, status in ((errors.Busy("full"), 503), (KeyError("x"), 500), (None, 503)):
                served.door.held = []
                client.send(affine())
                while not served.door.held:
                    await asyncio.sleep(0)
                future = served.door.held[0][0]
                future.set_exception(fault) if fault else future.cancel()
                assert (await client.read()).status == status
            client.close()

    asyncio.run(run())
