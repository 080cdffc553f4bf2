"""What a client can make the server hold or do: every bound of `GrpcLimits`, and the clock."""

from __future__ import annotations

import asyncio
import zlib

import pytest
from grpc_rig import Rig, block, fields, message, pass_time, unary, until, with_rig

from millstream.clock import FakeClock
from millstream.front.grpc import GrpcLimits, frames, stream
from millstream.front.grpc.frames import Code
from millstream.front.grpc.hpack import literal

CALM, REFUSED, FLOW = 11, 7, 3
DATA, HEADERS = frames.DATA, frames.HEADERS


def head(sid: int, method: str = "Never", flags: int = 4) -> bytes:
    return frames.frame(HEADERS, flags, sid, block(method))


def test_one_call_too_many_is_refused_and_the_others_go_on() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(b"".join(unary(sid, "Never") for sid in (1, 3, 5, 7)) + unary(9))
        assert [(await raw.next(frames.RESET)).code for _ in (7, 9)] == [REFUSED, REFUSED]
        raw.send(frames.reset(1, Code.CANCEL) + unary(11))
        assert (await raw.answer(11))[0] == message(b"hello")
        raw.close()

    with_rig(test, GrpcLimits(streams_max=3))


def test_one_connection_too_many_is_told_so() -> None:
    async def test(rig: Rig) -> None:
        raws = [await rig.raw() for _ in range(3)]
        for raw in raws:
            assert await raw.alive()
        found = await (await rig.raw()).rest()
        assert found[-1].kind == frames.GOAWAY and b"too many connections" in found[-1].payload
        assert rig.meter.sum("millstream_connections_refused_total") == 1
        raws[0].close()
        await until(lambda: len(rig.server.connections) == 2)
        assert await (await rig.raw()).alive()

    with_rig(test, GrpcLimits(connections_max=3))


FLOODS = {
    "PING": frames.frame(frames.PING, 0, 0, bytes(8)),
    "SETTINGS": frames.settings({}),
    "ACK of SETTINGS": frames.frame(frames.SETTINGS, frames.ACK, 0),
    "PRIORITY": frames.frame(frames.PRIORITY, 0, 3, bytes(5)),
    "unknown frames": frames.frame(0x77, 0, 0),
    "empty DATA": frames.frame(DATA, 0, 1),
    "padded empty DATA": frames.frame(DATA, frames.PADDED, 1, b"\x02ab"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_that_ask_for_nothing_are_bounded(name: str) -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(head(1) + FLOODS[name] * 2000)
        found = await raw.rest()
        assert found[-1].kind == frames.GOAWAY and found[-1].code == CALM
        assert rig.service.calls[0].was_cancelled
        raw.close()

    with_rig(test)


def test_pings_between_calls_are_no_flood() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        for sid in range(1, 401, 2):
            raw.send(frames.frame(frames.PING, 0, 0, bytes(8)) * 2 + unary(sid))
            await raw.answer(sid)
        raw.close()

    with_rig(test, GrpcLimits(idle_frames_max=20))


def test_rapid_resets_are_bounded() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        for sid in range(1, 2001, 2):
            raw.send(head(sid) + frames.reset(sid, Code.CANCEL))
        found = await raw.rest()
        assert found[-1].kind == frames.GOAWAY and found[-1].code == CALM
        assert len(rig.service.calls) <= 102
        assert all(small.was_cancelled for small in rig.service.calls)
        raw.close()

    with_rig(test, GrpcLimits(resets_max=100))


def test_resets_are_forgiven_with_time_and_with_answers() -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        sid = 1
        for _ in range(5):
            for _ in range(90):
                raw.send(head(sid) + frames.reset(sid, Code.CANCEL))
                sid += 2
            assert await raw.alive()
            await pass_time(clock, 1)
        for _ in range(300):
            raw.send(unary(sid) + head(sid + 2) + frames.reset(sid + 2, Code.CANCEL))
            await raw.answer(sid)
            sid += 4
        assert await raw.alive()
        raw.close()

    with_rig(test, GrpcLimits(resets_max=100), clock)


def test_headers_over_the_bound() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        many = b"".join(literal(b"x-%d" % at, bytes(100)) for at in range(40))
        raw.send(frames.frame(HEADERS, 5, 1, block("Echo") + many))
        assert (await raw.answer(1))[1][b"grpc-status"] == b"8"
        # Small on the wire: one entry of the table, a thousand times.
        entry = b"\x40" + literal(b"x-bomb", bytes(2000))[1:]
        bomb = entry + b"\xbe" * 1000
        raw.send(frames.frame(HEADERS, 5, 3, block("Echo") + bomb))
        assert (await raw.answer(3))[1][b"grpc-status"] == b"8"
        raw.send(frames.frame(HEADERS, 4, 5, block("Metadata") + b"\x40\x07x-first\x03abc\xbf"))
        raw.send(frames.frame(DATA, 1, 5, message(b"")))
        data, found = await raw.answer(5)
        assert data.startswith(message(b"abc")) and found[b"x-answer"] == b"abcabc", "the table is still right"
        raw.close()

    with_rig(test, GrpcLimits(header_bytes_max=4096))


def test_a_flood_of_continuation_is_cut() -> None:
    async def test(rig: Rig) -> None:
        for piece, bound in ((b"", 1000), (bytes(100), 400)):
            raw = await rig.raw()
            raw.send(frames.frame(HEADERS, 0, 1, b"") + frames.frame(frames.CONTINUATION, 0, 1, piece) * (bound + 10))
            found = await raw.rest()
            assert found[-1].kind == frames.GOAWAY and found[-1].code == CALM
            raw.close()

    with_rig(test)


def test_more_than_the_windows_is_a_breach() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(head(1, "Hold") + frames.frame(DATA, 0, 1, message(b"now it holds")))
        piece = frames.frame(DATA, 0, 1, bytes(16_000))
        raw.send(piece * (stream.STREAM_WINDOW // 16_000 + 1))
        assert (await raw.next(frames.RESET)).code == FLOW
        assert rig.server.held_bytes == 0
        assert await raw.alive()
        raw.close()

    with_rig(test)


def test_messages_in_part_are_bounded_together() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        part = message(bytes(100_000))[:16_000]
        for sid in range(1, 101, 2):
            raw.send(head(sid) + frames.frame(DATA, 0, sid, part))
        statuses = [(await raw.answer(sid))[1] for sid in range(13, 101, 2)]
        assert all(found[b"grpc-status"] == b"14" and found[b"retry-after"] == b"1" for found in statuses)
        assert 80_000 < rig.server.held_bytes <= 100_000
        raw.close()
        await until(lambda: rig.server.held_bytes == 0)

    with_rig(test, GrpcLimits(held_bytes_max=100_000))


def test_unsent_answers_are_bounded_together() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(b"".join(unary(sid, "Big", b"60000") for sid in range(1, 21, 2)))
        found = [(await raw.answer(sid))[1] for sid in (7, 9, 11, 13, 15, 17, 19)]
        assert all(headers[b"grpc-status"] == b"14" for headers in found)
        assert rig.server.held_bytes <= 130_000
        raw.close()

    with_rig(test, GrpcLimits(held_bytes_max=130_000))


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(bytes(50_000_000))

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        packed = b"".join(literal(*field) for field in fields("Echo", grpc_encoding="deflate"))
        whole = message(bomb, 1)
        raw.send(frames.frame(HEADERS, 4, 1, packed))
        for at in range(0, len(whole), 16_000):
            raw.send(frames.frame(DATA, int(at + 16_000 >= len(whole)), 1, whole[at : at + 16_000]))
        assert (await raw.answer(1))[1][b"grpc-status"] == b"8"
        raw.close()

    with_rig(test, GrpcLimits(message_bytes_max=1_000_000))


def test_a_large_packed_message_lets_others_pass() -> None:
    packed = zlib.compress(bytes(20_000_000))

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        head = b"".join(literal(*field) for field in fields("Length", grpc_encoding="deflate"))
        whole = message(packed, 1)
        raw.send(frames.frame(HEADERS, 4, 1, head))
        for at in range(0, len(whole), 16_000):
            raw.send(frames.frame(DATA, 0, 1, whole[at : at + 16_000]))
        raw.send(unary(3))
        assert (await raw.answer(3))[0] == message(b"hello")
        assert not rig.service.calls[0].messages, "it was there before the other's"
        assert rig.server.held_bytes > 0
        raw.send(frames.frame(DATA, 1, 1, message(b"") + whole[:0]))
        await until(lambda: rig.service.calls[0].has_ended)
        assert [len(data) for data in rig.service.calls[0].messages] == [20_000_000, 0]
        assert rig.server.held_bytes == 0
        raw.send(frames.frame(HEADERS, 4, 5, head) + frames.frame(DATA, 0, 5, whole[:16_000]))
        raw.send(frames.frame(DATA, 0, 5, whole[16_000:]) + unary(7))
        await raw.answer(7)
        raw.close()  # in the middle of it
        await until(lambda: rig.server.held_bytes == 0)

    with_rig(test)


# Time.


def test_a_slow_greeting_is_cut() -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        _, half, unsettled = [await rig.raw(greet=False) for _ in range(3)]
        half.send(frames.PREFACE[:10])
        unsettled.send(frames.PREFACE)
        await pass_time(clock, 9)
        half.send(frames.PREFACE[10:11])
        assert len(rig.server.connections) == 3
        await pass_time(clock, 5)
        await until(lambda: not rig.server.connections)
        assert rig.meter.sum("millstream_timeouts_total") == 3

    with_rig(test, clock=clock)


@pytest.mark.parametrize("kind", ["frame", "block"])
def test_a_client_that_drips_gains_no_time(kind: str) -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        assert await raw.alive()
        await pass_time(clock, 60)  # its quiet before counts for nothing
        if kind == "block":
            raw.send(frames.frame(HEADERS, 0, 1, b""))
        drip = frames.frame(frames.CONTINUATION, 0, 1, b"\x00") if kind == "block" else b""
        drops = [drip] * 14 if drip else [head(1)[at : at + 1] for at in range(14)]
        for at, drop in enumerate(drops):
            if at == 9:
                assert rig.server.connections
            raw.send(drop)
            await pass_time(clock, 1)
        found = await raw.rest()
        assert found[-1].kind == frames.GOAWAY and found[-1].code == CALM

    with_rig(test, clock=clock)


def test_a_call_whose_message_never_begins_ends_although_its_connection_answers_pings() -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(head(1) + head(3) + head(5) + frames.frame(DATA, 0, 5, message(b"begun")))
        await until(lambda: len(rig.service.calls) == 3)
        rig.service.calls[1].call.streams = True
        await until(lambda: rig.service.calls[2].messages)
        await pass_time(clock, 22)
        _, headers = await raw.answer(1)
        assert headers[b"grpc-status"] == b"4" and b"no message came within 20 s" in headers[b"grpc-message"]
        assert [call.was_cancelled for call in rig.service.calls] == [True, False, False]
        assert await raw.alive()
        await pass_time(clock, 30)
        assert [call.was_cancelled for call in rig.service.calls] == [True, True, False], "a stream has more time"
        assert await raw.alive()
        raw.close()

    with_rig(test, GrpcLimits(message_s=20, idle_s=50), clock)


def test_a_message_that_does_not_come_ends_its_call_alone() -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        raw.send(head(1) + frames.frame(DATA, 0, 1, message(b"x" * 100)[:50]) + unary(3, "Never"))
        for _ in range(8):
            await pass_time(clock, 7)
            raw.send(frames.frame(DATA, 0, 1, b"x"))
            assert await raw.alive()
        await pass_time(clock, 7)
        assert (await raw.answer(1))[1][b"grpc-status"] == b"4"
        assert [small.was_cancelled for small in rig.service.calls] == [True, False]
        raw.close()

    with_rig(test, clock=clock)


@pytest.mark.parametrize("drips", [False, True])
def test_an_answer_that_nobody_lets_out_is_given_up(drips: bool) -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        raw = await rig.raw(greet=False)
        raw.send(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW: 100}))
        raw.send(unary(1, "Big", b"50000") + unary(3, "Never"))
        for at in range(32):
            assert rig.server.held_bytes > 0 or at in (0, 31)
            if drips:
                raw.send(frames.window(1, 1) + frames.window(0, 1))
            await pass_time(clock, 1)
        assert (await raw.next(frames.RESET)).stream == 1
        assert rig.server.held_bytes == 0
        assert not rig.service.calls[1].was_cancelled
        assert await raw.alive()
        raw.close()

    with_rig(test, clock=clock)


def test_a_reader_that_moves_keeps_its_calls() -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        raw = await rig.raw(greet=False)
        raw.send(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW: 1 << 24}))
        raw.send(b"".join(unary(sid, "Big", b"150000") for sid in range(1, 41, 2)))
        for _ in range(50):  # each of the twenty has its turn every 40 s
            raw.send(frames.window(0, 50_000))
            await pass_time(clock, 2)
        assert rig.meter.sum("millstream_timeouts_total") == 0
        raw.send(frames.window(0, 10_000_000))
        data, found = await raw.answer(39)
        assert len(data) == 150_005 and found[b"grpc-status"] == b"0"
        raw.close()

    with_rig(test, clock=clock)


def test_a_client_that_does_not_read_its_socket_is_cut_off() -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        raw = await rig.raw(greet=False)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        raw.send(frames.PREFACE + frames.settings({frames.INITIAL_WINDOW: frames.WINDOW_MAX}))
        raw.send(frames.window(0, frames.WINDOW_MAX - frames.WINDOW_FIRST))
        raw.send(b"".join(unary(sid, "Big", b"20000000") for sid in range(1, 7, 2)))
        await until(lambda: rig.server.held_bytes > 10_000_000)
        await until(lambda: any(connection.paused for connection in rig.server.connections))
        await pass_time(clock, 32)
        await until(lambda: not rig.server.connections)
        assert rig.meter.sum("millstream_timeouts_total") == 1
        assert rig.server.held_bytes == 0

    with_rig(test, clock=clock)


def test_idle_connections_are_closed_with_a_goaway_and_busy_ones_pinged() -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        idle, busy, gone = [await rig.raw() for _ in range(3)]
        busy.send(unary(1, "NeverBusy"))
        gone.send(unary(1, "NeverGone"))
        for raw in (idle, busy, gone):
            assert await raw.alive()
        await pass_time(clock, 22)
        assert (await idle.next(frames.GOAWAY)).code == 0
        ping = await busy.next(frames.PING)
        busy.send(frames.frame(frames.PING, frames.ACK, 0, ping.payload))
        await gone.next(frames.PING)
        await pass_time(clock, 8)
        assert await gone.rest() == []
        assert {small.method: small.was_cancelled for small in rig.service.calls} == {
            "NeverBusy": False,
            "NeverGone": True,
        }
        assert len(rig.server.connections) == 1
        assert [frame.kind for frame in await idle.rest()] == [frames.PING, frames.GOAWAY]

    with_rig(test, GrpcLimits(idle_s=20, keepalive_s=20, ping_s=5), clock)


def test_deadlines_come_in_their_order_with_one_timer() -> None:
    clock = FakeClock()

    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        for sid, timeout in ((1, "5S"), (3, "2S"), (5, "9S"), (7, "3000m")):
            raw.send(unary(sid, "Never", grpc_timeout=timeout))
        await until(lambda: len(rig.service.calls) == 4)
        assert [small.call.timeout_s for small in rig.service.calls] == [5, 2, 9, 3]
        seen = []
        for _ in range(6):
            await pass_time(clock, 1)
            seen.append([small.was_cancelled for small in rig.service.calls].count(True))
        assert seen == [0, 1, 2, 2, 3, 3]
        for sid in (3, 7, 1):
            assert (await raw.answer(sid))[1][b"grpc-status"] == b"4"
        raw.close()

    with_rig(test, clock=clock)


def test_deadlines_of_calls_that_are_over_are_forgotten() -> None:
    async def test(rig: Rig) -> None:
        raw = await rig.raw()
        for sid in range(1, 10_001, 2):
            raw.send(unary(sid, grpc_timeout="1H"))
            if sid % 100 == 99:
                await raw.answer(sid)
        assert len(rig.server.deadlines._heap) < 3000
        raw.close()

    with_rig(test)


def test_a_thousand_idle_connections_cost_no_call_its_answer() -> None:
    async def test(rig: Rig) -> None:
        idle = [await rig.raw(greet=at % 2 == 0) for at in range(400)]
        raw = await rig.raw()
        raw.send(unary(1))
        assert (await raw.answer(1))[0] == message(b"hello")
        for one in idle:
            one.close()
        raw.close()
        await asyncio.sleep(0)

    with_rig(test)
