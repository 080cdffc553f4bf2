"""Bytes and documents that nobody would think of: never a 500, never a hang, never another caller's rows."""

from __future__ import annotations

import asyncio
import gzip
import re
import resource
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
import uvloop
from bad_input import CASES, DATA
from front_house import Client, Served, affine, affine_binary, chunked, http, infer, models, served_beside, tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.front import HttpLimits
from millstream.front.codec import Plan
from millstream.types import Output

pytestmark = pytest.mark.slow
many = settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def with_server(test: Callable[[Served], Awaitable[None]], limits: HttpLimits | None = None) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), Served(limits) as served:
            await test(served)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


# The parser.


def own(at: int) -> bytes:
    """A request whose answer tells which one it was: its rows are its number, and so is its id."""
    x = np.full((at % 3 + 1, 3), at, "<f4")
    if at % 2:
        return infer("affine", [tensor("x", "FP32", list(x.shape), data=x.ravel().tolist())], id=f"n{at}")
    spec = [tensor("x", "FP32", list(x.shape), parameters={"binary_data_size": x.nbytes})]
    return infer("affine", spec, x.tobytes(), id=f"n{at}")


def is_own(at: int, document: dict[str, Any]) -> bool:
    return bool(document["id"] == f"n{at}" and set(document["outputs"][0]["data"]) == {at * 9.0, at * 12.0})


def compressed(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    body = gzip.compress(body)
    return b"\r\n".join([*lines, b"Content-Encoding: gzip", b"Content-Length: %d" % len(body), b"", body])


def case(at: int) -> bytes:
    text = orjson.dumps(CASES[at].document)
    url = f"/v2/models/{CASES[at].model}/infer"
    if CASES[at].raw is None:
        return http("POST", url, text)
    return http("POST", url, text + (CASES[at].raw or b""), Inference_Header_Content_Length=len(text))


SEEDS = [
    affine("a"),
    affine_binary("b"),
    chunked(affine_binary("c"), 9),
    compressed(affine("d")),
    chunked(compressed(affine_binary("e")), 11),
    http("POST", "/v2/repository/index", b'{"ready": true}'),
    http("POST", "/v2/repository/models/pair/load", b'{"parameters": {"unload_dependents": false}}'),
    http("GET", "/v2/models/affine/versions/1/config", Accept_Encoding="gzip;q=0.5, *"),
    http("GET", "/v2/models/count/sequences/token-anyone-1", Millstream_Explain="1"),
    http("HEAD", "/v2/models/stats"),
    http("POST", "/v1/outcomes", b'[{"kind": "like", "event_time": 1}]'),
    http("POST", "/v1/recommend", b'{"user": "u", "candidates": ["a"]}'),
    *map(case, range(0, len(CASES), 5)),
]
WORDS = [b"\r\n", b"\r\n\r\n", b"\0", b"\xff" * 9, b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
         b"Content-Encoding: deflate\r\n", b"Inference-Header-Content-Length: 3\r\n", b"Expect: 100-continue\r\n",
         b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"HTTP/1.1", b"-1", b"9" * 30, b'{"', b"[[[[", b"0\r\n\r\n",
         b"Connection: close\r\n",
         b"1e999", b"NaN", b'"binary_data_size":', b"POST /v2/models/affine/infer HTTP/1.1\r\n"]  # fmt: skip
MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.sampled_from("xdir"), st.sampled_from(WORDS) | st.binary(max_size=6)
    ),
    max_size=8,
)


def mutated(raw: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    made = bytearray(raw)
    for place, kind, new in mutations:
        at = int(place * len(made))
        if kind == "d":
            del made[at : at + 1 + len(new)]
        elif kind == "r":
            made[at:at] = made[at : at + 16]
        else:
            made[at : at + (len(new) if kind == "x" else 0)] = new
    return bytes(made)


@many
@given(st.lists(st.tuples(st.sampled_from(SEEDS), MUTATIONS), min_size=1, max_size=3), st.integers(0, 999))
def test_mutated_bytes_are_answered_or_refused_and_hurt_nobody_beside_them(
    parts: list[tuple[bytes, list[tuple[float, str, bytes]]]], at: int
) -> None:
    raw = b"".join(mutated(seed, mutations) for seed, mutations in parts)

    async def test(served: Served) -> None:
        broken, beside = await served.connect(), await served.connect()
        broken.send(raw[: len(raw) // 2])
        beside.send(own(at))
        await asyncio.sleep(0)
        broken.send(raw[len(raw) // 2 :])
        broken.writer.write_eof()
        everything = b""
        with suppress(OSError):  # it was refused and closed before its end was told
            while some := await broken.reader.read(1 << 16):
                everything += some
        for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", everything):
            assert int(status) < 500 or int(status) == 501, (raw, everything)
        assert is_own(at, (await beside.read()).json)
        beside.send(own(at + 1))
        assert is_own(at + 1, (await beside.read()).json)
        broken.close()
        beside.close()

    with_server(test)


@many
@given(st.lists(st.integers(0, 50), min_size=2, max_size=30), st.randoms(use_true_random=False), st.integers(1, 400))
def test_everybody_gets_their_own_rows(numbers: list[int], random: Any, size: int) -> None:
    """Several callers pipeline requests in odd pieces; the answers come from the house in any order."""

    async def test(served: Served) -> None:
        served.door.held = []
        clients: list[Client] = [await served.connect() for _ in range(3)]
        sent: list[list[int]] = [numbers[at::3] for at in range(3)]
        streams = [b"".join(map(own, one)) for one in sent]
        while any(streams):
            for at, client in enumerate(clients):
                client.send(streams[at][:size])
                streams[at] = streams[at][size:]
            await asyncio.sleep(0)
        while len(served.door.held) < len(numbers):
            await asyncio.sleep(0.001)
        served.door.release(random.sample(range(len(numbers)), len(numbers)))
        for client, mine in zip(clients, sent, strict=True):
            for at in mine:
                assert is_own(at, (await client.read()).json)
            client.close()

    with_server(test)


# Documents.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["x", "y", "n", "z", "", "y_index"])
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "top_k", "classification", "key",
                     "timeout", "explain", "sequence_id", "sequence_start", "sequence_end", "sequence_step",
                     "resume_token", "priority"]),
    st.booleans() | st.integers(-1, 13) | st.sampled_from(["a", 12, 2**63]) | JSON,
    max_size=4,
)  # fmt: skip
TENSOR = st.fixed_dictionaries(
    {"name": NAMES | JSON, "datatype": st.sampled_from(["FP32", "INT64", "BYTES"]) | JSON,
     "shape": st.lists(st.integers(-1, 4) | st.just(2**31 - 1) | JSON, max_size=3) | st.just([1, 3])},
    optional={"data": st.lists(st.integers(0, 9), max_size=6) | st.just([1, 2, 3]) | JSON,
              "parameters": PARAMETERS | JSON},
)  # fmt: skip
NEARLY = st.just(DATA) | st.builds(lambda more: {**DATA, **more}, st.dictionaries(st.sampled_from(list(DATA)), JSON))
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.lists(NEARLY | TENSOR, min_size=1, max_size=2) | JSON},
    optional={
        "id": st.text(max_size=4) | JSON,
        "outputs": st.lists(TENSOR | st.fixed_dictionaries({"name": NAMES, "parameters": PARAMETERS}), max_size=2)
        | JSON,
        "parameters": PARAMETERS | JSON,
    },
)


@settings(max_examples=2000, deadline=None)
@given(DOCUMENTS, st.none() | st.binary(max_size=24) | st.just(b"\0" * 12))
def test_any_document_is_read_or_refused_in_words(document: dict[str, Any], raw: bytes | None) -> None:
    plan = Plan(models()["affine"])
    text = orjson.dumps(document)
    try:
        layout, inputs = plan.read(text + (raw or b""), None if raw is None else len(text))
        rows = layout.rows
        output = Output({"y": inputs["x"][:, :2], "n": np.arange(rows)}, "affine", "1", turn=layout.turn)
        whole = plan.write(layout, orjson.dumps(layout.id or "made")[1:-1], output)
    except errors.BadInput as error:
        assert len(str(error)) > 20
        return
    assert inputs["x"].shape == (rows, 3) and inputs["x"].dtype == np.float32
    head, _, content = whole.partition(b"\r\n\r\n")
    assert int(re.search(rb"\r\nContent-Length: (\d+)", head)[1]) == len(content)  # type: ignore[index]
    length = re.search(rb"Inference-Header-Content-Length: (\d+)", head)
    answer = orjson.loads(content[: int(length[1])] if length else content)
    assert answer["id"] == (layout.id or "made")
    sizes = [one.get("parameters", {}).get("binary_data_size", 0) for one in answer["outputs"]]
    assert sum(sizes) == (len(content) - int(length[1]) if length else 0)


# Many, and slow ones.

IDLE = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
port, count = map(int, sys.argv[1:])
held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("open", flush=True)
sys.stdin.read()
"""


def test_ten_thousand_idle_connections_cost_the_others_nothing() -> None:
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 500:
        pytest.skip(f"this machine allows {hard} open files a process")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with served_beside(HttpLimits(connections_max=count + 100)) as served:
            command = [sys.executable, "-c", IDLE, str(served.port), str(count)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as idle:
                assert idle.stdout is not None and idle.stdin is not None
                assert idle.stdout.readline() == "open\n"
                asyncio.run(answered_beside(served, count))
                idle.stdin.close()
                assert idle.wait(20) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def answered_beside(served: Served, count: int) -> None:
    async with asyncio.timeout(100):
        client = await served.connect()
        for at in range(200):
            client.send(own(at))
            assert is_own(at, (await client.read()).json)
        assert len(served.http.connections) == count + 1
        client.close()


def test_slow_lorises_are_cut_off_and_cost_the_others_nothing() -> None:
    limits = HttpLimits(head_s=1.0, body_s=1.0)

    async def test(served: Served) -> None:
        lorises = [await served.connect() for _ in range(200)]
        for at, loris in enumerate(lorises):
            loris.send(affine()[:20] if at % 2 else affine()[:-9])

        async def drip() -> None:
            while True:
                for at, loris in enumerate(lorises):
                    loris.send(b"x" if at % 2 else b" ")
                await asyncio.sleep(0.2)

        dripping = asyncio.ensure_future(drip())
        client = await served.connect()
        for at in range(100):
            client.send(own(at))
            assert is_own(at, (await client.read()).json)
        while len(served.http.connections) > 1:
            await asyncio.sleep(0.05)
        dripping.cancel()
        client.send(own(7))
        assert is_own(7, (await client.read()).json)
        for one in (client, *lorises):
            one.close()

    with_server(test, limits)
