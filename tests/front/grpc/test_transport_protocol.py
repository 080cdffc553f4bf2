"""HTTP/2 as others speak it (the h2 package), and as nobody should (raw frames): what each is answered."""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib

import h2.events
import h2.settings
import pytest
from grpc_rig import Raw, Rig, block, fields, message, unary, until, with_rig
from hpack import Encoder

from millstream.front.grpc import frames, stream
from millstream.front.grpc.frames import Code
from millstream.front.grpc.hpack import literal

PROTOCOL, FLOW, CLOSED, SIZE, COMPRESSION = 1, 3, 5, 6, 9
DATA, HEADERS = frames.DATA, frames.HEADERS


def head(sid: int, method: str = "Echo", flags: int = frames.END_HEADERS, **more: str) -> bytes:
    return frames.frame(HEADERS, flags, sid, block(method, **more))


# What is well formed, in unusual shapes.


def test_h2_speaks_with_us() -> None:
    async def test(rig: Rig) -> None:
        client = await rig.http2()
        client.ask(1, "Echo", b"one")
        client.ask(3, "Stream", b"two", end=False)
        client.connection.send_data(3, message(b"three"), end_stream=True)
        client.connection.ping(b"12345678")
        client.flush()
        data: dict[int, bytes] = {1: b"", 3: b""}
        seen: list[h2.events.Event] = []
        while sum(isinstance(event, h2.events.StreamEnded) for event in seen) < 2:
            found = await client.events()
            assert found, "the connection ended"
            seen += found
        for event in seen:
            if isinstance(event, h2.events.DataReceived):
                data[event.stream_id] += event.data
        assert data == {1: message(b"one"), 3: message(b"two") + message(b"three")}
        assert any(isinstance(event, h2.events.PingAckReceived) for event in seen)
        trailers = [event.headers for event in seen if isinstance(event, h2.events.TrailersReceived)]
        assert [dict(found)[b"grpc-status"] for found in trailers] == [b"0", b"0"]
        client.close()

    with_rig(test)


def test_headers_in_all_wrappings_mean_the_same() -> None:
    encoder = Encoder()

    def wrapped(sid: int, way: int) -> bytes:
        packed = (
            block("Echo") if way < 4 else encoder.encode(fields("Echo", grpc_timeout=f"{sid}S"), huffman=way % 2 == 0)
        )
        if way == 0:
            return frames.frame(HEADERS, 4, sid, packed)
        if way == 1:
            return frames.frame(HEADERS, 4 | frames.PADDED, sid, b"\x07" + packed + bytes(7))
        if way == 2:
            return frames.frame(HEADERS, 4 | frames.PRIORITISED, sid, bytes(5) + packed)
        parts = [packed[at : at + 20] for at in range(0, len(packed), 20)]
        middle = b"".join(frames.frame(frames.CONTINUATION, 0, sid, part) for part in parts[1:-1])
        if way == 3:
            first = frames.frame(
                HEADERS, frames.PADDED | frames.PRIORITISED, sid, b"\x03" + bytes(5) + parts[0] + bytes(3)
            )
        else:
            if len(parts) == 1:
                return frames.frame(HEADERS, 4, sid, packed)
            first = frames.frame(HEADERS, 0, sid, parts[0])
        return first + middle + frames.frame(frames.CONTINUATION, 4, sid, parts[-1])

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        for at in range(60):
            sid = 2 * at + 1
            raw.send(wrapped(sid, at % 6) + frames.frame(DATA, 1, sid, message(b"%d" % at)))
            data, found = await raw.answer(sid)
            assert (data, found[b"grpc-status"]) == (message(b"%d" % at), b"0")
        raw.close()

    with_rig(test)


def test_messages_in_all_cuts_are_the_same() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        sent = [b"", b"a", b"b" * 300, b"", b"c" * 70]
        whole = b"".join(map(message, sent))
        for sid, size in ((1, 1), (3, 4), (5, 5), (7, 6), (9, 299), (11, 10_000)):
            raw.send(head(sid, "Stream"))
            for at in range(0, len(whole), size):
                piece = whole[at : at + size]
                if at % 3:
                    raw.send(frames.frame(DATA, 0, sid, piece))
                else:
                    raw.send(frames.frame(DATA, frames.PADDED, sid, b"\x09" + piece + bytes(9)))
            raw.send(frames.frame(DATA, 1, sid))
            assert (await raw.answer(sid))[0] == whole
            assert rig.service.calls[-1].messages == sent
        raw.close()

    with_rig(test)


def test_frames_that_mean_nothing_are_passed_over() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(frames.frame(frames.PRIORITY, 0, 7, bytes(5)) + frames.frame(0x42, 0xFF, 9, b"?" * 100))
        raw.send(frames.goaway(0, Code.NO_ERROR, "bye") + frames.frame(frames.SETTINGS, 0, 0, b"\x00\x99" + bytes(4)))
        raw.send(unary(1))
        assert (await raw.answer(1))[0] == message(b"hello")
        # Late frames of a call that is over.
        raw.send(frames.window(1, 5) + frames.reset(1, Code.CANCEL) + frames.frame(DATA, 0, 1, b"late"))
        assert await raw.alive()
        raw.close()

    with_rig(test)


def test_answers_wait_for_windows_and_fit_them() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw(greet=False)
        raw.send(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW: 10}))
        raw.send(unary(1, data=b"x" * 40) + unary(3, data=b"y"))
        sizes = []
        for _ in range(2):
            frame = await raw.next(DATA, 1) if not sizes else await raw.next(DATA, 3)
            sizes.append(len(frame.payload))
        assert sizes == [10, 6], "the small answer passes the large one"
        raw.send(frames.window(1, 3))
        assert len((await raw.next(DATA, 1)).payload) == 3
        raw.send(frames.settings({frames.INITIAL_WINDOW: 0}))  # now the window is negative
        assert await raw.alive()
        raw.send(frames.window(1, 9))
        assert await raw.alive()
        raw.send(frames.settings({frames.INITIAL_WINDOW: 20}))
        assert len((await raw.next(DATA, 1)).payload) == 19
        raw.send(frames.window(1, 1000))
        assert len((await raw.next(DATA, 1)).payload) == 45 - 10 - 3 - 19
        assert (await raw.next(HEADERS, 1)).flags & 1
        raw.close()

    with_rig(test)


def test_the_window_of_the_connection_is_shared_by_turns() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw(greet=False)
        raw.send(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW: 1 << 20}))
        for sid in (1, 3, 5):
            raw.send(unary(sid, "Big", b"100000"))
        got = {1: 0, 3: 0, 5: 0}

        async def receive(size: int) -> None:
            while size:
                frame = await raw.next(DATA)
                got[frame.stream] += len(frame.payload)
                size -= len(frame.payload)

        await receive(65_535)
        for _ in range(300_015 // 30_000):
            raw.send(frames.window(0, 30_000))
            await receive(min(30_000, 300_015 - sum(got.values())))
            if sum(got.values()) > 150_000:
                assert min(got.values()) > 0, "one of them waits for the others' last byte"
        assert got == {1: 100_005, 3: 100_005, 5: 100_005}
        raw.close()

    with_rig(test)


def test_large_frames_only_for_those_who_want_them() -> None:
    async def test(rig: Rig) -> None:
        for most in (frames.FRAME_BYTES, 100_000):
            raw = await rig.raw(greet=False)
            wants = {frames.INITIAL_WINDOW: 1 << 24, frames.FRAME_SIZE: most}
            raw.send(frames.PREFACE + frames.settings(wants) + frames.window(0, 1 << 24) + unary(1, "Big", b"1000000"))
            sizes = []
            while sum(sizes) < 1_000_005:
                sizes.append(len((await raw.next(DATA)).payload))
            assert max(sizes) == most
            raw.close()

    with_rig(test)


def test_a_window_is_opened_again_as_it_is_used() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(head(1, "Count"))
        left = {0: frames.WINDOW_FIRST, 1: stream.STREAM_WINDOW}
        piece = message(bytes(16_000))
        for _ in range(2000):  # 32 MB
            while min(left.values()) < len(piece):
                frame = await raw.next(frames.WINDOW)
                left[frame.stream] += int.from_bytes(frame.payload, "big")
            raw.send(frames.frame(DATA, 0, 1, piece))
            left = {sid: window - len(piece) for sid, window in left.items()}
        await until(lambda: len(rig.service.calls[0].messages) == 2000)
        raw.close()

    with_rig(test)


@pytest.mark.parametrize("packer", [gzip.compress, zlib.compress])
def test_packed_messages_are_unpacked_or_refused(packer: object) -> None:
    encoding = "gzip" if packer is gzip.compress else "deflate"
    packed = packer(b"words " * 100)  # type: ignore[operator]

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        cases = [(packed, b"0"), (packed[:-1], b"3"), (packed + b"x", b"3"), (b"", b"3"), (b"garbage", b"3")]
        for at, (data, status) in enumerate(cases):
            sid = 4 * at + 1
            raw.send(head(sid, grpc_encoding=encoding) + frames.frame(DATA, 1, sid, message(data, 1)))
            body, found = await raw.answer(sid)
            assert found[b"grpc-status"] == status
            assert body == (message(b"words " * 100) if status == b"0" else b"")
            raw.send(head(sid + 2) + frames.frame(DATA, 1, sid + 2, message(data, 1)))  # nobody said how
            assert (await raw.answer(sid + 2))[1][b"grpc-status"] == b"3"
        raw.close()

    with_rig(test)


# Requests that are refused, each alone.


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"content_type": "text/html"}, b"415", b"3"),
        ({"content_type": "application/grpc-web"}, b"415", b"3"),
        ({"content_type": "application/grpc+proto"}, b"200", b"0"),
        ({"content_type": "application/grpc;x"}, b"200", b"0"),
        ({"grpc_encoding": "snappy"}, b"200", b"12"),
        ({"grpc_timeout": "soon"}, b"200", b"3"),
        ({"grpc_timeout": "123456789S"}, b"200", b"3"),
        ({"grpc_timeout": "99999999H"}, b"200", b"0"),
        ({"grpc_timeout": "0n"}, b"200", b"4"),
    ],
)
def test_requests_are_judged_by_their_headers(more: dict[str, str], status: bytes, code: bytes) -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        method = "Never" if code == b"4" else "Echo"
        for sid in (1, 3):
            raw.send(unary(sid, method, **more))
            found = (await raw.answer(sid))[1]
            assert (found[b":status"], found[b"grpc-status"]) == (status, code)
        raw.close()

    with_rig(test)


def test_a_method_other_than_post() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        packed = b"".join(literal(*field) for field in [(b":method", b"GET"), *fields("Echo")[1:]])
        raw.send(frames.frame(HEADERS, 5, 1, packed))
        assert (await raw.answer(1))[1][b":status"] == b"405"
        raw.close()

    with_rig(test)


@pytest.mark.parametrize(
    "wrong",
    [
        [(b":method", b"POST"), (b":scheme", b"http")],
        [(b":path", b"/"), (b":method", b"POST")],
        [*fields("Echo"), (b":path", b"/again")],
        [*fields("Echo")[:3], (b":path", b"/twice")],
        [*fields("Echo"), (b"Upper", b"x")],
        [*fields("Echo"), (b"", b"x")],
        [*fields("Echo"), (b"connection", b"close")],
        [(b":status", b"200"), *fields("Echo")],
    ],
)
def test_malformed_requests_are_reset(wrong: list[tuple[bytes, bytes]]) -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(frames.frame(HEADERS, 5, 1, b"".join(literal(*field) for field in wrong)))
        assert (await raw.next(frames.RESET)).code == PROTOCOL
        raw.send(unary(3))
        assert (await raw.answer(3))[0] == message(b"hello")
        raw.close()

    with_rig(test)


def test_streams_that_end_wrongly() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(head(1) + frames.frame(DATA, 1, 1, message(b"hello")[:-1]))
        assert (await raw.answer(1))[1][b"grpc-status"] == b"3"
        assert rig.service.calls[0].was_cancelled
        raw.send(unary(3, "Never") + frames.frame(DATA, 0, 3, message(b"more")))
        assert (await raw.next(frames.RESET, 3)).code == CLOSED
        raw.send(head(5, "Never") + head(5, "Never"))
        assert (await raw.next(frames.RESET, 5)).code == PROTOCOL
        raw.send(
            head(7) + frames.frame(DATA, 0, 7, message(b"x")) + frames.frame(HEADERS, 5, 7, literal(b"x-end", b"1"))
        )
        assert (await raw.answer(7))[0] == message(b"x"), "trailers of a request end it"
        raw.send(head(9, "Never") + frames.window(9, frames.WINDOW_MAX))
        assert (await raw.next(frames.RESET, 9)).code == FLOW
        raw.send(head(11, "Never") + frames.window(11, 0))
        assert (await raw.next(frames.RESET, 11)).code == PROTOCOL
        raw.send(head(13) + frames.frame(DATA, 0, 13, b"\x07\x00\x00\x00\x01x"))
        assert (await raw.answer(13))[1][b"grpc-status"] == b"3"
        raw.close()

    with_rig(test)


# What a connection does not survive.

FATAL: dict[str, tuple[bytes, int]] = {
    "DATA on stream 0": (frames.frame(DATA, 0, 0, b"x"), PROTOCOL),
    "DATA on an idle stream": (frames.frame(DATA, 0, 5, b"x"), PROTOCOL),
    "DATA on a stream of ours": (frames.frame(DATA, 0, 2, b"x"), PROTOCOL),
    "padding longer than DATA": (head(1) + frames.frame(DATA, frames.PADDED, 1, b"\x05abcd"), PROTOCOL),
    "padded DATA of nothing": (head(1) + frames.frame(DATA, frames.PADDED, 1, b""), SIZE),
    "HEADERS on stream 0": (frames.frame(HEADERS, 5, 0, block("Echo")), PROTOCOL),
    "HEADERS on a stream of ours": (frames.frame(HEADERS, 5, 4, block("Echo")), PROTOCOL),
    "padding longer than HEADERS": (frames.frame(HEADERS, 4 | frames.PADDED, 1, b"\xffab"), PROTOCOL),
    "HEADERS too short for their priority": (frames.frame(HEADERS, 4 | frames.PRIORITISED, 1, b"ab"), PROTOCOL),
    "something within a header block": (
        frames.frame(HEADERS, 0, 1, b"") + frames.frame(frames.PING, 0, 0, bytes(8)),
        PROTOCOL,
    ),
    "CONTINUATION of another stream": (
        frames.frame(HEADERS, 0, 1, b"") + frames.frame(frames.CONTINUATION, 4, 3),
        PROTOCOL,
    ),
    "CONTINUATION of nothing": (frames.frame(frames.CONTINUATION, 4, 1), PROTOCOL),
    "a block that is no HPACK": (frames.frame(HEADERS, 5, 1, b"\x80"), COMPRESSION),
    "an index beyond the table": (frames.frame(HEADERS, 5, 1, b"\xff\x20"), COMPRESSION),
    "RST_STREAM on stream 0": (frames.reset(0, Code.CANCEL), PROTOCOL),
    "RST_STREAM on an idle stream": (frames.reset(9, Code.CANCEL), PROTOCOL),
    "RST_STREAM too short": (head(1) + frames.frame(frames.RESET, 0, 1, b"\x00\x00\x00"), SIZE),
    "WINDOW_UPDATE of 0": (frames.window(0, 0), PROTOCOL),
    "WINDOW_UPDATE beyond all": (frames.window(0, frames.WINDOW_MAX), FLOW),
    "WINDOW_UPDATE too long": (frames.frame(frames.WINDOW, 0, 0, bytes(5)), SIZE),
    "WINDOW_UPDATE on an idle stream": (frames.window(7, 1), PROTOCOL),
    "SETTINGS on a stream": (frames.frame(frames.SETTINGS, 0, 1), PROTOCOL),
    "SETTINGS of half a pair": (frames.frame(frames.SETTINGS, 0, 0, b"abc"), SIZE),
    "an ACK with SETTINGS": (frames.frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), SIZE),
    "an initial window beyond all": (frames.settings({frames.INITIAL_WINDOW: 1 << 31}), FLOW),
    "an initial window that overflows": (
        head(1, "Never") + frames.window(1, 1 << 30) + frames.settings({frames.INITIAL_WINDOW: (1 << 31) - 1}),
        FLOW,
    ),
    "a frame size too small": (frames.settings({frames.FRAME_SIZE: 1000}), PROTOCOL),
    "a frame size too large": (frames.settings({frames.FRAME_SIZE: 1 << 24}), PROTOCOL),
    "push of 2": (frames.settings({frames.ENABLE_PUSH: 2}), PROTOCOL),
    "PING on a stream": (frames.frame(frames.PING, 0, 1, bytes(8)), PROTOCOL),
    "PING too short": (frames.frame(frames.PING, 0, 0, bytes(7)), SIZE),
    "PUSH_PROMISE": (frames.frame(frames.PUSH, 4, 1, bytes(4)), PROTOCOL),
    "PRIORITY on stream 0": (frames.frame(frames.PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    "PRIORITY too short": (frames.frame(frames.PRIORITY, 0, 1, bytes(4)), SIZE),
    "GOAWAY on a stream": (frames.frame(frames.GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    "a frame over the size": (frames.frame(DATA, 0, 1, bytes(frames.FRAME_BYTES + 1)), SIZE),
}


async def goaway(raw: Raw) -> int:
    """The code of the GOAWAY that ends a connection, with a sentence, and then the end."""
    found = await raw.rest()
    assert found and found[-1].kind == frames.GOAWAY, found
    assert len(found[-1].payload) > 8
    return found[-1].code


@pytest.mark.parametrize("name", FATAL)
def test_breaches_end_the_connection_with_a_sentence(name: str) -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(unary(101, "Never"))  # is cancelled by what comes
        await until(lambda: rig.service.calls)
        raw.close()
        raw = await rig.raw()
        sent, code = FATAL[name]
        raw.send(sent)
        assert await goaway(raw) == code
        raw.close()
        await until(lambda: all(small.was_cancelled for small in rig.service.calls if small.method == "Never"))

    with_rig(test)


def test_a_breach_loses_no_answer_that_was_there_before() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(unary(1) + unary(3, "Never") + frames.window(0, 0) + unary(5))
        found = await raw.rest()
        assert found[-1].code == PROTOCOL
        assert int.from_bytes(found[-1].payload[:4], "big") == 3, "5 was not looked at"
        assert any(frame.kind == DATA and frame.stream == 1 for frame in found)
        assert rig.service.calls[1].was_cancelled
        raw.close()

    with_rig(test)


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", b"\x16\x03\x01\x02\x00\x01", b"\n"]
)
def test_who_speaks_something_else_is_told_so(sent: bytes) -> None:
    async def test(rig: Rig) -> None:
        for pieces in ([sent], [sent[at : at + 1] for at in range(len(sent))]):
            raw = await rig.raw(greet=False)
            for piece in pieces:
                raw.send(piece)
                await asyncio.sleep(0)
            said = await raw.reader.read()
            assert said.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            length = int(said.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            assert len(said.partition(b"\r\n\r\n")[2]) == length
            assert b"gRPC" in said
            raw.close()

    with_rig(test)


def test_settings_come_first() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw(greet=False)
        raw.send(frames.PREFACE + unary(1))
        assert await goaway(raw) == PROTOCOL
        raw.close()

    with_rig(test)


def test_a_client_that_is_drained_may_still_ask_until_it_knows() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(unary(1, "Never"))
        await until(lambda: rig.service.calls)
        stopping = asyncio.ensure_future(rig.server.stop())
        first = await raw.next(frames.GOAWAY)
        assert (first.code, first.payload[:4]) == (0, b"\x7f\xff\xff\xff")
        ping = await raw.next(frames.PING)
        raw.send(unary(3))  # was on its way
        assert (await raw.answer(3))[0] == message(b"hello")
        raw.send(frames.frame(frames.PING, frames.ACK, 0, ping.payload) + unary(5))
        last = await raw.next(frames.GOAWAY)
        assert int.from_bytes(last.payload[:4], "big") == 3
        rig.service.calls[0].call.send(b"bye")
        rig.service.calls[0].call.finish()
        assert (await raw.answer(1))[0] == message(b"bye")
        assert await raw.rest() == []
        await stopping
        assert len(rig.service.calls) == 2
        raw.close()

    with_rig(test)


def test_calls_after_the_end_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(unary(1) + unary(3, "Never"))
        await raw.answer(1)
        raw.send(frames.reset(3, Code.CANCEL))
        await until(lambda: len(rig.service.calls) == 2 and rig.service.calls[1].was_cancelled)
        for small in rig.service.calls:
            small.call.send(b"late")
            small.call.hold()
            small.call.go_on()
            small.call.finish(ValueError("late"))
        raw.send(frames.frame(frames.PING, 0, 0, b"the last"))
        found = await raw.frame()
        assert found is not None and found.payload == b"the last", "nothing else was sent"
        raw.close()

    with caplog.at_level(logging.ERROR):
        with_rig(test)
    assert not caplog.records
