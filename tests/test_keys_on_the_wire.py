"""Keys as callers meet them, over HTTP and gRPC, on a whole service: rates, rights, and a key that is revoked while its
connection is open."""

from __future__ import annotations

import asyncio
import json
import queue
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import trustme
import uvloop

import onnx_models
from millstream import errors
from millstream.app.service import ServeSettings, Service
from millstream.cli import main
from millstream.client import Client
from millstream.clock import SystemClock
from millstream.front.access import AccessSettings
from millstream.guard.tls import TlsSettings
from millstream.meter import Meter
from millstream.models.repository import Repository

X = np.ones((1, 4), np.float32)


class Served:
    """A whole service over two models, `good` and `other`, on a loop of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        for name in ("good", "other"):
            onnx_models.scaled(folder / "models" / name / "1" / "model.onnx", 2.0)
        self.folder, self.settings, self.meter = folder, settings, Meter()
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Served:
        self.thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.service.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)

    def run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(60)

    async def _start(self) -> None:
        settings = ServeSettings(http_port=0, grpc_port=0, **self.settings)
        repository = Repository.open(self.folder / "models")
        self.service = Service(repository, settings, self.folder, SystemClock(), self.meter)
        await self.service.load()
        self.service.furnish()
        self.port = await self.service.listen()
        self.grpc_port = self.service.borders.grpc._servers[0].sockets[0].getsockname()[1]

    def get(self, path: str, key: str) -> Any:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.loads(answer.read())

    def status(self, path: str, key: str) -> int:
        try:
            self.get(path, key)
        except urllib.error.HTTPError as error:
            return error.code
        return 200


class Keyring:
    """A keys file, changed as a person changes it."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.capsys = path, capsys

    def new(self, name: str, *may: str, **more: object) -> str:
        options = [part for key, value in more.items() for part in (f"--{key}", str(value))]
        self.capsys.readouterr()
        main(["keys", "new", name, "--may", *may, *options, "--json", "-f", str(self.path)])
        key: str = json.loads(self.capsys.readouterr().out)["key"]
        return key

    def revoke(self, name: str) -> None:
        main(["keys", "revoke", name, "-f", str(self.path)])


@pytest.fixture
def keyring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Keyring:
    return Keyring(tmp_path / "keys.toml", capsys)


@pytest.fixture
def served(tmp_path: Path, keyring: Keyring) -> Iterator[Served]:
    keyring.new("first", "*:*")
    with Served(tmp_path, keys="keys.toml") as made:
        yield made


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.02)


def known(served: Served, key: str) -> None:
    """Wait until the service has read the file again."""
    until(lambda: served.status("/v2/models", key) == 200)


def tensor() -> triton.InferInput:
    x = triton.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(X)
    return x


class Stream:
    """A stream of ModelStreamInfer that stays open."""

    def __init__(self, served: Served, key: str) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}")
        self.messages: queue.Queue[Any] = queue.Queue()
        call = self.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=triton.service_pb2.ModelStreamInferResponse.FromString,
        )
        metadata = (("authorization", f"Bearer {key}"),)
        self.answers = call(iter(self.messages.get, None), metadata=metadata, timeout=60)

    def ask(self) -> Any:
        asked = triton.service_pb2.ModelInferRequest(model_name="good", raw_input_contents=[X.tobytes()])
        asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        self.messages.put(asked)
        return next(self.answers)

    def close(self) -> None:
        self.messages.put(None)
        self.channel.close()


def test_a_revoked_key_is_refused_on_the_connections_it_has(served: Served, keyring: Keyring) -> None:
    key = keyring.new("shop", "good:infer")
    known(served, key)
    client, stream = Client(f"http://127.0.0.1:{served.port}", key=key, connections=1), Stream(served, key)
    assert client.predict("good", {"x": X})["y"].tolist() == [[2.0] * 4]
    assert stream.ask().error_message == ""
    connection = client._wire._kept[0]

    keyring.revoke("shop")
    until(lambda: served.status("/v2/models", key) == 401)
    assert client._wire._kept[0] is connection and connection.sock is not None
    with pytest.raises(errors.Unauthenticated, match="not known here"):
        client.predict("good", {"x": X})
    with pytest.raises(grpc.RpcError) as raised:
        stream.ask()
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    client.close()
    stream.close()


def test_a_rate_is_one_for_both_borders_and_the_refusal_says_whose_and_how_long(
    served: Served, keyring: Keyring
) -> None:
    key = keyring.new("slow", "good:infer", rate=0.01, burst=3)
    known(served, key)
    client = Client(f"http://127.0.0.1:{served.port}", key=key)
    grpc_client = triton.InferenceServerClient(f"127.0.0.1:{served.grpc_port}")
    headers = {"authorization": f"Bearer {key}"}
    stream = Stream(served, key)
    client.predict("good", {"x": X})
    grpc_client.infer("good", [tensor()], headers=headers)
    assert stream.ask().error_message == ""
    with pytest.raises(errors.Busy, match=r"429: key 'slow' may send 0\.01 requests a second") as refused:
        client.predict("good", {"x": X})
    assert 1 <= refused.value.retry_after_s <= 100
    with pytest.raises(triton.InferenceServerException, match="key 'slow'") as told:
        grpc_client.infer("good", [tensor()], headers=headers)
    assert told.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert "key 'slow'" in stream.ask().error_message
    assert 'millstream_rate_limited_total{key="slow"} 3' in served.meter.render()
    assert served.status("/v2/models/good", key) == 200  # what is no request of the flow is free
    client.close()
    grpc_client.close()
    stream.close()


def test_a_key_sees_the_models_that_it_may_describe_and_no_others(served: Served, keyring: Keyring) -> None:
    shop = keyring.new("shop", "good:infer", "*:outcomes")
    watcher = keyring.new("watcher", "other:describe")
    known(served, watcher)
    for key, mine, not_mine in ((shop, "good", "other"), (watcher, "other", "good")):
        assert served.status(f"/v2/models/{mine}", key) == 200
        for what in ("", "/ready", "/config", "/stats"):
            assert served.status(f"/v2/models/{not_mine}{what}", key) == 403
        assert [one["name"] for one in served.get("/v2/models", key)["models"]] == [mine]
        assert {one["name"] for one in served.get("/v2/models/stats", key)["model_stats"]} == {mine}
        client = triton.InferenceServerClient(f"127.0.0.1:{served.grpc_port}")
        headers = {"authorization": f"Bearer {key}"}
        assert client.get_model_metadata(mine, headers=headers).name == mine
        for ask in (client.get_model_metadata, client.is_model_ready, client.get_model_config):
            with pytest.raises(triton.InferenceServerException, match="may not describe"):
                ask(not_mine, headers=headers)
        index = client.get_model_repository_index(headers=headers).models
        assert {one.name for one in index} == {mine}
        statistics = client.get_inference_statistics(headers=headers).model_stats
        assert {one.name for one in statistics} == {mine}
        client.close()
    assert served.status("/v2/models/nobody", shop) == 403  # nor whether there is one


def test_a_whole_service_with_certificates_keys_and_a_log_of_who_asked(tmp_path: Path, keyring: Keyring) -> None:
    ca, clients = trustme.CA(), trustme.CA()
    cert, mine = ca.issue_cert("127.0.0.1", "localhost"), clients.issue_cert("shop@example.org")
    (tmp_path / "cert.pem").write_bytes(cert.private_key_and_cert_chain_pem.bytes())
    (tmp_path / "mine.pem").write_bytes(mine.private_key_and_cert_chain_pem.bytes())
    (tmp_path / "clients.pem").write_bytes(clients.cert_pem.bytes())
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    key = keyring.new("shop", "good:infer")
    settings = {
        "keys": "keys.toml",
        "tls": TlsSettings(certificate="cert.pem", client_ca="clients.pem"),
        "access_log": AccessSettings(file="access.log"),
    }
    with Served(tmp_path, **settings) as served:
        url = f"https://localhost:{served.port}"
        with Client(url, key=key, ca=tmp_path / "ca.pem", certificate=tmp_path / "mine.pem") as client:
            assert client.predict("good", {"x": X})["y"].tolist() == [[2.0] * 4]
        with Client(url, key=key, ca=tmp_path / "ca.pem") as client, pytest.raises(errors.Busy, match="cannot reach"):
            client.predict("good", {"x": X})
        with Client(url, key=key) as client, pytest.raises(errors.Busy, match="certificate verify failed"):
            client.predict("good", {"x": X})
        assert served.meter.sum("millstream_certificate_expires_seconds") > 0
    lines = [json.loads(one) for one in (tmp_path / "access.log").read_text().splitlines()]
    assert [(one["key"], one["model"], one["status"]) for one in lines] == [("shop", "good", 200)]
    with pytest.raises(errors.Misconfigured, match="a certificate that can be read"):
        Client(url, ca=tmp_path / "none.pem")
    with pytest.raises(errors.Misconfigured, match="https"):
        Client("http://127.0.0.1:1", ca=tmp_path / "ca.pem")
    assert ssl.HAS_TLSv1_3


def test_the_options_of_serve_do_all_of_this(tmp_path: Path, keyring: Keyring) -> None:
    onnx_models.scaled(tmp_path / "good.onnx", 2.0)
    ca = trustme.CA()
    cert = ca.issue_cert("127.0.0.1", "localhost")
    (tmp_path / "cert.pem").write_bytes(b"".join(one.bytes() for one in cert.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(cert.private_key_pem.bytes())
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    key = keyring.new("shop", "good:infer")
    options = [
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--tls-cert",
        "cert.pem",
        "--tls-key",
        "key.pem",
        "--keys",
        "keys.toml",
        "--access-log",
        "-",
    ]
    command = [sys.executable, "-m", "millstream", "serve", "good.onnx", *options]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"https://[\w.]+:\d+", line)))
        with Client(url, key=key, ca=tmp_path / "ca.pem", timeout_s=30) as client:
            assert client.predict("good", {"x": X})["y"].tolist() == [[2.0] * 4]
        with Client(url, ca=tmp_path / "ca.pem", timeout_s=30) as client, pytest.raises(errors.Unauthenticated):
            client.predict("good", {"x": X})
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        lines = [json.loads(line) for line in process.stdout]
    assert [(one.get("key"), one["status"]) for one in lines] == [("shop", 200), (None, 401)]
