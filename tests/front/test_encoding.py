"""Compressed bodies: read as they come in and never beyond the bound, written only where the client wants them."""

from __future__ import annotations

import asyncio
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
        async with asyncio.timeout(20), Served(limits) as served:
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
def test_a_bomb_is_refused_at_the_moment_it_passes_the_bound(coding: str) -> None:
    """Refused while the client still sends: the end of its body never comes."""

    async def test(served: Served) -> None:
        deflate = zlib.compressobj(9, zlib.DEFLATED, CODINGS[coding.encode()])
        client = await served.connect()
        client.send(http("POST", "/v2/models/affine/infer", Transfer_Encoding="chunked", Content_Encoding=coding))
        piece = deflate.compress(bytes(1 << 24)) + deflate.flush(zlib.Z_SYNC_FLUSH)
        assert len(piece) < 20_000
        client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        reply = await client.read()
        assert reply.status == 413 and "unpacks to more than 1000000 bytes" in reply.error
        assert await client.ended()
        client.close()
        assert served.http.held_bytes == 0 and not served.door.calls
        assert (await served.ask(affine())).status == 200

    serve(test, HttpLimits(body_bytes_max=1_000_000))


def test_what_is_unpacked_counts_against_the_bodies_of_all() -> None:
    async def test(served: Served) -> None:
        half = packed(http("POST", "/v1/outcomes", b" " * 90_000), "gzip")[:-4]
        first, second = await served.connect(), await served.connect()
        first.send(half)
        while served.http.held_bytes < 90_000:
            await asyncio.sleep(0.001)
        second.send(half)
        assert (await second.read()).status == 503
        first.close()
        second.close()
        while served.http.held_bytes:
            await asyncio.sleep(0.001)

    serve(test, HttpLimits(body_bytes_max=100_000, held_bytes_max=150_000))


def test_packed_nothing_without_end_is_refused() -> None:
    """Empty blocks unpack to nothing for ever: the bound on the wire holds too."""
    unpacker = Unpacker(b"deflate", 1000)
    unpacker.feed(zlib.compressobj().flush(zlib.Z_SYNC_FLUSH))
    with pytest.raises(errors.TooLarge, match="over 1000 bytes"):
        for _ in range(1000):
            assert unpacker.feed(b"\x00\x00\x00\xff\xff") == b""


@given(st.binary(max_size=3000), st.sampled_from(sorted(CODINGS)), st.integers(1, 50), st.integers(1, 3000))
def test_any_body_in_any_pieces(body: bytes, coding: bytes, size: int, most: int) -> None:
    unpacker, found = Unpacker(coding, max(most, 200)), b""
    whole = PACK[coding.decode()](body)
    try:
        for at in range(0, len(whole), size):
            found += unpacker.feed(whole[at : at + size])
        unpacker.end()
        assert found == body
    except errors.TooLarge:
        assert max(len(body), len(whole)) > max(most, 200)
    assert len(found) <= max(most, 200)


@given(st.binary(max_size=200), st.sampled_from(sorted(CODINGS)))
def test_any_bytes_are_unpacked_or_refused(body: bytes, coding: bytes) -> None:
    unpacker = Unpacker(coding, 1000)
    try:
        unpacker.feed(body)
        unpacker.end()
    except (errors.BadInput, errors.TooLarge):
        pass


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
