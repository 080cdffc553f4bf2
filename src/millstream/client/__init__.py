"""What a back end imports: `predict`, `recommend`, and `outcome`, which never makes its caller wait.

    with Client("http://127.0.0.1:8000", key="ms_...") as client:
        ranked = client.recommend("u17", ["a", "b", "c"])
        client.outcome(ranked.id, ranked.items[0].item, "impression")

Rules of the room:
- Plain and blocking, safe to call from many threads; connections are kept, and there are at most `connections` of them.
- An answer that is an error is raised as the class of `millstream.errors` that the server raised. No answer in time is
  `Late`; no server is `Busy`.
- Predictions, rankings and outcomes may be sent twice without harm: the first change nothing, the others carry an id
  made before the first try. So a kept connection that turns out to be closed is replaced, once, without a word. What
  changes traffic is sent once, on a connection of its own.
- Outcomes wait in a bounded buffer for one background thread, which sends what has gathered while it was busy. It tries
  again after anything that may pass; what cannot be delivered, or finds the buffer full, is counted and reported.
- The buffer is memory: what waits there is lost with the process. `flush` says when it is safe. Make one client a
  process, after it has forked.
"""

from __future__ import annotations

import atexit
import http.client
import logging
import random
import ssl
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack
from urllib.parse import quote, urlsplit

import msgspec
import numpy as np
import orjson
from numpy.typing import ArrayLike

from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.types import Array, Listing, Outcome, TenantOutcome

ANSWER_BYTES_MAX = 256 * 2**20
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 5.0

log = logging.getLogger(__name__)

OnDrop = Callable[[list[Outcome], str], None]


class Wish(TypedDict, total=False):
    """What may be said of a list: see docs/recommend.md."""

    visitor: str
    placement: str
    n: int
    exclude: Sequence[str]
    context: Mapping[str, str | float | bool]
    cursor: str
    explain: bool


class Said(TypedDict, total=False):
    """With a change of traffic: the number of the `policy` it was decided on, and what is recorded with it. Where there
    are keys, `who` is the key's name."""

    policy: int
    who: str
    why: str


class Client:
    """One service at `url`. `timeout_s`: longest wait for the server's next byte, and for a free connection.

    Over https, `ca` (PEM) is whom to trust in place of the system's authorities, and `certificate` with its
    `private_key` is what this client shows.

    `tenant`: whose items, people and requests all calls are about, where the service has tenants and the key is not
    bound to one alone.

    `buffer`: outcomes that may wait at most; `batch`: outcomes a message; `retry_s`: how long an outcome is tried for.
    `on_drop(outcomes, why)` hears of losses, also from the background thread; without it they are logged.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        ca: str | Path = "",
        certificate: str | Path = "",
        private_key: str | Path = "",
        tenant: str = "",
        timeout_s: float = 5.0,
        connections: int = 8,
        buffer: int = 10_000,
        batch: int = 500,
        retry_s: float = 300.0,
        on_drop: OnDrop | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock, self._tenant = clock or SystemClock(), tenant
        self._wire = _Wire(url, key, timeout_s, connections, tls_context(url, ca, certificate, private_key))
        self._outbox = _Outbox(self._wire.post, self._clock, buffer, batch, retry_s, on_drop)

    def predict(self, model: str, inputs: Mapping[str, ArrayLike], version: str = "") -> dict[str, Array]:
        """The model's outputs for named arrays, rows first. Lists of Python floats travel as FP32, of ints as INT64."""
        head, tensors = _write_tensors(inputs)
        path = f"/v2/models/{quote(model, safe='')}"
        path += f"/versions/{quote(version, safe='')}/infer" if version else "/infer"
        size = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        headers, body = self._wire.post(path, b"".join((head, *tensors)), size)
        return _read_tensors(headers.get("Inference-Header-Content-Length"), body)

    def recommend(
        self,
        user: str = "",
        candidates: Sequence[str] | None = None,
        id: str | None = None,
        event_time: float | None = None,
        **more: Unpack[Wish],
    ) -> Listing:
        """A list for `user`, one page of it; with `candidates` alone, these in rank order. The same `id` asked again is
        one request in the log."""
        asked = {
            "id": id or uuid.uuid4().hex,
            "user": user,
            "event_time": self._clock.now() if event_time is None else event_time,
            **({} if candidates is None else {"candidates": list(candidates)}),
            **more,
        }
        return self._listing("/v1/recommend", asked)

    def similar(self, item: str, user: str = "", id: str | None = None, **more: Unpack[Wish]) -> Listing:
        """A list of items like `item`."""
        return self._listing("/v1/similar", {"id": id or uuid.uuid4().hex, "item": item, "user": user, **more})

    def items(self, items: Sequence[Mapping[str, Any]]) -> int:
        """Tell of items, each an `id` and its attributes; how many are durable now."""
        return self._told("/v1/items", {"items": list(items)})

    def users(self, users: Sequence[Mapping[str, Any]]) -> int:
        """Tell of users; as `items`."""
        return self._told("/v1/users", {"users": list(users)})

    def merge(self, visitor: str, user: str) -> int:
        """A visitor turned out to be this user."""
        return self._told("/v1/users/merge", {"merges": [{"visitor": visitor, "user": user}]})

    def _listing(self, path: str, asked: Mapping[str, object]) -> Listing:
        body = self._wire.post(path, _json(self._whose(asked), path), _JSON)[1]
        try:
            return msgspec.json.decode(body, type=Listing)
        except msgspec.MsgspecError as error:
            raise errors.Error(f"{path}: the answer cannot be read: {error}") from None

    def _told(self, path: str, told: Mapping[str, object]) -> int:
        return int(_object(path, self._wire.post(path, _json(self._whose(told), path), _JSON)[1])["accepted"])

    def _whose(self, said: Mapping[str, object]) -> Mapping[str, object]:
        return {**said, "tenant": self._tenant} if self._tenant else said

    def traffic(self, model: str) -> dict[str, Any]:
        """Who gets which version of a model, and how that came about. Wants the right to `control`, as all below do."""
        return self._document(model, "")

    def comparison(self, model: str) -> dict[str, Any]:
        """What a model's shadow versions say beside what was answered."""
        return self._document(model, "/comparison")

    def promote(self, model: str, version: str, **said: Unpack[Said]) -> dict[str, Any]:
        """Make a version live; the policy after it. With `policy`: Conflict when it was changed meanwhile."""
        return self._move(model, "promote", {"version": version}, said)

    def roll_back(self, model: str, to: str = "", **said: Unpack[Said]) -> dict[str, Any]:
        """Make `to` live, or the version that was live before, and hold it there."""
        return self._move(model, "rollback", {"to": to}, said)

    def canary(
        self,
        model: str,
        version: str,
        share: float = 0.05,
        guard: Mapping[str, float] | None = None,
        **said: Unpack[Said],
    ) -> dict[str, Any]:
        """Give a version a share of the traffic; 0 ends it. `guard`: {} or its fields, to have it end by itself."""
        move = {"version": version, "share": share}
        return self._move(model, "canary", move if guard is None else move | {"guard": dict(guard)}, said)

    def split(
        self, model: str, shares: Mapping[str, float], sticky_by: str = "user", **said: Unpack[Said]
    ) -> dict[str, Any]:
        """Share traffic between versions by weight, sticky on the user or drawn by request; none ends it."""
        return self._move(model, "split", {"shares": dict(shares), "sticky_by": sticky_by}, said)

    def shadow(self, model: str, versions: Sequence[str], **said: Unpack[Said]) -> dict[str, Any]:
        """Have versions compute copies of the traffic, whose answers nobody gets; none ends it."""
        return self._move(model, "shadow", {"versions": list(versions)}, said)

    def learning(self, model: str, state: str, **said: Unpack[Said]) -> dict[str, Any]:
        """`paused` or `run`."""
        return self._move(model, "learning", {"state": state}, said)

    def _document(self, model: str, below: str) -> dict[str, Any]:
        path = f"/v1/traffic/{quote(model, safe='')}{below}"
        return _object(path, self._wire.get(path)[1])

    def _move(self, model: str, verb: str, move: Mapping[str, object], said: Said) -> dict[str, Any]:
        path = f"/v1/traffic/{quote(model, safe='')}/{verb}"
        return _object(path, self._wire.post(path, _json({**move, **said}, verb), _JSON, once=True)[1])

    def outcome(
        self,
        request: str,
        item: str,
        kind: str,
        value: float = 1.0,
        event_time: float | None = None,
        id: str | None = None,
        text: str = "",
    ) -> None:
        """Tell what a person did with `item` of the answer `request`. Returns at once; `flush` says when it is safe."""
        told = Outcome(
            request=request,
            item=item,
            kind=kind,
            value=value,
            event_time=self._clock.now() if event_time is None else event_time,
            id=id or uuid.uuid4().hex,
            text=text,
        )
        if self._tenant:
            told = TenantOutcome(**msgspec.structs.asdict(told), tenant=self._tenant)
        self._outbox.put(told)

    @property
    def dropped(self) -> int:
        """Outcomes that were given up."""
        return self._outbox.dropped

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until every outcome told so far is with the service, or given up; False when the time runs out first."""
        return self._outbox.flush(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Flush, give up what is left, hang up. Runs by itself when the interpreter ends. Harmless when repeated."""
        self._outbox.close(timeout_s)
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- connections ------------------------------------------------------------------------------------------------------

_JSON = {"Content-Type": "application/json"}
_MEANT: tuple[type[errors.Error], ...] = (
    errors.BadInput,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.NotFound,
    errors.Conflict,
    errors.TooLarge,
    errors.Busy,
    errors.Late,
    errors.Full,
    errors.Missing,
)
_CLASSES = {one.status: one for one in _MEANT}
_CLASSES |= {408: errors.Late, 429: errors.Busy, 431: errors.TooLarge, 502: errors.Busy}


class _Wire:
    """At most `connections` kept connections to one server, each with one exchange at a time."""

    def __init__(self, url: str, key: str, timeout_s: float, connections: int, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise errors.Misconfigured(f"the URL of a service looks like http://127.0.0.1:8000, got {url!r}")
        self._url, self._host, self._port = url, parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._tls = tls
        self._always = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout_s, self._most = timeout_s, connections
        self._free = threading.BoundedSemaphore(connections)
        self._kept: deque[http.client.HTTPConnection] = deque()
        self._closed = False

    def post(self, path: str, body: bytes, headers: Mapping[str, str], once: bool = False) -> tuple[Message, bytes]:
        """(headers, body) of a good answer. `once`: never sent a second time. Raises `millstream.errors`."""
        return self._call("POST", path, body, headers, once)

    def get(self, path: str) -> tuple[Message, bytes]:
        """The same, of a GET."""
        return self._call("GET", path, None, {}, False)

    def _call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], once: bool
    ) -> tuple[Message, bytes]:
        if self._closed:
            raise RuntimeError("this client is closed")
        if not self._free.acquire(timeout=self._timeout_s):
            raise errors.Busy(f"{path}: all {self._most} connections stayed busy for {self._timeout_s} s; allow more")
        try:
            asked = method, self._prefix + path, body, {**self._always, **headers}
            answer, content = self._ask(self._connect(), *asked) if once else self._exchange(*asked)
        except TimeoutError:
            raise errors.Late(f"{path}: no answer from {self._url} within {self._timeout_s} s") from None
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise errors.Busy(f"{path}: cannot reach {self._url}: {said}", BACKOFF_FIRST_S) from None
        finally:
            self._free.release()
        if answer.status >= 300:
            raise _refusal(path, answer, content)
        return answer.headers, content

    def close(self) -> None:
        self._closed = True
        while self._kept:
            self._kept.pop().close()

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            kept = self._kept.pop()
        except IndexError:
            return self._ask(self._connect(), method, path, body, headers)
        try:
            return self._ask(kept, method, path, body, headers)
        except (ConnectionError, http.client.BadStatusLine):  # the server had hung up meanwhile
            return self._ask(self._connect(), method, path, body, headers)

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            content = answer.read(ANSWER_BYTES_MAX + 1)
        except BaseException:
            connection.close()
            raise
        if len(content) > ANSWER_BYTES_MAX or answer.will_close or self._closed:
            connection.close()
        else:
            self._kept.append(connection)
        if len(content) > ANSWER_BYTES_MAX:
            raise errors.TooLarge(f"{path}: the answer is over {ANSWER_BYTES_MAX} bytes; ask for fewer rows")
        return answer, content


def tls_context(url: str, ca: str | Path, certificate: str | Path, private_key: str | Path) -> ssl.SSLContext | None:
    """What to meet an https service with; None for http. Misconfigured."""
    if not url.startswith("https:"):
        if ca or certificate or private_key:
            raise errors.Misconfigured(f"certificates belong to an https:// URL, got {url!r}")
        return None
    try:
        made = ssl.create_default_context(cafile=ca or None)
        if certificate:
            made.load_cert_chain(certificate, private_key or None)
    except OSError as error:
        files = ", ".join(str(one) for one in (ca, certificate, private_key) if one)
        raise errors.Misconfigured(f"{files}: {error}; each wants PEM, a certificate that can be read") from None
    return made


def _object(path: str, content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise errors.Error(f"{path}: the answer cannot be read: {error}") from None


def _refusal(path: str, answer: http.client.HTTPResponse, content: bytes) -> errors.Error:
    """The error that the server raised, with its sentence."""
    try:
        said = str(orjson.loads(content)["error"])
    except (ValueError, TypeError, KeyError):
        said = content[:200].decode("utf-8", "replace")
    fallback = errors.BadInput if 400 <= answer.status < 500 else errors.Error
    error = _CLASSES.get(answer.status, fallback)(f"{path}: {answer.status}: {said}")
    if isinstance(error, errors.Busy):
        wait = answer.headers.get("Retry-After", "")
        error.retry_after_s = float(wait) if wait.isdecimal() else error.retry_after_s
    return error


# -- outcomes ---------------------------------------------------------------------------------------------------------


class _Told(NamedTuple):
    outcome: Outcome
    body: bytes


class _Outbox:
    """A bounded buffer and the thread that empties it. The thread starts with the first outcome."""

    def __init__(
        self,
        post: Callable[[str, bytes, Mapping[str, str]], object],
        clock: Clock,
        buffer: int,
        batch: int,
        retry_s: float,
        on_drop: OnDrop | None,
    ) -> None:
        self._post, self._clock, self._on_drop = post, clock, on_drop
        self._buffer, self._batch, self._retry_s = buffer, batch, retry_s
        self._changed = threading.Condition()
        self._waiting: deque[_Told] = deque()
        self._sending = 0
        self._started = self._closed = self._overflowing = False
        self.dropped = 0

    def put(self, outcome: Outcome) -> None:
        told = _Told(outcome, _json(_fields(outcome), "outcome"))
        with self._changed:
            full = len(self._waiting) + self._sending >= self._buffer
            if not (self._closed or full):
                self._overflowing = False
                self._waiting.append(told)
                if not self._started:
                    self._start()
                self._changed.notify_all()
                return
            why = "the client is closed" if self._closed else f"all {self._buffer} places of the buffer are taken"
            repeated, self._overflowing = self._overflowing, True
        self._drop([told], why, quiet=repeated)

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._sending, timeout_s)

    def close(self, timeout_s: float) -> None:
        if not self._closed:
            self.flush(timeout_s)
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        atexit.unregister(self._at_exit)
        if left:
            self._drop(left, "the client was closed before they could be sent")

    def _start(self) -> None:
        self._started = True
        atexit.register(self._at_exit)
        threading.Thread(target=self._run, name="millstream-outcomes", daemon=True).start()

    def _at_exit(self) -> None:
        self.close(10.0)

    def _run(self) -> None:
        while batch := self._take():
            self._deliver(batch, self._clock.monotonic() + self._retry_s)
            with self._changed:
                self._sending = 0
                self._changed.notify_all()

    def _take(self) -> list[_Told]:
        """What waits, up to a batch; nothing when the client is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            self._sending = len(batch)
            return batch

    def _deliver(self, batch: list[_Told], deadline: float) -> None:
        """Send until the batch is accepted, refused for good, or too old."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            try:
                self._post("/v1/outcomes", b'{"outcomes":[' + b",".join([told.body for told in batch]) + b"]}", _JSON)
            except (errors.BadInput, errors.TooLarge) as error:
                self._refused(batch, deadline, str(error))
            except (errors.Unauthenticated, errors.Forbidden, errors.NotFound) as error:
                self._drop(batch, str(error))
            except errors.Error as error:
                wait_s = backoff_s * random.uniform(0.5, 1.0)  # spread, or all clients come back at once
                if isinstance(error, errors.Busy):
                    wait_s = max(wait_s, min(error.retry_after_s, BACKOFF_MAX_S))
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
                if self._clock.monotonic() + wait_s <= deadline and not self._closed_within(wait_s):
                    continue
                self._drop(batch, str(error))
            except Exception as error:  # whatever it is, the next batch must have its thread
                self._drop(batch, f"{type(error).__name__}: {error}")
            return

    def _refused(self, batch: list[_Told], deadline: float, why: str) -> None:
        """Halve a refused batch: one bad outcome must not take its neighbours along."""
        if len(batch) == 1:
            self._drop(batch, why)
            return
        middle = len(batch) // 2
        self._deliver(batch[:middle], deadline)
        self._deliver(batch[middle:], deadline)

    def _closed_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)

    def _drop(self, lost: list[_Told], why: str, quiet: bool = False) -> None:
        with self._changed:
            self.dropped += len(lost)
        if self._on_drop is None:
            if not quiet:
                log.warning("%d outcomes are lost: %s", len(lost), why)
            return
        try:
            self._on_drop([told.outcome for told in lost], why)
        except Exception:
            log.exception("on_drop failed")


def _fields(outcome: Outcome) -> dict[str, object]:
    """The outcome as the wire has it: what is empty is left out."""
    return {name: value for name, value in msgspec.structs.asdict(outcome).items() if value != ""}


def _json(document: object, where: str) -> bytes:
    try:
        return msgspec.json.encode(document)
    except (UnicodeEncodeError, TypeError) as error:
        raise errors.BadInput(f"{where}: cannot be written as JSON: {error}") from None


# -- tensors: Open Inference Protocol V2, binary tensor extension -----------------------------------------------------

_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_DATATYPES = {np.dtype(dtype): datatype for datatype, dtype in _DTYPES.items()}


def _write_tensors(inputs: Mapping[str, ArrayLike]) -> tuple[bytes, list[bytes]]:
    """The JSON header, and the bytes that follow it."""
    listed, parts = [], []
    for name, given in inputs.items():
        array = np.asarray(given)
        if array.dtype == np.float64 and not isinstance(given, np.ndarray | np.generic):
            array = array.astype(np.float32)
        datatype = "BYTES" if array.dtype.kind in "OUS" else _DATATYPES.get(array.dtype.newbyteorder("<"))
        if datatype is None:
            raise errors.BadInput(f"input {name!r}: {array.dtype} has no V2 datatype; send one of {', '.join(_DTYPES)}")
        raw = _texts(array) if datatype == "BYTES" else array.astype(_DTYPES[datatype], copy=False).tobytes()
        size = {"binary_data_size": len(raw)}
        listed.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": size})
        parts.append(raw)
    return orjson.dumps({"inputs": listed, "parameters": {"binary_data_output": True}}), parts


def _texts(array: Array) -> bytes:
    encoded = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel().tolist()]
    return b"".join(len(one).to_bytes(4, "little") + one for one in encoded)


def _read_tensors(head: str | None, body: bytes) -> dict[str, Array]:
    """Named arrays of an answer. Views of its bytes: read-only. BYTES become an object array of str."""
    try:
        at = len(body) if head is None else int(head)
        outputs: dict[str, Array] = {}
        for tensor in orjson.loads(body[:at])["outputs"]:
            shape, datatype = tensor["shape"], tensor["datatype"]
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None:
                dtype: Any = _DTYPES.get(datatype, object)
                outputs[tensor["name"]] = np.array(tensor["data"], dtype).reshape(shape)
            elif datatype == "BYTES":
                outputs[tensor["name"]] = np.array(_split(body[at : at + size]), object).reshape(shape)
            else:
                raw = memoryview(body)[at : at + size]
                outputs[tensor["name"]] = np.frombuffer(raw, _DTYPES[datatype]).reshape(shape)
            at += size or 0
        return outputs
    except (ValueError, TypeError, KeyError) as error:
        raise errors.Error(f"the answer cannot be read as V2: {type(error).__name__}: {error}") from None


def _split(raw: bytes) -> list[str]:
    texts, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        texts.append(raw[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return texts
