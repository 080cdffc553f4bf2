"""Live speech over a WebSocket, with an independent client (`websockets`) and with raw bytes."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
import websockets
from front_house import Client, Served, affine, http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talk_house import BLOCK, Hearing, texts_of
from tls_house import Files, SecureHouse
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from millstream import errors
from millstream.clock import FakeClock
from millstream.front import HttpLimits
from millstream.front.limits import SocketLimits
from millstream.types import Principal

AUDIO = bytes(os.urandom(BLOCK * 10))
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455, 1.3
START = '{"type":"start"}'


def run(test: Callable[[], Awaitable[None]]) -> None:
    """On the loop that the program uses; nothing may be left for the loop to complain about."""
    complaints: list[dict[str, object]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(100):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
    assert not complaints, complaints


@asynccontextmanager
async def served(limits: HttpLimits | None = None, clock: Any = None) -> AsyncIterator[tuple[Served, Hearing]]:
    async with Served(limits, clock) as house:
        house.door.hearing = hearing = Hearing()
        yield house, hearing


def url(house: Served) -> str:
    return f"ws://127.0.0.1:{house.port}/v1/speech"


def talk(house: Served, **more: Any) -> connect:
    return connect(url(house), compression=None, **more)


async def hear(client: ClientConnection, kind: str = "") -> dict[str, Any]:
    """The next message, or the next of a kind."""
    while True:
        told: dict[str, Any] = json.loads(await client.recv())
        if kind in ("", told["type"]):
            return told


async def rest(client: ClientConnection) -> list[dict[str, Any]]:
    """All messages up to the close, whatever its code."""
    told = []
    with suppress(ConnectionClosed):
        while True:
            told.append(json.loads(await client.recv()))
    return told


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


def finals(told: list[dict[str, Any]]) -> list[str]:
    return [" ".join(w["text"] for w in one["words"]) for one in told if one.get("state") == "final"]


def shake(*lines: str, key: bytes = KEY) -> bytes:
    return (
        "\r\n".join(
            [
                "GET /v1/speech HTTP/1.1",
                "Host: x",
                "Upgrade: websocket",
                "Connection: keep-alive, Upgrade",
                f"Sec-WebSocket-Key: {key.decode()}",
                "Sec-WebSocket-Version: 13",
                *lines,
                "",
                "",
            ]
        )
    ).encode()


def frame(opcode: int, payload: bytes, final: bool = True, mask: bytes | None = b"\x01\x02\x03\x04") -> bytes:
    """A frame as RFC 6455, 5.2 has it."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size)
    if size > 65535:
        length = b"\x7f" + struct.pack("!Q", size)
    head = bytes([opcode | (0x80 if final else 0), length[0] | (0x80 if mask else 0)]) + length[1:]
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


async def raw(house: Served, first: bytes) -> tuple[Client, str]:
    """A connection after its handshake; the head of the answer."""
    client = await house.connect()
    client.send(first)
    return client, (await client.reader.readuntil(b"\r\n\r\n")).decode()


async def frames(client: Client) -> list[tuple[int, bytes]]:
    """All frames up to the server's close; then this side hangs up too."""
    found: list[tuple[int, bytes]] = []
    while not found or found[-1][0] != 0x88:
        head = await client.reader.readexactly(2)
        size = head[1] & 127
        if size == 126:
            (size,) = struct.unpack("!H", await client.reader.readexactly(2))
        found.append((head[0], await client.reader.readexactly(size)))
    client.close()
    return found


async def everything(client: Client) -> list[tuple[int, bytes]]:
    """The short frames up to the end of the connection."""
    data, found = await client.reader.read(), []
    while data:
        found.append((data[0], data[2 : 2 + data[1]]))
        data = data[2 + data[1] :]
    return found


def test_a_conversation_from_start_to_end() -> None:
    async def test() -> None:
        async with served() as (house, hearing), talk(house) as client:
            await client.send('{"type":"start","rate":16000,"profile":"meeting"}')
            ready = await hear(client)
            assert ready == {"type": "ready", "session": "s1", "resume_token": "token-0"}
            for at in range(0, len(AUDIO), 640):
                await client.send(AUDIO[at : at + 640])
            await client.send('{"type":"ack","seq":3}')
            await client.send('{"type":"finish"}')
            told = await rest(client)
            assert finals(told) == texts_of(AUDIO)
            assert [one["seq"] for one in told] == list(range(1, len(told) + 1))
            assert told[-1]["type"] == "end" and told[-1]["audio_ms"] == 1000
            assert client.close_code == 1000
            assert hearing.begun[0][0].profile == "meeting" and hearing.open[0].acked == 3
            await until(lambda: hearing.closed == 1 and not house.http.connections)

    run(test)


@pytest.mark.parametrize("size", [1, 7, BLOCK * 10])
def test_what_is_heard_does_not_depend_on_how_audio_is_cut(size: int) -> None:
    async def test() -> None:
        audio = AUDIO[: BLOCK * (1 if size == 1 else 10)]
        async with served() as (house, _), talk(house) as client:
            await client.send(START)
            for at in range(0, len(audio), size):
                await client.send(audio[at : at + size])
            await client.send(iter(['{"type":', '"finish"}']))  # a message in fragments
            assert finals(await rest(client)) == texts_of(audio)

    run(test)


def test_the_handshake_answers_as_the_rfc_says() -> None:
    async def test() -> None:
        async with served() as (house, _):
            client, head = await raw(house, shake("Sec-WebSocket-Protocol: x, millstream.speech.v1"))
            assert head.startswith("HTTP/1.1 101 ")
            assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head  # of RFC 6455, 1.3
            assert "Sec-WebSocket-Protocol: millstream.speech.v1\r\n" in head
            assert "extensions" not in head.lower() and "Connection: close" not in head
            client.send(frame(8, struct.pack("!H", 1000) + b"bye"))
            assert (await frames(client))[-1] == (0x88, struct.pack("!H", 1000) + b"bye")

    run(test)


def test_what_is_sent_with_the_handshake_or_behind_other_requests_is_heard() -> None:
    async def test() -> None:
        said = frame(1, START.encode()) + frame(2, AUDIO[: BLOCK * 4]) + frame(1, b'{"type":"finish"}')
        async with served() as (house, _):
            client, _ = await raw(house, shake() + said)
            assert json.loads((await frames(client))[-2][1])["type"] == "end"
            house.door.held = []  # the request before it is still being answered
            client = await house.connect()
            client.send(affine() + shake() + said[:10])
            await until(lambda: house.door.held)
            client.send(said[10:])
            await asyncio.sleep(0.02)
            house.door.release([0])
            assert (await client.read()).status == 200
            await client.reader.readuntil(b"\r\n\r\n")
            assert json.loads((await frames(client))[-2][1])["type"] == "end"
            large = shake("X-Large: " + "x" * 20000) + said  # more than a slice
            client, _ = await raw(house, large)
            assert json.loads((await frames(client))[-2][1])["type"] == "end"
            await until(lambda: not house.http.connections and not house.http.under_way)

    run(test)


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (http("GET", "/v1/speech"), 426, "Upgrade: websocket"),
        (shake().replace(b"Connection: keep-alive, Upgrade\r\n", b""), 426, "Upgrade: websocket"),
        (shake().replace(b"Upgrade: websocket", b"Upgrade: h2c"), 426, "Upgrade: websocket"),
        (shake().replace(b"Version: 13", b"Version: 8"), 426, "13"),
        (shake(key=b"c2hvcnQ="), 400, "16 bytes"),
        (shake(key=b"%%%"), 400, "16 bytes"),
        (shake("Origin: https://evil.example"), 403, "http.socket.origins"),
        (http("POST", "/v1/speech"), 405, "GET"),
        (http("GET", "/v1/recommend", Upgrade="websocket", Connection="Upgrade"), 405, "POST"),
    ],
)
def test_what_is_no_handshake_is_refused(request_: bytes, status: int, said: str) -> None:
    async def test() -> None:
        async with served() as (house, hearing):
            reply = await house.ask(request_)
            assert (reply.status, said in reply.error) == (status, True), reply.error
            assert status != 426 or reply.headers["sec-websocket-version"] == "13"
            assert not hearing.begun

    run(test)


def test_pages_that_are_named_may_listen() -> None:
    async def test() -> None:
        limits = HttpLimits(socket=SocketLimits(origins=("https://app.example",)))
        async with served(limits) as (house, _):
            async with talk(house, origin="https://app.example") as client:
                await client.send(START)
                assert (await hear(client))["type"] == "ready"
            with pytest.raises(InvalidStatus):
                await talk(house, origin="https://app.example.evil.example")

    run(test)


def test_keys_open_it_by_header_or_by_subprotocol_and_are_asked_for_again() -> None:
    async def test() -> None:
        clock = FakeClock()
        async with served(clock=clock) as (house, hearing):
            house.door.keys = {"good": Principal("shop", ("*:speech",)), "other": Principal("o", ("*:infer",))}
            for headers, status in (({}, 401), ({"Authorization": "Bearer bad"}, 401)):
                with pytest.raises(InvalidStatus) as refused:
                    await talk(house, additional_headers=headers)
                assert refused.value.response.status_code == status
            with pytest.raises(InvalidStatus) as refused:
                await talk(house, subprotocols=["millstream.speech.v1", "bearer.other"])  # type: ignore[list-item]
            assert refused.value.response.status_code == 403
            async with talk(house, additional_headers={"Authorization": "Bearer good"}) as client:
                await client.send(START)
                await hear(client)
            protocols: Any = ["millstream.speech.v1", "bearer.good"]
            async with talk(house, subprotocols=protocols) as client:
                assert client.subprotocol == "millstream.speech.v1"
                await client.send(START)
                await hear(client)
                assert [who for _, who in hearing.begun] == ["shop", "shop"]
                house.door.keys["good"] = Principal("shop", ("recogniser:infer",))
                clock.advance(1.0)
                assert (await hear(client))["code"] == "permission_denied"
                with pytest.raises(ConnectionClosed):
                    await client.recv()
                assert client.close_code == 1008
            house.door.keys["good"] = Principal("shop", ("*:speech",))
            async with talk(house, subprotocols=protocols) as client:
                await client.send(START)
                await hear(client)
                del house.door.keys["good"]
                clock.advance(1.0)
                assert (await hear(client))["code"] == "unauthenticated"
                with pytest.raises(ConnectionClosed):
                    await client.recv()
                assert client.close_code == 1008

    run(test)


def test_where_nobody_is_heard_the_handshake_says_so() -> None:
    async def test() -> None:
        async with Served() as house:
            reply = await house.ask(shake())
            assert reply.status == 404 and "recogniser" in reply.error

    run(test)


@pytest.mark.parametrize(
    ("said", "code", "close"),
    [
        (["{}"], "invalid_argument", 1008),
        (["nonsense"], "invalid_argument", 1008),
        (['{"type":"start","rate":1}'], "invalid_argument", 1008),
        (['{"type":"finish"}'], "invalid_argument", 1008),
        ([b"\0\0"], "invalid_argument", 1008),
        ([START, START], "invalid_argument", 1008),
        ([START, b"broken"], "invalid_argument", 1008),
        ([START, b"\0\0", '{"type":"finish"}', b"\0\0"], "invalid_argument", 1008),
        ([START, b"\0\0", '{"type":"finish"}', '{"type":"ack","seq":1}', b"\0\0"], "invalid_argument", 1008),
        (['{"type":"start","resume_token":"x"}'], "not_found", 1008),
        ([START, b"x" * (1 << 20) + b"x"], "resource_exhausted", 1009),
        ([START, " " * ((1 << 20) + 1)], "resource_exhausted", 1009),
    ],
)
def test_what_cannot_be_understood_is_told_and_closes(said: list[Any], code: str, close: int) -> None:
    async def test() -> None:
        async with served() as (house, hearing), talk(house) as client, talk(house) as other:
            await other.send(START)
            if len(said) >= 4:
                hearing.go.clear()  # or it would have ended before
            for one in said:
                await client.send(one)
            told = await rest(client)
            assert (told[-1]["type"], told[-1]["code"], told[-1].get("fatal", True)) == ("error", code, True)
            assert client.close_code == close and client.close_reason
            hearing.go.set()
            await other.send(AUDIO[: BLOCK * 4])  # others are untouched
            assert (await hear(other, "segment"))["id"] == "g0"

    run(test)


def test_a_wrong_edit_is_told_and_ends_nothing() -> None:
    async def test() -> None:
        async with served() as (house, _), talk(house) as client:
            await client.send(START)
            await client.send('{"type":"edit","segment":"nope","text":"x"}')
            trouble = await hear(client, "error")
            assert (trouble["code"], trouble["fatal"]) == ("not_found", False)
            await client.send('{"type":"edit","segment":"nope","text":"%s"}' % ("x" * 40_000))
            trouble = await hear(client, "error")
            assert (trouble["code"], trouble["fatal"]) == ("resource_exhausted", False)
            await client.send(AUDIO[: BLOCK * 4])
            await client.send('{"type":"edit","segment":"g0","text":"x"}')
            assert (await hear(client, "edited"))["text"] == "x"

    run(test)


@pytest.mark.parametrize(
    ("error", "code", "close"),
    [
        (errors.Overloaded("as many as may"), "resource_exhausted", 1013),
        (errors.Busy("starting"), "unavailable", 1013),
        (RuntimeError("a secret"), "internal", 1011),
        (errors.Forbidden("not you"), "permission_denied", 1008),
    ],
)
def test_what_the_house_refuses_is_told(error: Exception, code: str, close: int) -> None:
    async def test() -> None:
        async with served() as (house, hearing), talk(house) as client:
            hearing.refuse = error
            await client.send(START)
            (told,) = await rest(client)
            assert (told["code"], client.close_code) == (code, close)
            assert "secret" not in told["error"]
            assert (told.get("retry_s", 0) > 0) == (close == 1013)

    run(test)


def test_a_session_that_ends_with_trouble_or_moves_is_closed_with_its_code() -> None:
    async def test() -> None:
        async with served() as (house, hearing), talk(house) as client:
            await client.send(START)
            await hear(client)
            hearing.open[0].trouble(fatal=False)
            assert not (await hear(client))["fatal"]
            hearing.open[0].trouble()
            assert "fatal" not in await hear(client)
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert client.close_code == 1013

    run(test)


def test_a_client_that_sends_faster_than_it_is_heard_waits() -> None:
    async def test() -> None:
        async with served() as (house, hearing), talk(house) as client:
            hearing.go.clear()
            hearing.deaf = True
            await client.send(START)
            await hear(client)
            sent = 0

            async def send() -> None:
                nonlocal sent
                for _ in range(1000):
                    await client.send(b"\0" * 16_000)
                    sent += 16_000

            sending = asyncio.ensure_future(send())
            before = -1
            while sent != before:  # until what is in buffers, of this process and of TCP, is all that they hold
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 12_000_000
            (connection,) = house.http.connections
            assert connection._talk._bytes < (1 << 18) + (1 << 20)  # type: ignore[attr-defined]
            hearing.go.set()
            await sending
            await until(lambda: hearing.open[0].taken == 16_000_000)

    run(test)


def test_a_client_that_never_reads_is_cut_off_and_others_are_not() -> None:
    async def test() -> None:
        clock = FakeClock()
        async with served(clock=clock) as (house, hearing):
            client, _ = await raw(house, shake())
            client.send(frame(1, START.encode()))
            await until(lambda: hearing.open)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            session = hearing.open[0]
            trouble = [session.trouble(fatal=False) for _ in range(200_000)]
            assert trouble
            (connection,) = house.http.connections
            await until(lambda: not connection._room.is_set())  # type: ignore[attr-defined]
            left = session.out.qsize()
            await asyncio.sleep(0.02)
            assert session.out.qsize() == left > 0  # it is told nothing more
            async with talk(house) as other:
                await other.send(START)
                await hear(other)
                for _ in range(29):
                    clock.advance(1.0)
                    await asyncio.sleep(0)
                assert connection in house.http.connections
                clock.advance(2.0)
                await until(lambda: connection not in house.http.connections)
                await until(lambda: session.closes == 1)
                await other.send(AUDIO[: BLOCK * 4])
                await hear(other, "segment")
            assert house.http._unread_bytes == 0

    run(test)


def test_who_says_nothing_is_pinged_and_then_given_up() -> None:
    async def test() -> None:
        clock = FakeClock()
        async with served(clock=clock) as (house, hearing):
            late, _ = await raw(house, shake())
            silent, _ = await raw(house, shake())
            silent.send(frame(1, START.encode()))
            await until(lambda: hearing.open)
            async with talk(house) as client:
                await client.send(START)
                await hear(client)
                for _ in range(50):
                    clock.advance(1.0)
                    await asyncio.sleep(0.005)
                told = await frames(late)
                assert json.loads(told[0][1])["error"].startswith("start did not come")
                assert [kind for kind, _ in await everything(silent)] == [0x81, 0x89]  # ready, ping
                await client.send(AUDIO[: BLOCK * 4])  # this one has answered its pings
                await hear(client, "segment")
                assert [session.closes for session in hearing.open] == [1, 0]

    run(test)


def test_a_server_that_stops_sends_its_clients_elsewhere() -> None:
    async def test() -> None:
        async with served() as (house, hearing), talk(house) as client, talk(house) as idle:
            await client.send(START)
            await hear(client)
            stopping = asyncio.ensure_future(house.http.stop())
            assert (await hear(client))["type"] == "move"
            assert (await hear(idle))["type"] == "move"
            for one in (client, idle):
                with pytest.raises(ConnectionClosed):
                    await one.recv()
                assert one.close_code == 1012
            await stopping
            assert hearing.closed == 1

    run(test)


def test_a_client_that_vanishes_leaves_its_session_to_be_gone_on_with() -> None:
    async def test() -> None:
        async with served() as (house, hearing):
            client = await talk(house)
            await client.send(START)
            await client.send(AUDIO[: BLOCK * 6])
            while (await hear(client)).get("state") != "final":
                pass
            client.transport.abort()
            await until(lambda: hearing.closed == 1)
            async with talk(house) as again:
                await again.send('{"type":"start","resume_token":"token-0","seq":4}')
                ready = await hear(again)
                assert ready["audio_ms"] == 400
                await again.send(AUDIO[ready["audio_ms"] * 32 :])
                await again.send('{"type":"finish"}')
                assert finals(await rest(again)) == texts_of(AUDIO)[1:]

    run(test)


@pytest.mark.parametrize(
    ("sent", "close"),
    [
        (frame(1, b"x", mask=None), 1002),  # not masked
        (frame(3, b"x"), 1002),  # no such opcode
        (frame(9, b"x" * 126), 1002),  # too long a ping
        (frame(9, b"x", final=False), 1002),
        (frame(0, b"x"), 1002),  # goes on with nothing
        (frame(1, b"x", final=False) + frame(1, b"y"), 1002),
        (frame(0x41, b"x"), 1002),  # compressed, though nobody agreed to that
        (frame(1, b"\xff\xfe"), 1007),
        (frame(8, b"x"), 1002),
        (b"\x82\xff" + struct.pack("!Q", 1 << 63) + b"\1\2\3\4", 1002),
    ],
)
def test_broken_frames_close_with_the_code_of_the_rfc(sent: bytes, close: int) -> None:
    async def test() -> None:
        async with served() as (house, _):
            client, _ = await raw(house, shake())
            client.send(sent)
            client.writer.write_eof()
            kind, payload = (await frames(client))[-1]
            assert (kind, struct.unpack("!H", payload[:2])[0]) == (0x88, close)

    run(test)


@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_the_server_stays(pieces: list[bytes], framed: bool) -> None:
    async def test() -> None:
        async with served() as (house, hearing):
            client, _ = await raw(house, shake())
            if framed:
                client.send(frame(1, START.encode()))
            for piece in pieces:
                client.send(frame(2, piece) if framed else piece)
                await asyncio.sleep(0)
            client.writer.write_eof()
            await client.reader.read()
            await until(lambda: not house.http.connections)
            await until(lambda: hearing.closed == len(hearing.open))
            assert (await house.ask(affine())).status == 200

    run(test)


def test_it_is_counted_and_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with served() as (house, _):
            for _ in range(3):
                async with talk(house) as client:
                    await client.send(START)
                    await hear(client)
            await until(lambda: not house.http.connections)
            text = house.meter.render()
            assert 'millstream_http_answers_total{route="speech",status="101"} 3' in text
            assert 'millstream_connections{port="http"} 0' in text

    run(test)


def test_over_tls(tmp_path: Path) -> None:
    async def test() -> None:
        files = Files(tmp_path)
        async with SecureHouse(files) as house:
            house.door.hearing = Hearing()
            context = files.context()
            uri = f"wss://localhost:{house.port}/v1/speech"
            async with websockets.connect(uri, ssl=context, compression=None) as client:
                await client.send(START)
                await client.send(AUDIO)
                await client.send('{"type":"finish"}')
                assert finals(await rest(client)) == texts_of(AUDIO)

    run(test)
