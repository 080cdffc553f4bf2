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
- A part is asked when it is called and waited for when its answer is first read, within `process.call_s_max`.
- Parts follow their own policies. A chain whose part does not answer does not answer either, and says which.
- Its code runs in the serving process, in threads of its own: heavy work belongs in a model of format "python".
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Waited
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.types import DTYPES, Array, Output, Request

Ask = Callable[[Request], "Future[Output]"]

_NUMBERS = itertools.count(1)  # each version's file is a module of its own
THREADS = 8  # calls of a chain at once where its version does not say: they mostly wait


class Chain:
    """A Model over the function `call` (or `entry`) of the version's file; one that cannot be used: Misconfigured.
    `asked`: its parts, as far as they were needed."""

    off_loop = True  # it waits for the loop
    instances = THREADS

    def __init__(self, label: str, folder: Path, manifest: Manifest) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        if not self.inputs or not self.outputs:
            raise errors.Misconfigured(
                f"{folder}: a chain's model.toml names its inputs and outputs; `models add` does"
            )
        self._label, self._wait_s = label, manifest.process.call_s_max
        self._module = module(folder / manifest.file)
        self._call = function(self._module, manifest.entry)
        self._ask: Ask | None = None
        self.asked: set[str] = set()

    def attach(self, ask: Ask) -> None:
        """How its parts are asked, from any thread; before the first `predict`."""
        self._ask = ask

    def close(self) -> None:
        """Forget its modules; nothing calls it any more."""
        name = self._module.__name__
        for one in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[one]

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """See models.model.Model."""
        assert self._ask is not None, "attach comes first"
        found = self._call(Parts(self._label, self._ask, self._wait_s, self.asked), **inputs)
        if not isinstance(found, dict):
            raise errors.Error(f"{self._label}: `call` gave a {type(found).__name__}; return a dict of outputs")
        return {
            spec.name: _array(found[spec.name], DTYPES[spec.datatype]) for spec in self.outputs if spec.name in found
        }


class Parts:
    """The models that a chain asks: `models.ranker(x=x)`, or `models["my-ranker"](x=x)`."""

    def __init__(self, label: str, ask: Ask, wait_s: float, asked: set[str]) -> None:
        self._label, self._ask, self._wait_s, self._asked = label, ask, wait_s, asked

    def __getitem__(self, name: str) -> Callable[..., Part]:
        def begin(**inputs: Any) -> Part:
            arrays = {key: _given(value) for key, value in inputs.items()}
            self._asked.add(name)
            rows = max((len(array) for array in arrays.values() if array.ndim), default=1)
            return Part(self._label, name, self._ask(Request(name, arrays, rows)), self._wait_s)

        return begin

    def __getattr__(self, name: str) -> Callable[..., Part]:
        return self[name]


class Part:
    """An answer that is on its way: reading an output waits for it."""

    def __init__(self, label: str, name: str, future: Future[Output], wait_s: float) -> None:
        self._label, self._name, self._future, self._wait_s = label, name, future, wait_s

    def __getitem__(self, output: str) -> Array:
        outputs = self._answer().outputs
        if output not in outputs:
            raise errors.Error(f"{self._label}: its part {self._name} has no output {output!r}, but {sorted(outputs)}")
        return outputs[output]

    def _answer(self) -> Output:
        try:
            return self._future.result(self._wait_s)
        except Waited:
            self._future.cancel()
            raise errors.Late(f"{self._label}: its part {self._name} did not answer in {self._wait_s:g} s") from None
        except errors.NotFound as error:
            raise errors.Busy(f"{self._label} waits for its part {self._name}: {error}") from error


def function(of: ModuleType, entry: str = "") -> Callable[..., object]:
    """The function that a chain's file defines: `call`, or what comes after the colon of `entry`. Misconfigured."""
    name = entry.rpartition(":")[2] or "call"
    found = getattr(of, name, None)
    if not callable(found):
        raise errors.Misconfigured(f"{of.__file__}: it defines no function {name!r}; write `def {name}(models, ...)`")
    return cast(Callable[..., object], found)


def module(path: Path) -> ModuleType:
    """A chain's file, run; `from . import other` finds the files beside it. Misconfigured: whatever it raises."""
    name = f"millstream_chain_{next(_NUMBERS)}"
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert spec is not None and spec.loader is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except BaseException as error:  # it may do anything, sys.exit too
        del sys.modules[name]
        raise errors.Misconfigured(f"{path}: {type(error).__name__}: {error}") from error
    return made


def _given(value: object) -> Array:
    """What a chain hands to a part; text as BYTES are in memory."""
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _array(value: object, dtype: np.dtype[Any]) -> Array:
    """What `call` gave for an output: lists and other widths are taken as the output's own datatype."""
    return np.asarray(value, dtype)
