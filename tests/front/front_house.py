"""A small real house behind the border, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.front import Http, HttpLimits
from millstream.front.door import Answer, Call
from millstream.front.tensor import DTYPES
from millstream.guard import auth
from millstream.meter import Meter
from millstream.types import Candidate, Description, Output, Principal, Rank, Ranked, Request, TensorSpec

WEIGHTS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)


def models() -> dict[str, Description]:
    def one(name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> tuple[str, Description]:
        return name, Description(name, ("1", "2"), "numpy", tuple(inputs), tuple(outputs))

    tensor = TensorSpec
    made = [
        one("affine", [tensor("x", "FP32", (-1, 3))], [tensor("y", "FP32", (-1, 2)), tensor("n", "INT64", (-1,))]),
        one("pair", [tensor("a", "INT64", (-1, 2)), tensor("b", "FP32", (-1,))], [tensor("s", "FP32", (-1,))]),
    ]
    made += [one(f"echo-{t}", [tensor("v", t, (-1, -1))], [tensor("v", t, (-1, -1))]) for t in DTYPES]
    return dict(made)


class House:
    """A Door: affine, pair and echo models in numpy; rankings by hash; outcomes counted.

    `held`: None answers at once; a list keeps (future, answer) until `release` is called.
    """

    def __init__(self, meter: Meter) -> None:
        self.served = models()
        self.meter = meter
        self.held: list[tuple[asyncio.Future[Any], Any]] | None = None
        self.outcomes: list[Any] = []
        self.calls: list[Call] = []
        self.keys: dict[str, Principal] | None = None
        self.fault: Exception | None = None
        self.up = True

    def call(self, request: Call, principal: Principal) -> Answer:
        if self.fault is not None:
            raise self.fault
        self.calls.append(request)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer = self._answer(request)
        if self.held is None:
            future.set_result(answer)
        else:
            self.held.append((future, answer))
        return future

    def release(self, order: Iterable[int]) -> None:
        assert self.held is not None
        held, self.held = self.held, []
        for at in order:
            future, answer = held[at]
            if not future.done():
                future.set_result(answer)

    def _answer(self, request: Call) -> Any:
        if isinstance(request, list):
            self.outcomes += request
            return len(request)
        if isinstance(request, Rank):
            scored = [Candidate(c, hashlib.blake2b(c.encode()).digest()[0] / 255) for c in request.candidates]
            return Ranked(request.id, request.model or "ranker", "1", sorted(scored, key=lambda c: -c.score))
        assert isinstance(request, Request)
        inputs = request.inputs
        if request.model == "affine":
            y = inputs["x"].astype(np.float32) @ WEIGHTS
            outputs: dict[str, Any] = {"y": y, "n": np.arange(request.rows, dtype=np.int64)}
        elif request.model == "pair":
            outputs = {"s": inputs["a"].astype(np.float32).sum(1) + inputs["b"].astype(np.float32)}
        else:
            outputs = dict(inputs)
        return Output(outputs, request.model, request.version or "1", policy=3)

    def admit(self, principal: Principal, model: str, verb: str) -> None:
        if self.keys is not None:
            auth.check(principal, model, verb)

    def describe(self, model: str, version: str = "") -> Description:
        found = self.served.get(model)
        if found is None or (version and version not in found.versions):
            raise errors.NotFound(f"no model {model!r} version {version!r}; served: {', '.join(self.served)}")
        return found

    def models(self) -> list[Description]:
        return list(self.served.values())

    def ready(self, model: str = "", version: str = "") -> bool:
        return self.up and (not model or model in self.served)

    def metrics(self) -> str:
        return self.meter.render()

    def principal(self, key: str | None, peer: str) -> Principal:
        assert peer == "127.0.0.1"
        if self.keys is None:
            return Principal("anyone")
        if key is None or key not in self.keys:
            raise errors.Unauthenticated("no such key; send Authorization: Bearer KEY")
        return self.keys[key]


class Served:
    """A House behind a real port. `async with Served() as served:`."""

    def __init__(self, limits: HttpLimits | None = None, clock: Clock | None = None) -> None:
        self.meter = Meter()
        self.door = House(self.meter)
        self.http = Http(self.door, self.meter, clock or SystemClock(), limits)
        self.port = 0

    async def __aenter__(self) -> Served:
        self.port = await self.http.start(port=0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in tuple(self.http._connections):
            connection.abort()
        await self.http.stop()

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26))

    async def ask(self, *raw: bytes) -> Reply:
        """One request on a connection of its own."""
        async with asyncio.timeout(10):
            client = await self.connect()
            for part in raw:
                client.send(part)
            reply = await client.read()
            client.close()
            return reply


class Reply:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> str:
        error = self.json["error"]
        assert isinstance(error, str)
        return error


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def read(self, head: bool = False) -> Reply:
        """The next answer. `head`: it answers HEAD, so no body follows."""
        line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        status = int(line.split()[1])
        size = 0 if head or status == 100 else int(headers["content-length"])
        return Reply(status, headers, await self.reader.readexactly(size))

    async def ended(self) -> bool:
        """Whether the server has closed: nothing more comes."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.writer.close()


def http(method: str, url: str, body: bytes = b"", **headers: object) -> bytes:
    lines = [f"{method} {url} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body and "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def tensor(name: str, datatype: str, shape: list[int], **more: object) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def infer(model: str, inputs: list[dict[str, object]], raw: bytes | None = None, **fields: object) -> bytes:
    """An infer request; `raw`: the bytes of binary tensors."""
    head = orjson.dumps({"inputs": inputs, **fields})
    url = f"/v2/models/{model}/infer"
    if raw is None:
        return http("POST", url, head)
    return http("POST", url, head + raw, Inference_Header_Content_Length=len(head))


def affine(id: str = "a1", x: list[float] | None = None) -> bytes:
    return infer("affine", [tensor("x", "FP32", [1, 3], data=x or [1, 0, 0])], id=id)


def affine_binary(id: str = "b1", x: tuple[float, ...] = (1, 0, 0)) -> bytes:
    raw = np.array(x, "<f4").tobytes()
    inputs = [tensor("x", "FP32", [len(x) // 3, 3], parameters={"binary_data_size": len(raw)})]
    return infer("affine", inputs, raw, id=id, parameters={"binary_data_output": True})


def chunked(request: bytes, size: int = 7) -> bytes:
    """The same request with its body in chunks."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    chunks = [b"%x\r\n%b\r\n" % (len(body[i : i + size]), body[i : i + size]) for i in range(0, len(body), size)]
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""]) + b"".join(chunks) + b"0\r\n\r\n"
