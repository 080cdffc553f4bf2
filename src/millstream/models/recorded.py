"""Requests that were answered, kept beside a model: a version that is loaded later is tried on them before it answers.

    ranker/watch/recorded.jsonl    a request a line: {"inputs": [{"name", "datatype", "shape", "data"}]}, as in V2

Rules of the room:
- Off unless `record.share` is above 0. A sampled request costs its caller a copy of its arrays; the rest is done later,
  in a thread, for all that came meanwhile.
- Text passes the redaction gate before it is written. Who asked is not kept, nor what was answered. A request with
  bytes (UINT8, INT8) is left out: they may be text that the gate cannot read. So is one to a recogniser of speech.
- The file is bounded, the newest are kept, and it is replaced whole under a lock: processes add to it in turn.
- A line that cannot be read is passed over. Bare files have no folder of their own: nothing is recorded of them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from millstream import errors
from millstream.clock import Clock
from millstream.guard.pii import redact
from millstream.models.repository import Repository
from millstream.models.speech.tensors import hears
from millstream.store.blob import locked, write_atomic
from millstream.types import DTYPES, Array, Output, Request

log = logging.getLogger(__name__)

FILE = "recorded.jsonl"
EVERY_S = 10.0
WAITING_MAX = 256
REQUEST_BYTES_MAX = 64 << 10
_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}  # its raw bits are UINT16 in a file too
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))

Submit = Callable[[Request], "asyncio.Future[Output]"]


class RecordSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which answered requests are kept, for new versions to be tried on."""

    share: Annotated[
        float, msgspec.Meta(ge=0, le=1, description="of the requests, kept to try new versions on; 0: none")
    ] = 0.0
    requests_max: Annotated[int, msgspec.Meta(ge=1, le=100_000, description="requests kept of a model, the newest")] = (
        200
    )
    bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=1 << 28, description="bytes kept of a model's requests")] = (
        4 << 20
    )


class Recorder:
    """Passes requests on to `submit` and keeps a sample of those that were answered."""

    def __init__(
        self,
        repository: Repository,
        settings: RecordSettings,
        clock: Clock,
        submit: Submit,
        randomness: random.Random | None = None,
    ) -> None:
        self._repository, self._settings, self._clock, self._submit = repository, settings, clock, submit
        self._random = (randomness or random.Random()).random
        self._share = settings.share
        self._answered: deque[tuple[str, dict[str, Array]]] = deque(maxlen=WAITING_MAX)
        self._trouble = ""

    def submit(self, request: Request) -> asyncio.Future[Output]:
        """The future that `submit` gives. A step of a session is not kept: it means little without those before it."""
        future = self._submit(request)
        if self._random() < self._share and request.turn is None:
            self._take(request, future)
        return future

    def _take(self, request: Request, future: asyncio.Future[Output]) -> None:
        arrays = request.inputs.values()
        if sum(array.nbytes for array in arrays) > REQUEST_BYTES_MAX or any(a.dtype in _BYTES for a in arrays):
            return
        inputs = {name: array.copy() for name, array in request.inputs.items()}

        def answered(future: asyncio.Future[Output]) -> None:
            if future.cancelled() or future.exception() is not None:
                return
            if not hears(inputs, future.result().outputs):
                self._answered.append((request.model, inputs))

        future.add_done_callback(answered)

    async def keep(self) -> None:
        """Write what came, now and then, until cancelled."""
        while True:
            await self._clock.sleep(EVERY_S)
            if self._answered:
                await asyncio.get_running_loop().run_in_executor(None, self.write)

    def write(self) -> None:
        """Add what came to the files. Blocks; never raises."""
        came: dict[str, list[bytes]] = {}
        while self._answered:
            model, inputs = self._answered.popleft()
            with suppress(KeyError, TypeError, ValueError):  # an array that JSON does not have
                came.setdefault(model, []).append(_line(inputs))
        for model, lines in came.items():
            try:
                self._add(model, lines)
                self._trouble = ""
            except (OSError, errors.Error) as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    log.error("requests of %s are not recorded: %s", model, error)

    def _add(self, model: str, lines: list[bytes]) -> None:
        folder = self._repository.seen(model)
        if folder is None:
            return
        folder.mkdir(exist_ok=True)
        with locked(folder / "recorded.lock"):
            path = folder / FILE
            before = path.read_bytes().splitlines() if path.exists() else []
            kept: list[bytes] = []
            size = 0
            for line in reversed([*before, *lines]):
                size += len(line) + 1
                if size > self._settings.bytes_max or len(kept) >= self._settings.requests_max:
                    break
                kept.append(line)
            write_atomic(path, b"".join(line + b"\n" for line in reversed(kept)))


def read(repository: Repository, model: str) -> list[dict[str, Array]]:
    """The inputs of a model's recorded requests, oldest first; none where there are none."""
    folder = repository.seen(model)
    if folder is None:
        return []
    try:
        lines = (folder / FILE).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            found.append({one["name"]: _array(one) for one in orjson.loads(line)["inputs"]})
    return found


def _line(inputs: dict[str, Array]) -> bytes:
    tensors = []
    for name, array in inputs.items():
        data: list[Any] = array.ravel().tolist()
        if array.dtype.hasobject:
            data = [redact(one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)) for one in data]
        tensors.append({"name": name, "datatype": _NAMES[array.dtype], "shape": array.shape, "data": data})
    return orjson.dumps({"inputs": tensors})


def _array(tensor: dict[str, Any]) -> Array:
    dtype = DTYPES[tensor["datatype"]]
    data = tensor["data"]
    if dtype.kind == "f":
        data = [np.nan if one is None else one for one in data]  # JSON has no other word for NaN
    made: Array = np.array(data, dtype).reshape(tensor["shape"])
    return made
