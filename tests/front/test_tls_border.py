"""TLS in front of both ports: the same answers, new certificates without a lost connection, bounded handshakes."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import trustme
import uvloop
from front_house import Client, Reply, affine, http, infer, tensor
from tls_house import Files, SecureHouse

from millstream.clock import FakeClock
from millstream.front import HttpLimits
from millstream.front.grpc import GrpcLimits


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """On the loop that the program uses; nothing may be left for the loop to complain about."""
    complaints: list[dict[str, object]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(60):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
    assert not complaints, complaints


async def connect(port: int, context: ssl.SSLContext) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost"))


async def ask(port: int, context: ssl.SSLContext, request: bytes) -> Reply:
    client = await connect(port, context)
    client.send(request)
    reply = await client.read()
    client.close()
    return reply


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def serial(client: Client) -> bytes:
    """Which certificate this connection was made with."""
    found: bytes = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return found


def test_a_request_and_a_large_answer_go_through(files: Files) -> None:
    async def test() -> None:
        async with SecureHouse(files) as house:
            client = await connect(house.port, files.context())
            for at in range(3):
                client.send(affine(f"a{at}"))
                assert (await client.read()).json["id"] == f"a{at}"
            client.send(affine("p1") + affine("p2"))
            assert [(await client.read()).json["id"] for _ in range(2)] == ["p1", "p2"]
            assert client.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            client.close()
            await until(lambda: not house.http.connections)

    run(test)


def test_a_request_in_the_same_flight_as_the_handshake_is_answered(files: Files) -> None:
    """As many clients send it: the bytes of both come in one read."""
    answered = b""

    def talk(port: int) -> None:
        nonlocal answered
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = files.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", port)) as wire:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    wire.sendall(outgoing.read())
                    incoming.write(wire.recv(65536))
            tls.write(affine("at once"))
            wire.sendall(outgoing.read())
            while b"at once" not in answered:
                try:
                    answered += tls.read(65536)
                except ssl.SSLWantReadError:
                    incoming.write(wire.recv(65536))

    async def test() -> None:
        async with SecureHouse(files) as house:
            await asyncio.to_thread(talk, house.port)

    run(test)
    assert answered.startswith(b"HTTP/1.1 200")


def test_tls_before_1_2_is_refused(files: Files) -> None:
    async def test() -> None:
        async with SecureHouse(files) as house:
            old = files.context()
            old.set_ciphers("DEFAULT@SECLEVEL=0")
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connect(house.port, old)
            await until(lambda: house.counted("millstream_handshakes_failed_total") == 1)

    with pytest.warns(DeprecationWarning):
        run(test)


def test_a_new_certificate_is_for_new_connections_and_drops_none(files: Files) -> None:
    async def test() -> None:
        async with SecureHouse(files) as house:
            kept = await connect(house.port, files.context())
            files.issue()
            await asyncio.to_thread(house.tls.look)
            new = await connect(house.port, files.context())
            assert serial(new) != serial(kept)
            for client in (kept, new):
                client.send(affine())
                assert (await client.read()).status == 200
                client.close()

    run(test)


def test_no_connection_is_lost_while_certificates_change(files: Files) -> None:
    async def test() -> None:
        async with SecureHouse(files) as house:
            seen: set[bytes] = set()
            done = False

            async def call() -> None:
                while not done:
                    client = await connect(house.port, files.context())
                    client.send(affine())
                    assert (await client.read()).status == 200
                    seen.add(serial(client))
                    client.close()

            calls = [asyncio.create_task(call()) for _ in range(4)]
            for _ in range(5):
                files.issue()
                await asyncio.to_thread(house.tls.look)
                known = len(seen)
                await until(lambda known=known: len(seen) > known)
            done = True
            await asyncio.gather(*calls)
            assert house.counted("millstream_handshakes_failed_total") == 0

    run(test)


def test_a_client_without_a_certificate_or_with_a_bad_one_is_refused_in_the_handshake(files: Files) -> None:
    good, expired = files.client("shop"), files.client("late", ends_days=-1)
    strangers = Files(files.folder / "strangers")
    stranger = strangers.client("stranger")

    async def refused(port: int, context: ssl.SSLContext) -> bool:
        try:  # in TLS 1.3 the client learns it with its first read
            client = await connect(port, context)
            client.send(affine())
            await client.read()
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            return True
        return False

    async def test() -> None:
        async with SecureHouse(files, mutual=True) as house:
            assert (await ask(house.port, files.context(good), affine())).status == 200
            for one in (None, expired, stranger):
                assert await refused(house.port, files.context(one))
            assert not house.door.calls[1:]
            await until(lambda: house.counted("millstream_handshakes_failed_total") == 3)
            older = files.context(good)
            older.maximum_version = ssl.TLSVersion.TLSv1_2
            assert await refused(house.port, older)

    run(test)


def test_a_connection_with_client_certificates_leaves_no_session_that_skips_them(files: Files) -> None:
    async def has_ticket(house: SecureHouse, context: ssl.SSLContext) -> bool:
        client = await connect(house.port, context)
        client.send(affine())
        await client.read()  # tickets come before the answer
        client.close()
        return bool(client.writer.get_extra_info("ssl_object").session.has_ticket)

    async def test() -> None:
        shop = files.client("shop")
        async with SecureHouse(files) as open_house, SecureHouse(files, mutual=True) as house:
            assert await has_ticket(open_house, files.context())
            assert not await has_ticket(house, files.context(shop))

    run(test)


def test_a_changed_client_ca_counts_for_the_next_connection(files: Files) -> None:
    shop = files.client("shop")

    async def test() -> None:
        async with SecureHouse(files, mutual=True) as house:
            context = files.context(shop)
            assert (await ask(house.port, context, affine())).status == 200
            files.trust(trustme.CA())
            await asyncio.to_thread(house.tls.look)
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await ask(house.port, context, affine())

    run(test)


def test_who_begins_a_handshake_and_stops_is_cut_off(files: Files) -> None:
    clock = FakeClock()

    async def test() -> None:
        async with SecureHouse(files, clock=clock, http=HttpLimits(head_s=5)) as house:
            silent, half = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(2)]
            half[1].write(b"\x16\x03\x01\x02\x00\x01")
            await until(lambda: len(house.http.connections) == 2)
            for _ in range(5):
                clock.advance(1.0)
                await asyncio.sleep(0.01)
            assert len(house.http.connections) == 2
            clock.advance(1.0)
            for reader, writer in (silent, half):
                with_end = await asyncio.gather(reader.read(), return_exceptions=True)
                assert with_end[0] == b"" or isinstance(with_end[0], ConnectionError)
                writer.close()
            assert not house.http.connections and house.counted("millstream_timeouts_total") == 2

    run(test)


def test_handshakes_count_as_connections_and_make_way(files: Files) -> None:
    clock = FakeClock()

    async def test() -> None:
        async with SecureHouse(files, clock=clock, http=HttpLimits(connections_max=2, head_s=60)) as house:
            silent = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(2)]
            await until(lambda: len(house.http.connections) == 2)
            third = await asyncio.open_connection("127.0.0.1", house.port)
            assert await third[0].read() == b""
            assert house.counted("millstream_connections_refused_total") == 1
            clock.advance(2.0)
            assert (await ask(house.port, files.context(), affine())).status == 200
            for _, writer in [*silent, third]:
                writer.close()

    run(test)


def test_plain_http_at_a_port_of_tls_is_refused_and_stops_nothing(files: Files) -> None:
    async def test() -> None:
        async with SecureHouse(files) as house:
            reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
            writer.write(http("GET", "/v2"))
            assert b"200" not in await reader.read()
            writer.close()
            await until(lambda: house.counted("millstream_handshakes_failed_total") == 1)
            assert (await ask(house.port, files.context(), affine())).status == 200

    run(test)


def test_a_slow_client_behind_tls_is_cut_off_as_any_other(files: Files) -> None:
    clock = FakeClock()

    async def test() -> None:
        async with SecureHouse(files, clock=clock, http=HttpLimits(head_s=5)) as house:
            client = await connect(house.port, files.context())
            client.send(b"GET /v2 HT")
            await until(lambda: len(house.http.connections) == 1)
            await asyncio.sleep(0.05)
            for _ in range(7):
                clock.advance(1.0)
                await asyncio.sleep(0.01)
            assert (await client.read()).status == 408
            assert await client.ended()
            client.close()

    run(test)


def test_who_does_not_read_behind_tls_holds_little_and_is_cut_off(files: Files) -> None:
    clock = FakeClock()

    async def test() -> None:
        limits = HttpLimits(unsent_bytes_max=10_000, unread_s=5)
        size = 20_000_000  # beyond what the sockets' own buffers take
        inputs = [tensor("v", "FP32", [1, size // 4], parameters={"binary_data_size": size})]
        large = infer("echo-FP32", inputs, bytes(size), parameters={"binary_data_output": True})
        async with SecureHouse(files, clock=clock, http=limits) as house:
            client = await connect(house.port, files.context())
            client.writer.transport.pause_reading()
            client.send(large + affine("never"))
            await until(lambda: house.http.unread)
            await asyncio.sleep(0.05)
            assert len(house.door.calls) == 1, "who does not read gets nothing more computed"
            for _ in range(7):
                clock.advance(1.0)
                await asyncio.sleep(0.01)
            await until(lambda: not house.http.connections)
            assert house.counted("millstream_timeouts_total") == 1 and not house.http.unread
            client.close()

    run(test)


def test_a_refused_body_that_is_still_being_sent_gets_its_answer(files: Files) -> None:
    async def test() -> None:
        async with SecureHouse(files, http=HttpLimits(body_bytes_max=1000)) as house:
            client = await connect(house.port, files.context())
            client.send(http("POST", "/v2/models/affine/infer", Content_Length=100_000_000) + bytes(100_000))
            assert (await client.read()).status == 413
            client.close()

    run(test)


def test_a_stop_answers_what_is_in_flight(files: Files) -> None:
    async def test() -> None:
        async with SecureHouse(files) as house:
            house.door.held = []
            client = await connect(house.port, files.context())
            client.send(affine("last"))
            await until(lambda: house.door.held)
            half = await asyncio.open_connection("127.0.0.1", house.port)
            await until(lambda: len(house.http.connections) == 2)
            stop = asyncio.create_task(house.http.stop())
            await asyncio.sleep(0.01)
            house.door.release([0])
            reply = await client.read()
            assert reply.json["id"] == "last" and reply.headers["connection"] == "close"
            client.close()
            half[1].close()
            await stop

    run(test)


class Beside:
    """A SecureHouse in a thread of its own, for clients that block."""

    def __init__(self, files: Files, **more: object) -> None:
        self.files, self.more = files, more
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> SecureHouse:
        self.thread.start()
        self.house = SecureHouse(self.files, **self.more)  # type: ignore[arg-type]
        self.run(self.house.__aenter__())
        return self.house

    def __exit__(self, *_: object) -> None:
        self.run(self.house.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.loop.close()

    def run(self, what: object) -> None:
        asyncio.run_coroutine_threadsafe(what, self.loop).result(30)  # type: ignore[arg-type]


@pytest.mark.parametrize("mutual", [False, True])
def test_tritonclient_over_grpc_and_tls(files: Files, mutual: bool) -> None:
    import tritonclient.grpc as triton

    certificate, key = files.client("shop")
    with Beside(files, mutual=mutual) as house:
        client = triton.InferenceServerClient(
            f"localhost:{house.grpc_port}",
            ssl=True,
            root_certificates=str(files.folder / "ca.pem"),
            private_key=str(key) if mutual else None,
            certificate_chain=str(certificate) if mutual else None,
        )
        assert client.is_server_live(client_timeout=30)
        x = triton.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(np.array([[1, 0, 0]], np.float32))
        for _ in range(3):
            assert client.infer("affine", [x], client_timeout=30).as_numpy("y").tolist() == [[1.0, 2.0]]
        answers: list[object] = []
        answered = threading.Event()

        def take(result: object, error: object) -> None:
            answers.append(error or result)
            if len(answers) == 3:
                answered.set()

        client.start_stream(take)
        for _ in range(3):
            client.async_stream_infer("affine", [x])
        assert answered.wait(30) and all(isinstance(one, triton.InferResult) for one in answers)
        client.stop_stream()
        client.close()


def test_grpc_without_a_certificate_is_refused_where_one_is_wanted(files: Files) -> None:
    import grpc

    with Beside(files, mutual=True, grpc=GrpcLimits(head_s=30)) as house:
        credentials = grpc.ssl_channel_credentials((files.folder / "ca.pem").read_bytes())
        with grpc.secure_channel(f"localhost:{house.grpc_port}", credentials) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            with pytest.raises(grpc.RpcError) as raised:
                call(b"", timeout=30)
            assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert house.counted("millstream_handshakes_failed_total", "grpc") >= 1
