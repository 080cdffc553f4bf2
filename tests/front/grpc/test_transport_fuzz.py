"""Laws of the transport under bytes that nobody chose: no cut changes an answer, no bytes bring it down."""

from __future__ import annotations

import logging

import pytest
from grpc_rig import Rig, Wire, block, message, parsed, unary, with_rig
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.front.grpc import GrpcLimits, frames
from millstream.front.grpc.hpack import literal

GREETING = frames.PREFACE + frames.settings({frames.INITIAL_WINDOW: 100_000})
# Small bounds, so that few frames reach them.
LIMITS = GrpcLimits(
    streams_max=5,
    message_bytes_max=3000,
    held_bytes_max=20_000,
    unsent_bytes_max=4000,
    header_bytes_max=600,
    resets_max=3,
)
cuts = st.lists(st.integers(0, 1 << 20), max_size=30)
sids = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 7, 9, 11, 13, 2**31 - 1])
methods = st.sampled_from(["Echo", "Stream", "Never", "Hold", "Early", "Raise", "FailBusy", "RefuseLate", "Nothing"])
sizes = st.sampled_from([0, 1, 5, 100, 2999, 3001])


@st.composite
def pieces(draw: st.DrawFn) -> bytes:
    """Something that a client could send, or nearly."""
    sid, kind = draw(sids), draw(st.integers(0, 14))
    data = message(bytes(draw(sizes)), draw(st.sampled_from([0, 0, 0, 1, 2])))
    if kind <= 2:
        return unary(sid, draw(methods), bytes(draw(sizes)))
    if kind == 3:
        return frames.frame(frames.HEADERS, draw(st.sampled_from([4, 5, 0, 1, 12, 44])), sid, block(draw(methods)))
    if kind == 4:
        encoding = draw(st.sampled_from(["gzip", "deflate", "snappy"]))
        return frames.frame(frames.HEADERS, 4, sid, block("Echo", grpc_encoding=encoding, grpc_timeout="1n"))
    if kind == 5:
        indexed = b"\x40" + literal(b"x-a", bytes(draw(sizes) % 200))[1:] + b"\xbe" * draw(st.integers(0, 9))
        return frames.frame(frames.HEADERS, draw(st.sampled_from([4, 5])), sid, block("Stream") + indexed)
    if kind <= 8:
        return frames.frame(frames.DATA, draw(st.sampled_from([0, 1, 8, 9])), sid, data[: draw(st.integers(0, 3010))])
    if kind == 9:
        return frames.window(sid, draw(st.sampled_from([0, 1, 1000, frames.WINDOW_MAX])))
    if kind == 10:
        pair = {draw(st.integers(0, 7)): draw(st.sampled_from([0, 1, 10, 16_384, 70_000, 2**31 - 1, 2**32 - 1]))}
        return frames.settings(pair)
    if kind == 11:
        return frames.frame(frames.CONTINUATION, draw(st.sampled_from([0, 4])), sid, literal(b"x", b"y"))
    if kind == 12:
        return frames.frame(frames.RESET, 0, sid, bytes(4))
    if kind == 13:
        return frames.frame(frames.PING, draw(st.integers(0, 1)), 0, bytes(8))
    return frames.frame(draw(st.integers(0, 255)), draw(st.integers(0, 255)), sid, draw(st.binary(max_size=40)))


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Whole calls among other things, with a few bytes changed at times."""
    said = bytearray(GREETING + b"".join(draw(st.lists(pieces(), min_size=1, max_size=12))))
    for at, byte in draw(
        st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=draw(st.sampled_from([0, 0, 4])))
    ):
        said[at % len(said)] = byte
    return bytes(said)


def talk(said: bytes, cuts: list[int]) -> bytes:
    """What a server answers; and that it is left with nothing, whatever was said."""
    answers = b""

    async def test(rig: Rig) -> None:
        nonlocal answers
        wire = Wire(rig.server)
        wire.feed(said, cuts)
        wire.protocol.flush()
        ended = wire.has_eof or wire.closed
        answers = bytes(wire.written)
        if not answers.startswith(b"HTTP/1.1 400 "):
            found = parsed(answers)
            assert ended == any(frame.kind == frames.GOAWAY for frame in found)
            assert all(frame.kind != frames.GOAWAY for frame in found[:-1])
        for small in rig.service.calls:
            small.call.go_on()
            small.call.send(b"more")
            small.call.finish()
        wire.abort()
        assert rig.server.held_bytes == 0
        assert not wire.protocol.streams and not wire.protocol.blocked and not wire.protocol.partial
        await rig.server.stop()

    with_rig(test, LIMITS)
    return answers


@settings(max_examples=300, deadline=None)
@given(conversations(), cuts)
def test_no_cut_changes_what_is_answered(said: bytes, cuts: list[int]) -> None:
    assert talk(said, []) == talk(said, cuts)


@settings(max_examples=300, deadline=None)
@given(conversations(), cuts)
def test_nothing_a_client_says_is_a_bug_of_ours(said: bytes, cuts: list[int]) -> None:
    seen: list[logging.LogRecord] = []
    watch = logging.Handler()
    watch.emit = seen.append  # type: ignore[method-assign]
    logger = logging.getLogger("millstream.front.grpc.connection")
    logger.addHandler(watch)
    try:
        talk(said, cuts)
    finally:
        logger.removeHandler(watch)
    assert not [record for record in seen if record.levelno >= logging.ERROR]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans(), cuts)
def test_any_bytes_at_all(said: bytes, greeted: bool, cuts: list[int]) -> None:
    talk((GREETING if greeted else b"") + said, cuts)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(conversations(), cuts)
def test_no_cut_changes_what_is_answered_at_length(said: bytes, cuts: list[int]) -> None:
    assert talk(said, []) == talk(said, cuts)
