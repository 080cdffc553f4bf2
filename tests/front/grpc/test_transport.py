"""The transport under real gRPC clients: calls, streams, sizes, errors, deadlines, cancelling, packing, stopping."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_rig import ERRORS, SENTENCE, Rig, unary, until, with_rig

from millstream.front.grpc import GrpcLimits, stream

OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def channel(rig: Rig, *more: tuple[str, object]) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}", options=(*OPTIONS, *more))


async def failure(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def test_a_thousand_calls_of_a_blocking_client() -> None:
    def client(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
            echo = opened.unary_unary("/t.Small/Echo")
            for at in range(1000):
                assert echo(b"%d" % at, timeout=20 if at % 3 else None) == b"%d" % at
            pending = [echo.future(b"%d" % at) for at in range(200)]
            assert [call.result() for call in pending] == [b"%d" % at for at in range(200)]

    async def test(rig: Rig) -> None:
        await asyncio.to_thread(client, rig.port)
        assert rig.answers("OK") == 1200
        assert rig.meter.sum("millstream_grpc_seconds") == 1200
        assert rig.meter.sum("millstream_connections") >= 0

    with_rig(test)


def test_64_calls_at_once_each_get_their_own_answer() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            echo = opened.unary_unary("/t.Small/Echo")

            async def one(at: int) -> None:
                for turn in range(10):
                    data = b"%d %d " % (at, turn) * (at * 100)
                    assert await echo(data) == data

            await asyncio.gather(*map(one, range(64)))

    with_rig(test)


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 65_530, 65_536, 1 << 20, (1 << 22) + 1, 20 << 20])
def test_messages_of_all_sizes_both_ways(size: int) -> None:
    async def test(rig: Rig) -> None:
        data = os.urandom(size)
        async with channel(rig) as opened:
            assert await opened.unary_unary("/t.Small/Echo")(data) == data

    with_rig(test)


def test_large_messages_at_once_on_one_channel() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            echo = opened.unary_unary("/t.Small/Echo")
            sent = [os.urandom(3_000_000 + at) for at in range(8)]
            assert await asyncio.gather(*map(echo, sent)) == sent

    with_rig(test)


def test_a_stream_answers_each_message_in_order() -> None:
    async def test(rig: Rig) -> None:
        sent = [b"%d" % at * (at * at) for at in range(200)]

        async def source() -> AsyncIterator[bytes]:
            for data in sent:
                yield data

        async with channel(rig) as opened:
            assert [data async for data in opened.stream_stream("/t.Small/Stream")(source())] == sent
            call = opened.stream_stream("/t.Small/Stream")()
            for data in sent[:20]:  # one after the other
                await call.write(data)
                assert await call.read() == data
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() == grpc.StatusCode.OK

    with_rig(test)


def test_a_reader_that_takes_its_time_gets_everything_and_the_service_is_held_meanwhile() -> None:
    limits = GrpcLimits(unsent_bytes_max=1 << 20)

    async def test(rig: Rig) -> None:
        async with channel(rig, ("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)) as opened:
            call = opened.stream_stream("/t.Small/Stream")()
            data = bytes(50_000)
            sent = 0
            try:
                while sent < 2000:
                    await asyncio.wait_for(call.write(data), 0.3)
                    sent += 1
            except TimeoutError:
                sent += 1  # cancelled waiting, not writing
            assert sent < 2000, "nobody ever stopped this client"
            # What a client can make the server hold: what it lets out of its own window, and ours.
            assert rig.server.held_bytes < (1 << 20) + stream.STREAM_WINDOW + 100_000
            call.cancel()
            await until(lambda: rig.service.calls[0].was_cancelled)

    with_rig(test, limits)


def test_a_slow_reader_of_many_messages_gets_them_in_order() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig, ("grpc.http2.bdp_probe", 0)) as opened:
            at = 0
            async for data in opened.unary_stream("/t.Small/Many")(b"500 20000"):
                assert data == at.to_bytes(4, "big") * 5000
                at += 1
                if at % 100 == 0:
                    await asyncio.sleep(0.02)
            assert at == 500

    with_rig(test)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("when", ["Fail", "Refuse"])
def test_every_error_has_its_code_and_its_sentence(when: str, name: str) -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            error = await failure(opened.unary_unary(f"/t.Small/{when}{name}")(b"x"))
            assert error.code().name == ERRORS[name].code
            assert error.details() == SENTENCE
            retry = dict(error.trailing_metadata()).get("retry-after")
            assert retry == ("1" if name in ("Busy", "Overloaded") else None)
            assert rig.answers(ERRORS[name].code) == 1

    with_rig(test)


@pytest.mark.parametrize("method", ["Raise", "Bare"])
def test_what_is_no_error_of_ours_says_nothing_and_is_logged(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            error = await failure(opened.unary_unary(f"/t.Small/{method}")(b"x"))
            assert error.code() == grpc.StatusCode.INTERNAL
            assert error.details() == "internal error, see the log"
            assert await opened.unary_unary("/t.Small/Echo")(b"on") == b"on"

    with caplog.at_level(logging.ERROR):
        with_rig(test)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "secret" in caplog.text


def test_metadata_goes_both_ways() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            call = opened.unary_stream("/t.Small/Metadata")(
                b"x", metadata=(("x-first", "a"), ("x-first", "b")), timeout=30
            )
            assert [data async for data in call] == [b"b", b"127.0.0.1"]
            got = dict(await call.initial_metadata())
            assert got["x-answer"] == "bb"
            assert 25 < float(got["x-timeout"]) <= 31
            assert "x-late" not in got and "x-late" not in dict(await call.trailing_metadata())

    with_rig(test)


def test_metadata_larger_than_a_frame() -> None:
    async def test(rig: Rig) -> None:
        async with channel(
            rig, ("grpc.max_metadata_size", 1 << 17), ("grpc.absolute_max_metadata_size", 1 << 18)
        ) as opened:
            call = opened.unary_stream("/t.Small/Metadata")(b"x", metadata=(("x-first", "a" * 12_000),))
            assert len([data async for data in call]) == 2
            assert dict(await call.initial_metadata())["x-answer"] == "a" * 24_000

    with_rig(test)


def test_a_cancelled_call_is_given_up() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            call = opened.unary_unary("/t.Small/Never")(b"x")
            other = opened.unary_unary("/t.Small/Never")(b"y")
            await until(lambda: len(rig.service.calls) == 2 and all(small.has_ended for small in rig.service.calls))
            call.cancel()
            await until(lambda: any(small.was_cancelled for small in rig.service.calls))
            assert sorted(small.was_cancelled for small in rig.service.calls) == [False, True]
            assert await opened.unary_unary("/t.Small/Echo")(b"on") == b"on"
            assert not other.done()
        await until(lambda: all(small.was_cancelled for small in rig.service.calls if small.method == "Never"))
        assert rig.answers("CANCELLED") == 2

    with_rig(test)


def test_a_deadline_ends_the_call_on_both_sides() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            calls = [opened.unary_unary("/t.Small/Never")(b"x", timeout=0.1 + at / 100) for at in range(5)]
            begun = time.monotonic()
            for call in calls:
                assert (await failure(call)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert time.monotonic() - begun < 2
            await until(lambda: all(small.was_cancelled for small in rig.service.calls))

    with_rig(test)


@pytest.mark.parametrize("packing", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_packed_requests(packing: grpc.Compression) -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            echo = opened.unary_unary("/t.Small/Echo")
            for data in (b"", b"x", bytes(3_000_000), os.urandom(100_000)):
                assert await echo(data, compression=packing) == data

    with_rig(test)


def test_a_message_over_the_bound_is_refused_before_it_is_read() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            for size in (1_000_001, 30_000_000):
                error = await failure(opened.unary_unary("/t.Small/Echo")(bytes(size)))
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "at most 1000000" in str(error.details())
            packed = opened.unary_unary("/t.Small/Echo")(bytes(30_000_000), compression=grpc.Compression.Gzip)
            error = await failure(packed)
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "unpacks to more than 1000000" in str(error.details())
            assert await opened.unary_unary("/t.Small/Echo")(bytes(1_000_000)) == bytes(1_000_000)

    with_rig(test, GrpcLimits(message_bytes_max=1_000_000))


def test_an_early_answer_stops_an_upload() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            call = opened.stream_stream("/t.Small/Early")()
            await call.write(b"x")
            assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert await opened.unary_unary("/t.Small/Echo")(b"on") == b"on"

    with_rig(test)


def test_a_service_that_holds_stops_its_client_and_goes_on_in_order() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            call = opened.stream_stream("/t.Small/Hold")()
            sent = [b"%d" % at + bytes(100_000) for at in range(60)]  # six times the window

            async def write() -> None:
                for data in sent:
                    await call.write(data)
                await call.done_writing()

            writing = asyncio.ensure_future(write())
            await until(lambda: rig.service.calls and rig.service.calls[0].messages)
            await asyncio.sleep(0.05)
            small = rig.service.calls[0]
            assert small.messages == sent[:1]
            assert rig.server.held_bytes <= stream.STREAM_WINDOW
            while len(small.messages) < len(sent):
                small.call.go_on()
                await asyncio.sleep(0)
            await until(lambda: small.has_ended)
            assert small.messages == sent
            await writing
            call.cancel()

    with_rig(test)


def test_keepalive_of_clients_is_answered() -> None:
    async def test(rig: Rig) -> None:
        options = (("grpc.keepalive_time_ms", 100), ("grpc.keepalive_timeout_ms", 500))
        more = (("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0))
        async with channel(rig, *options, *more) as opened:
            call = opened.unary_unary("/t.Small/Never")(b"x")
            await asyncio.sleep(1.0)
            assert not call.done()
            call.cancel()

    with_rig(test)


def test_a_stop_answers_what_is_in_flight_and_refuses_what_comes_after() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            call = opened.unary_unary("/t.Small/Never")(b"x")
            await until(lambda: rig.service.calls and rig.service.calls[0].has_ended)
            stopping = asyncio.ensure_future(rig.server.stop())
            await asyncio.sleep(0.05)
            error = await failure(opened.unary_unary("/t.Small/Echo")(b"late"))
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert not stopping.done()
            rig.service.calls[0].call.send(b"answer")
            rig.service.calls[0].call.finish()
            assert await call == b"answer"
            await asyncio.wait_for(stopping, 5)

    with_rig(test)


def test_a_stop_does_not_wait_for_ever() -> None:
    async def test(rig: Rig) -> None:
        async with channel(rig) as opened:
            call = opened.unary_unary("/t.Small/Never")(b"x")
            await until(lambda: rig.service.calls)
            begun = time.monotonic()
            await rig.server.stop()
            assert 0.2 < time.monotonic() - begun < 3
            assert (await failure(call)).code() == grpc.StatusCode.UNAVAILABLE
            assert rig.service.calls[0].was_cancelled

    with_rig(test, GrpcLimits(drain_s=0.3))


def test_a_client_that_goes_away_has_all_its_calls_cancelled() -> None:
    async def test(rig: Rig) -> None:
        client = await rig.raw()
        client.send(b"".join(unary(sid, "Never") for sid in range(1, 41, 2)))
        await until(lambda: len(rig.service.calls) == 20)
        client.close()
        await until(lambda: all(small.was_cancelled for small in rig.service.calls))
        await until(lambda: not rig.server.connections)
        assert rig.answers("CANCELLED") == 20

    with_rig(test)
