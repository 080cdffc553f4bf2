"""Chains: pre- and post-processing and small ensembles, in a few lines of Python over models served beside them.

    # toxic.py
    inputs = {"text": "BYTES[-1]"}
    outputs = {"score": "FP32[-1]"}

    def call(models, text):
        ids = models.tokeniser(text=text)["ids"]
        first, second = models.first(ids=ids), models.second(ids=ids)  # both are on their way
        return {"score": (first["score"] + second["score"]) / 2}

Rules of the room:
- A chain is a version like any other: batched, split, shadowed, rolled back. Its rows join before it runs, so its parts
  are asked once for all of them, and there they join what others ask.
- A part is asked when it is called and waited for when its answer is first read.
- A call, its parts' answers included, takes `process.call_s_max` at most. A function that has not returned by then
  keeps its thread, but not its callers.
- What a chain is given is read-only, because others read it too: shadows, other callers, other parts.
- Parts follow their own policies. A chain whose part does not answer does not answer either, and says which.
- Its code runs in the serving process, in threads of its own: heavy work belongs in a model of format "python". Its
  files are imported as their digests say.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Waited
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.pinned import Package
from millstream.types import DTYPES, Array, Output, Request

log = logging.getLogger(__name__)

Ask = Callable[[Request], "Future[Output]"]

_NUMBERS = itertools.count(1)  # each version's file is a module of its own
THREADS = 8  # calls of a chain at once where its version does not say: they mostly wait
GRACE_S = 1.0  # a call that waits for a part is late a moment before it counts as hung, and says for which part
CLOSE_S_MAX = 1.0


class Faulty(errors.Misconfigured):
    """A chain whose code cannot work, whatever it is asked: it changes what is not its own, or waits for itself."""


class Chain:
    """A Model over the function `call` (or `entry`) of the version's file; one that cannot be used: Misconfigured.
    `asked`: its parts, as far as they were needed."""

    instances = THREADS

    def __init__(self, label: str, folder: Path, manifest: Manifest) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        if not self.inputs or not self.outputs:
            raise errors.Misconfigured(
                f"{folder}: a chain's model.toml names its inputs and outputs; `models add` does"
            )
        self._label, self._call_s_max = label, manifest.process.call_s_max
        self._threads = Threads(label, manifest.batching.instances or THREADS)
        self._ask: Ask | None = None
        self.asked: set[str] = set()
        make = partial(module, folder / manifest.file, manifest.digests)
        try:
            self._module = self._threads.run(make, manifest.process.start_s_max, "process.start_s_max")
            self._call = function(self._module, manifest.entry)
        except BaseException:
            self._threads.close()
            raise

    def attach(self, ask: Ask) -> None:
        """How its parts are asked, from any thread; before the first `predict`."""
        self._ask = ask

    def close(self) -> None:
        """Forget its modules and end its threads, but those that hang; nothing calls it any more."""
        self._threads.close()
        forget(self._module)

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """See models.model.Model. Late; Busy when too many calls hang; Faulty."""
        assert self._ask is not None, "attach comes first"
        seconds = self._call_s_max
        parts = Parts(self._label, self._ask, time.monotonic() + seconds, self.asked)
        given = {name: _read_only(array) for name, array in inputs.items()}
        try:
            found = self._threads.run(
                partial(self._call, parts, **given), seconds, "process.call_s_max", grace_s=GRACE_S
            )
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            raise Faulty(
                f"{self._label}: `call` changes an array that it was given ({error}); others read it too, so copy it "
                "first: x = x.copy()"
            ) from error
        if not isinstance(found, dict):
            raise errors.Error(f"{self._label}: `call` gave a {type(found).__name__}; return a dict of outputs")
        return {
            spec.name: _array(found[spec.name], DTYPES[spec.datatype]) for spec in self.outputs if spec.name in found
        }


class Parts:
    """The models that a chain asks: `models.ranker(x=x)`, or `models["my-ranker"](x=x)`."""

    def __init__(self, label: str, ask: Ask, until: float, asked: set[str]) -> None:
        self._label, self._ask, self._until, self._asked = label, ask, until, asked

    def __getitem__(self, name: str) -> Callable[..., Part]:
        def begin(**inputs: Any) -> Part:
            arrays = {key: _given(value) for key, value in inputs.items()}
            self._asked.add(name)
            rows = max((len(array) for array in arrays.values() if array.ndim), default=1)
            return Part(self._label, name, self._ask(Request(name, arrays, rows)), self._until)

        return begin

    def __getattr__(self, name: str) -> Callable[..., Part]:
        return self[name]


class Part:
    """An answer that is on its way: reading an output waits for it."""

    def __init__(self, label: str, name: str, future: Future[Output], until: float) -> None:
        self._label, self._name, self._future, self._until = label, name, future, until

    def __getitem__(self, output: str) -> Array:
        outputs = self._answer().outputs
        if output not in outputs:
            raise errors.Error(f"{self._label}: its part {self._name} has no output {output!r}, but {sorted(outputs)}")
        return _read_only(outputs[output])

    def _answer(self) -> Output:
        try:
            return self._future.result(max(0.0, self._until - time.monotonic()))
        except Waited:
            self._future.cancel()
            raise errors.Late(
                f"{self._label}: its part {self._name} did not answer before the call's time was over "
                "(process.call_s_max)"
            ) from None
        except errors.NotFound as error:
            raise errors.Busy(f"{self._label} waits for its part {self._name}: {error}") from error
        except errors.Misconfigured as error:
            if isinstance(error, Faulty):
                raise
            # Not why: that may be that it waits for this one, and so on without end.
            raise errors.Busy(f"{self._label} waits for its part {self._name}, which does not answer yet") from error


class Threads:
    """Daemon threads that run calls for callers who wait only so long. A thread whose call has not come back by then
    hangs, until it does; while `hung_max` of them hang, no call begins."""

    def __init__(self, label: str, hung_max: int) -> None:
        self._label, self._hung_max = label, hung_max
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._idle = self._hung = 0

    def run(self, work: Callable[[], Any], seconds: float, bound: str, grace_s: float = 0.0) -> Any:
        """What `work` gives or raises. Late after `seconds`, the setting `bound`, and a grace; Busy."""
        call = _Call(work)
        with self._lock:
            if self._hung >= self._hung_max:
                raise errors.Busy(
                    f"{self._label}: {self._hung} calls hang, at most {self._hung_max} may (batching.instances), so it "
                    "computes nothing until one of them returns; correct its code, then put it again"
                )
            if self._idle:
                self._idle -= 1
            else:
                name = f"millstream-chain-{self._label}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
        self._calls.put(call)
        if not call.over.wait(seconds + grace_s) and self._give_up(call):
            raise errors.Late(f"{self._label}: its code did not return within {seconds:g} s ({bound})")
        if call.error is not None:
            raise call.error
        return call.result

    def close(self) -> None:
        """End the threads as they become free; blocks for a moment."""
        until = time.monotonic() + CLOSE_S_MAX
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            if not self._hung:
                thread.join(max(0.0, until - time.monotonic()))

    def _give_up(self, call: _Call) -> bool:
        """Leave a call to its thread. False: it is over."""
        with self._lock:
            if call.over.is_set():
                return False
            call.hung = True
            self._hung += 1
            hung = self._hung
        if hung in (1, self._hung_max):
            log.error(
                "%s hangs: %d of its calls did not return in time. With %d such calls all its requests get a 503; "
                "other models go on.",
                self._label, hung, self._hung_max,
            )  # fmt: skip
        return True

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.result = call.work()
            except BaseException as error:  # sys.exit too: it is its caller's to tell
                call.error = error
            with self._lock:
                call.over.set()
                self._hung -= call.hung
                self._idle += 1
            del call


class _Call:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.over = threading.Event()
        self.hung = False


def function(of: ModuleType, entry: str = "") -> Callable[..., object]:
    """The function that a chain's file defines: `call`, or what comes after the colon of `entry`. Misconfigured."""
    name = entry.rpartition(":")[2] or "call"
    found = getattr(of, name, None)
    if not callable(found):
        raise errors.Misconfigured(f"{of.__file__}: it defines no function {name!r}; write `def {name}(models, ...)`")
    return cast(Callable[..., object], found)


def module(path: Path, digests: Mapping[str, str]) -> ModuleType:
    """A chain's file, run; `from . import other` finds the files beside it. Misconfigured: whatever it raises."""
    package = Package(f"millstream_chain_{next(_NUMBERS)}", path, digests)
    sys.meta_path.insert(0, package)
    try:
        return importlib.import_module(package.name)
    except BaseException as error:  # it may do anything, sys.exit too
        package.forget()
        raise errors.Misconfigured(f"{path}: {type(error).__name__}: {error}") from error


def forget(made: ModuleType) -> None:
    """Take a chain's module, and what it imported beside it, out of the process."""
    for package in [one for one in sys.meta_path if isinstance(one, Package) and one.name == made.__name__]:
        package.forget()


def _given(value: object) -> Array:
    """What a chain hands to a part, as it is now: the chain goes on with its own. Text is as BYTES are in memory."""
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return array.astype(object)
    return array.copy() if array.flags.writeable else array


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _array(value: object, dtype: np.dtype[Any]) -> Array:
    """What `call` gave for an output: lists and other widths are taken as the output's own datatype."""
    return np.asarray(value, dtype)
