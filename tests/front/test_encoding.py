"""Compressed bodies: read as they come in and never beyond the bound, written only where the client wants them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import Awaitable, Callable

import numpy as np
import orjson
import pytest
from front_house import Reply, Served, affine, affine_binary, chunked, http, infer, tensor
from hypothesis import given
from hypothesis import strategies as st

from millstream import errors
from millstream.front import HttpLimits, answer
from millstream.front.encoding import CODINGS, PACKED_BYTES_MIN, Unpacker, chosen, pack

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}


def serve(test: Callable[[Served], Awaitable[None]], limits: HttpLimits | None = None) -> None:
    async def run() -> None:
        async with asyncio.timeout(100), Served(limits) as served:
            await test(served)

    asyncio.run(run())


def packed(request: bytes, coding: str) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    body = PACK[coding](body)
    return b"\r\n".join([*lines, b"Content-Encoding: " + coding.encode(), b"Content-Length: %d" % len(body), b"", body])


@pytest.mark.parametrize("coding", sorted(PACK))
def test_a_packed_request_is_answered_as_a_plain_one(coding: str) -> None:
    async def test(served: Served) -> None:
        for plain in (affine("p"), affine_binary("p")):
            expected = await served.ask(plain)
            whole = packed(plain, coding)
            for sent in ([whole], [whole[:-9], whole[-9:]], [chunked(whole, 5)]):
                assert (await served.ask(*sent)).body == expected.body
        assert served.http.held_bytes == 0

    serve(test)


def test_the_next_request_of_the_connection_is_plain_again() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(packed(affine("one"), "gzip") + affine("two") + packed(affine("three"), "deflate"))
        assert [(await client.read()).json["id"] for _ in range(3)] == ["one", "two", "three"]
        client.close()

    serve(test)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused_and_the_connection_goes_on(coding: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for size in (1_000_001, 1 << 24):
            client.send(packed(http("POST", "/v2/models/affine/infer", bytes(size)), coding))
            reply = await client.read()
            assert reply.status == 413 and "unpacks to more than 1000000 bytes" in reply.error
        client.send(affine("after"))
        assert (await client.read()).json["id"] == "after"
        client.close()
        assert served.http.held_bytes == 0 and len(served.door.calls) == 1

    serve(test, HttpLimits(body_bytes_max=1_000_000))


def test_slow_packed_bodies_hold_what_they_sent_and_keep_out_nobody() -> None:
    async def test(served: Served) -> None:
        slow = []
        for _ in range(8):
            client = await served.connect()
            client.send(packed(http("POST", "/v1/outcomes", b" " * 90_000), "gzip")[:-4])
            client.send(b"")
            slow.append(client)
        whole = http("POST", "/v2/models/affine/infer", b" " * 90_000)
        other = await served.connect()
        other.send(whole[:50_000])
        await asyncio.sleep(0.05)
        assert served.http.held_bytes < 60_000
        other.send(whole[50_000:])
        assert (await other.read()).status == 400  # read to its end: no JSON
        for client in (*slow, other):
            client.close()

    serve(test, HttpLimits(body_bytes_max=100_000, held_bytes_max=150_000))


def test_what_is_unpacked_counts_against_the_bodies_of_all() -> None:
    async def test(served: Served) -> None:
        served.door.held = []
        ask = packed(
            affine("one").replace(b'"data"', b" " * 90_000 + b'"data"').replace(b"Content-Length", b"X"), "gzip"
        )
        first, second = await served.connect(), await served.connect()
        first.send(ask)
        while not served.door.held:
            await asyncio.sleep(0.001)
        assert served.http.held_bytes > 90_000
        second.send(ask)
        assert (await second.read()).status == 503
        served.door.release([0])
        assert (await first.read()).status == 200
        first.close()
        second.close()
        while served.http.held_bytes:
            await asyncio.sleep(0.001)

    serve(test, HttpLimits(body_bytes_max=100_000, held_bytes_max=150_000))


def test_a_large_packed_body_is_unpacked_beside_the_loop_in_the_order_of_the_requests() -> None:
    async def test(served: Served) -> None:
        x = np.zeros((200_000, 3), "<f4").tobytes()
        spec = [tensor("x", "FP32", [200_000, 3], parameters={"binary_data_size": len(x)})]
        large = packed(infer("affine", spec, x, parameters={"binary_data_output": True}, id="large"), "gzip")
        client = await served.connect()
        client.send(large + affine("small") + large)
        replies = [await client.read() for _ in range(3)]
        assert [one.status for one in replies] == [200] * 3
        assert replies[1].json["id"] == "small" and len(replies[0].body) == len(replies[2].body) > 1_000_000
        client.close()
        while served.http.connections:
            await asyncio.sleep(0.001)
        assert served.http.held_bytes == 0 and served.http.under_way == 0

    serve(test)


def test_a_client_that_leaves_while_its_body_is_unpacked_harms_nobody() -> None:
    async def test(served: Served) -> None:
        for _ in range(3):
            client = await served.connect()
            client.send(packed(http("POST", "/v2/models/affine/infer", bytes(30_000_000)), "gzip"))
            while not served.http.under_way:
                await asyncio.sleep(0)
            client.writer.transport.abort()
            while served.http.connections:
                await asyncio.sleep(0.001)
        await asyncio.get_running_loop().shutdown_default_executor()
        assert served.http.held_bytes == 0 and served.http.under_way == 0

    serve(test)


def unpack(coding: bytes, whole: bytes, most: int) -> bytearray:
    unpacker = Unpacker(coding, whole, most)
    found = unpacker.here()
    return unpacker.beside() if found is None else found


@given(st.binary(max_size=3000), st.integers(0, 3_000_000), st.sampled_from(sorted(CODINGS)), st.integers(1, 4_000_000))
def test_any_body_is_unpacked_or_refused_at_its_bound(body: bytes, more: int, coding: bytes, most: int) -> None:
    whole = body + bytes(more)
    packed = PACK[coding.decode()](whole)
    if len(whole) <= most:
        assert unpack(coding, packed, most) == whole
        for cut in {0, len(packed) // 2, len(packed) - 1} - {0}:
            with pytest.raises(errors.BadInput, match="truncated"):
                unpack(coding, packed[:cut], most)
        with pytest.raises(errors.BadInput, match="bytes after"):
            unpack(coding, packed + b"x", most)
    else:
        with pytest.raises(errors.TooLarge):
            unpack(coding, packed, most)


@given(st.binary(max_size=200), st.sampled_from(sorted(CODINGS)))
def test_any_bytes_are_unpacked_or_refused(body: bytes, coding: bytes) -> None:
    with contextlib.suppress(errors.BadInput, errors.TooLarge):
        unpack(coding, body, 1000)


ACCEPTS = {
    "gzip": "gzip",
    "deflate": "deflate",
    "gzip, deflate, br": "gzip",
    "deflate, gzip": "gzip",
    "gzip;q=0.5, deflate;q=0.8": "deflate",
    "GZIP ; Q=1.0": "gzip",
    "gzip;q=0": None,
    "gzip;q=0, *": "deflate",
    "*": "gzip",
    "*;q=0": None,
    "identity, gzip;q=0.5": None,
    "identity;q=0.2, gzip;q=0.5": "gzip",
    "br, zstd": None,
    "": None,
    "gzip;q=high": None,
    "gzip;q=nan": None,
    "gzip;q=7": None,
    ";;,,=": None,
}


@pytest.mark.parametrize("accepts", ACCEPTS)
def test_what_an_accept_encoding_prefers(accepts: str) -> None:
    wanted = ACCEPTS[accepts]
    assert chosen(accepts.encode()) == (None if wanted is None else wanted.encode())


def rows(n: int, **headers: object) -> bytes:
    body = orjson.dumps({"inputs": [tensor("x", "FP32", [n, 3], data=[1.5, 0, 0] * n)]})
    return http("POST", "/v2/models/affine/infer", body, X_Request_Id="r", **headers)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("n", [300, 30_000], ids=["here", "beside"])
def test_an_answer_is_packed_where_the_client_wants_it(coding: str, n: int) -> None:
    async def test(served: Served) -> None:
        plain = await served.ask(rows(n))
        assert "content-encoding" not in plain.headers
        reply = await served.ask(rows(n, Accept_Encoding=coding))
        assert (reply.headers["content-encoding"], reply.headers["vary"]) == (coding, "Accept-Encoding")
        assert len(reply.body) < len(plain.body) / 2
        assert UNPACK[coding](reply.body) == plain.body

    serve(test)


def test_the_header_length_of_a_packed_binary_answer_is_of_what_it_unpacks_to() -> None:
    async def test(served: Served) -> None:
        x = np.ones((500, 3), "<f4").tobytes()
        spec = [tensor("x", "FP32", [500, 3], parameters={"binary_data_size": len(x)})]
        asked = infer("affine", spec, x, parameters={"binary_data_output": True}, id="i")
        plain = await served.ask(asked)
        reply = await served.ask(asked.replace(b"Host:", b"Accept-Encoding: gzip\r\nHost:", 1))
        assert gzip.decompress(reply.body) == plain.body
        name = "inference-header-content-length"
        assert reply.headers[name] == plain.headers[name]

    serve(test)


def test_packed_answers_keep_the_order_of_their_requests() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(rows(30_000, Accept_Encoding="gzip") + affine("second") + rows(30_000, Accept_Encoding="deflate"))
        first, second, third = [await client.read() for _ in range(3)]
        assert (first.headers["content-encoding"], third.headers["content-encoding"]) == ("gzip", "deflate")
        assert second.json["id"] == "second"
        client.close()

    serve(test)


def test_a_client_that_leaves_while_its_answer_is_packed_harms_nobody() -> None:
    async def test(served: Served) -> None:
        for _ in range(3):
            client = await served.connect()
            client.send(rows(30_000, Accept_Encoding="gzip"))
            while not served.door.calls:
                await asyncio.sleep(0)
            client.writer.transport.abort()
            served.door.calls.clear()
        while served.http.connections:
            await asyncio.sleep(0.001)
        assert (await served.ask(affine())).status == 200

    serve(test)


def test_little_things_and_refusals_and_documents_stay_plain() -> None:
    async def test(served: Served) -> None:
        asks = [rows(1, Accept_Encoding="gzip"), http("GET", "/v2/models", Accept_Encoding="gzip")]
        asks += [http("GET", "/v2/models/" + "x" * 900, Accept_Encoding="gzip")]
        replies: list[Reply] = [await served.ask(one) for one in asks]
        assert all("content-encoding" not in reply.headers for reply in replies)
        assert len(replies[1].body) > PACKED_BYTES_MIN
        metrics = await served.ask(http("GET", "/metrics", Accept_Encoding="gzip"))
        assert gzip.decompress(metrics.body).startswith(b"# HELP")

    serve(test)


def test_what_packing_does_not_make_smaller_stays_as_it_is() -> None:
    whole = answer.answer(np.random.default_rng(1).bytes(5000))
    assert pack(whole, b"gzip") == whole
