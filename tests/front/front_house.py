"""A small real house behind the border, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Awaitable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import orjson
import uvloop
from msgspec.structs import replace

from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.front import Http, HttpLimits
from millstream.front.door import Answer, Call, Recording, SpeechSession, Transcribed
from millstream.guard import auth
from millstream.meter import Meter
from millstream.models.policy import Policy
from millstream.models.traffic import Move, only_on
from millstream.spoken import Start
from millstream.types import (
    DTYPES,
    Ask,
    BatchStatistics,
    Candidate,
    Config,
    Description,
    Listed,
    Listing,
    Merge,
    Output,
    Principal,
    Ran,
    Rank,
    Ranked,
    Request,
    Slot,
    Spent,
    Statistics,
    TensorSpec,
    Turn,
)

WEIGHTS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)


def models() -> dict[str, Description]:
    def one(name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> tuple[str, Description]:
        return name, Description(name, ("1", "2"), "numpy", tuple(inputs), tuple(outputs))

    tensor = TensorSpec
    made = [
        one("affine", [tensor("x", "FP32", (-1, 3))], [tensor("y", "FP32", (-1, 2)), tensor("n", "INT64", (-1,))]),
        one("pair", [tensor("a", "INT64", (-1, 2)), tensor("b", "FP32", (-1,))], [tensor("s", "FP32", (-1,))]),
    ]
    made += [one("score", [tensor("v", "FP32", (-1,))], [tensor("v", "FP32", (-1,)), tensor("w", "FP32", (-1, 1))])]
    made += [one("cube", [tensor("v", "FP32", (-1, -1, -1))], [tensor("v", "FP32", (-1, -1, -1))])]
    made += [one("count", [tensor("x", "FP32", (-1, 1))], [tensor("n", "INT64", (-1,))])]
    made += [one(f"echo-{t}", [tensor("v", t, (-1, -1))], [tensor("v", t, (-1, -1))]) for t in DTYPES]
    return dict(made)


class House:
    """A Door: affine, pair, score, count and echo models in numpy; rankings by hash; outcomes counted.

    `count` is of sessions: it answers the step it is at. Sessions are by owner and id; a token is "token-OWNER-ID".
    Loading and unloading take names away and bring them back; "broken" cannot be loaded. Each request counts as one
    batch in the statistics. `held`: None answers at once; a list keeps (future, answer) until `release` is called.
    """

    def __init__(self, meter: Meter) -> None:
        self.served = models()
        self.known = dict(self.served)
        self.policies = {model: Policy(live="1") for model in self.known}
        self.moves: list[tuple[str, str, Move, str]] = []
        self.sessions: dict[tuple[str, str], int] = {}
        self.done: dict[tuple[str, str], list[int]] = {}  # rows of each request, by model and version
        self.meter = meter
        self.held: list[tuple[asyncio.Future[Any], Any]] | None = None
        self.outcomes: list[Any] = []
        self.calls: list[Call] = []
        self.keys: dict[str, Principal] | None = None
        self.fault: Exception | None = None
        self.up = True
        self.hearing: Any = None  # live speech: see talk_house.py

    def call(self, request: Call, principal: Principal) -> Answer:
        if self.fault is not None:
            raise self.fault
        self.calls.append(request)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer = self._answer(request, principal)
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

    def _answer(self, request: Call, principal: Principal) -> Any:
        if isinstance(request, list):
            self.outcomes += request
            return len(request)
        if isinstance(request, Rank):
            scored = [Candidate(c, hashlib.blake2b(c.encode()).digest()[0] / 255) for c in request.candidates]
            return Ranked(request.id, request.model or "ranker", "1", sorted(scored, key=lambda c: -c.score))
        if isinstance(request, Ask):
            slots = [Slot(item, 0.5, ["score"], why={"position": 1} if request.explain else None) for item in "abc"]
            return Listing(request.id, "ranker", "1", slots[: request.n or 3], cursor="next")
        assert isinstance(request, Request)
        inputs = request.inputs
        if request.model == "affine":
            y = inputs["x"].astype(np.float32) @ WEIGHTS
            outputs: dict[str, Any] = {"y": y, "n": np.arange(request.rows, dtype=np.int64)}
        elif request.model == "pair":
            outputs = {"s": inputs["a"].astype(np.float32).sum(1) + inputs["b"].astype(np.float32)}
        elif request.model == "score":
            outputs = {"v": inputs["v"], "w": inputs["v"].reshape(-1, 1)}
        elif request.model == "count":
            outputs = {"n": np.zeros(request.rows, np.int64)}
        else:
            outputs = dict(inputs)
        turn = None
        if request.turn is not None:
            turn = self._step(request.turn, principal)
            if request.model == "count":
                outputs["n"][:] = turn.step
        version = request.version or "1"
        rows = self.done.setdefault((request.model, version), [])
        if len(rows) < 1000:
            rows.append(request.rows)
        ran = Ran(2, request.rows + 1, 0.25, 3e-6, 40e-6, 1e-6)
        return Output(outputs, request.model, version, policy=3, queue_s=120e-6, ran=ran, turn=turn)

    def _step(self, turn: Turn, principal: Principal) -> Turn:
        ident = turn.id or turn.token.removeprefix(f"token-{principal.name}-") or f"made{len(self.sessions)}"
        key = (principal.name, ident)
        if turn.start:
            self.sessions[key] = 0
        if key not in self.sessions:
            raise errors.NotFound(f"no sequence {ident!r}: it has ended or never began; send sequence_start: true")
        self.sessions[key] += 1
        step = self.sessions[key]
        if turn.end:
            del self.sessions[key]
        return Turn(ident, turn.start, turn.end, step, f"token-{principal.name}-{ident}", principal.name)

    def features(
        self, name: str, entities: dict[str, list[str]], request: dict[str, list[float | None]], principal: Principal
    ) -> asyncio.Future[Any]:
        self.admit(principal, name, "features")
        if name != "ranker":
            raise errors.NotFound(f"no feature set {name[:80]!r}; there are: ranker")
        n = len(entities.get("item", ()))
        if not n or entities.keys() != {"item"} or request:
            raise errors.BadInput("feature set ranker needs item: send them")
        values = np.full((n, 2), 7.0)
        values[0, 0] = np.nan
        missing = {"item": np.zeros(n, np.bool_)}
        return self._done(SimpleNamespace(
            set=name, hash="0123456789abcdef", columns=("rate", "last"), datatype="FP64", values=values,
            missing=missing, age_s=0.25, stale=False,
        ))  # fmt: skip

    def facts(
        self, source: str, rows: list[dict[str, str | float | None]], principal: Principal
    ) -> asyncio.Future[int]:
        self.admit(principal, source, "facts")
        if source != "prices":
            raise errors.NotFound(f"no source {source[:80]!r}; those that are written here: prices")
        self.outcomes += rows
        return self._done(len(rows))

    def upsert(
        self, topic: Literal["users", "items"], rows: list[dict[str, Any]], principal: Principal, tenant: str = ""
    ) -> asyncio.Future[int]:
        self.admit(principal, topic, "upsert")
        if not rows or not all(isinstance(row.get("id"), str) and row["id"] for row in rows):
            raise errors.BadInput(f"{topic}[0].id: no id; send a text")
        self.outcomes += rows
        return self._done(len(rows))

    def merge(self, merges: list[Merge], principal: Principal, tenant: str = "") -> asyncio.Future[int]:
        self.admit(principal, "users", "upsert")
        if not merges:
            raise errors.BadInput("merges: the list is empty; send at least one")
        self.outcomes += merges
        return self._done(len(merges))

    def _done(self, result: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(result)
        return future

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

    def config(self, model: str, version: str = "") -> Config:
        return Config(
            description=self.describe(model, version),
            version=version or "1",
            rows_max=64,
            preferred=(16, 64),
            wait_s=0.002,
            timeout_s=5.0,
            queue_rows_max=4096,
            sessions=8 if model == "count" else 0,
            idle_s=60.0 if model == "count" else 0.0,
        )

    def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        if model:
            self.describe(model, version)
        return [
            self._statistics(name, one)
            for name, description in self.served.items()
            for one in description.versions
            if model in ("", name) and version in ("", one)
        ]

    def _statistics(self, model: str, version: str) -> Statistics:
        rows = self.done.get((model, version), [])
        n = len(rows)

        def spent(us: int, count: int = n) -> Spent:
            return Spent(count, 1000 * us * count)

        return Statistics(
            model=model,
            version=version,
            last_ms=1_700_000_000_000 if rows else 0,
            rows=sum(rows),
            batches=n,
            success=spent(200),
            fail=Spent(),
            queue=spent(120),
            copy=spent(3),
            compute=spent(40),
            split=spent(1),
            by_rows=[
                BatchStatistics(
                    size, spent(3, rows.count(size)), spent(40, rows.count(size)), spent(1, rows.count(size))
                )
                for size in sorted(set(rows))
            ],
        )

    def index(self) -> list[Listed]:
        listed = [
            Listed(
                name, version, "READY" if name in self.served else "UNLOADED", "" if name in self.served else "unloaded"
            )
            for name, description in self.known.items()
            for version in description.versions
        ]
        return [*listed, Listed("broken", "1", "UNAVAILABLE", "model.onnx: not an ONNX file")]

    def control(self, verb: Literal["load", "unload"], model: str, principal: Principal) -> asyncio.Future[None]:
        self.admit(principal, model, "control")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if model == "broken":
            error = errors.Misconfigured("model 'broken': model.onnx: not an ONNX file")
            asyncio.get_running_loop().call_soon(lambda: future.done() or future.set_exception(error))
        elif model not in self.known:
            raise errors.NotFound(f"no model {model!r} in the repository")
        else:
            if verb == "load":
                self.served[model] = self.known[model]
            else:
                self.served.pop(model, None)
            asyncio.get_running_loop().call_soon(lambda: future.done() or future.set_result(None))
        return future

    def traffic(self, model: str, principal: Principal) -> asyncio.Future[Any]:
        self.admit(principal, model, "control")
        self.describe(model)
        shown = {
            "model": model,
            "policy": self.policies[model],
            "process": 1,
            "following": 1,
            "versions": {"1@0": "live"},
        }
        return self._soon({**shown, "problems": {}, "guard": None, "history": []})

    def comparison(self, model: str, principal: Principal) -> asyncio.Future[Any]:
        self.admit(principal, model, "control")
        self.describe(model)
        return self._soon({"model": model, "live": "1", "process": 1, "shadows": []})

    def move(self, model: str, verb: str, move: Move, principal: Principal) -> asyncio.Future[Policy]:
        self.admit(principal, model, "control")
        self.describe(model)
        self.moves.append((model, verb, move, principal.name))
        before = self.policies[model]
        change = replace(before, version=before.version + 1, live=str(getattr(move, "version", before.live)))
        if move.policy is not None:
            only_on(move.policy, model, lambda policy: policy)(before)
        if change.live not in self.served[model].versions:
            raise errors.Misconfigured(f"live names version {change.live}, which does not exist (there are: 1, 2)")
        self.policies[model] = change
        return self._soon(change)

    def _soon(self, result: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: future.done() or future.set_result(result))
        return future

    def describe_step(self, model: str, turn: Turn, principal: Principal) -> Description:
        if (principal.name, turn.id) not in self.sessions:
            raise errors.NotFound("no such session is open")
        return self.describe(model)

    def session(self, model: str, token: str, principal: Principal) -> Turn:
        self.describe(model)
        ident = token.removeprefix(f"token-{principal.name}-")
        step = self.sessions.get((principal.name, ident))
        if step is None or ident == token:
            raise errors.NotFound("no sequence with this token: it has ended, or belongs to somebody else")
        return Turn(ident, step=step, token=token, owner=principal.name)

    def listens(self, principal: Principal) -> None:
        if self.hearing is None:
            raise errors.NotFound("nobody is heard here: name a recogniser in [speech]")
        self.admit(principal, "recogniser", "speech")

    def speech(self, start: Start, principal: Principal) -> Awaitable[SpeechSession]:
        self.listens(principal)
        opened: Awaitable[SpeechSession] = self.hearing.speech(start, principal)
        return opened

    def transcribe(self, recording: Recording, principal: Principal) -> asyncio.Future[Transcribed]:
        self.listens(principal)
        return asyncio.ensure_future(self.hearing.transcribe(recording, principal))

    def ready(self, model: str = "", version: str = "") -> bool:
        return self.up and (not model or (model in self.served and version in ("", *self.served[model].versions)))

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
        for connection in tuple(self.http.connections):
            connection.abort()
        await self.http.stop()

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26))

    async def ask(self, *raw: bytes) -> Reply:
        """One request on a connection of its own."""
        async with asyncio.timeout(60):
            client = await self.connect()
            for part in raw:
                client.send(part)
            reply = await client.read()
            client.close()
            return reply


@contextlib.contextmanager
def served_beside(limits: HttpLimits | None = None) -> Iterator[Served]:
    """A House behind a real port, on an event loop of its own: for clients that block."""
    served, ready, ended = Served(limits), threading.Event(), threading.Event()
    loop = uvloop.new_event_loop()

    async def serve() -> None:
        async with served:
            ready.set()
            while not ended.is_set():
                await asyncio.sleep(0.01)
        await loop.shutdown_default_executor()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield served
    finally:
        ended.set()
        thread.join(20)
        loop.close()


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
