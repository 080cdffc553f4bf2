"""A model that a person writes: a class (or a function) with what it takes, what it gives, and how.

    class Ranker:
        inputs = {"x": "FP32[-1,4]"}
        outputs = {"score": "FP32[-1]"}

        def __init__(self, folder):             # or without: the folder of the version, with its files
            self.weights = np.load(folder / "weights.npy")

        def predict(self, inputs):
            return {"score": inputs["x"] @ self.weights}

        def example(self):                      # or without: rows to try it with
            return {"x": np.ones((1, 4), np.float32)}

Rules of the room:
- `entry` says where it is: "ranker:Ranker" of ranker.py. Without one, it is what the manifest's file defines with the
  method `predict`, or the function `predict` beside `inputs` and `outputs`.
- Rows come first, and rows of several requests come at once. What raises millstream.errors.BadInput is the caller's
  mistake; anything else is the model's.
"""

from __future__ import annotations

import importlib
import inspect as looking
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from millstream import errors
from millstream.models.manifest import Manifest, fitting, parse_spec
from millstream.models.runtimes import Found, trial
from millstream.types import Array, TensorSpec


class Own:
    """A Model over an object of the user's. `outputs` have the datatypes that it says."""

    device = "cpu"

    def __init__(self, made: Any, predict: Callable[[dict[str, Array]], Mapping[str, Any]], where: str) -> None:
        self.inputs, self.outputs = (_specs(made, side, where) for side in ("inputs", "outputs"))
        self._predict, self._where = predict, where

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs that it says it has."""
        found = self._predict(inputs)
        if not isinstance(found, Mapping):
            raise errors.Error(f"{self._where}: predict gave a {type(found).__name__}; return a dict of outputs")
        if missing := [spec.name for spec in self.outputs if spec.name not in found]:
            raise errors.Error(f"{self._where}: predict gave {sorted(found)}, without {missing[0]!r}")
        return {spec.name: fitting(spec, found[spec.name]) for spec in self.outputs}


def load(folder: Path, manifest: Manifest, device: str) -> Own:
    """The object that `entry` names, made. One that is not what it should be: Misconfigured."""
    return _made(folder, manifest)[0]


def inspect(folder: Path, manifest: Manifest, example: dict[str, Array]) -> Found:
    """What it says of itself, tried on the example, its own or one that is made up."""
    model, made = _made(folder, manifest)
    notes = [f"{type(made).__name__} of {manifest.file}"]
    own = getattr(made, "example", None)
    given = example or (dict(own()) if callable(own) else {})
    found = trial.look(model.predict, model.inputs, given, notes)
    if given and not example:
        found.notes = tuple(
            "the example is its own" if note == "the example is yours" else note for note in found.notes
        )
    _compare(model, found, manifest.file)
    return found


def _made(folder: Path, manifest: Manifest) -> tuple[Own, Any]:
    where = str(folder / manifest.file)
    name, _, what = manifest.entry.partition(":")
    module = _module(folder, name or manifest.file.removesuffix(".py").replace("/", "."))
    found = getattr(module, what, None) if what else _only(module, where)
    if found is None:
        raise errors.Misconfigured(
            f"{where}: there is no {what!r} in it; `entry` says file:class, such as ranker:Ranker"
        )
    made = found
    if isinstance(found, type):
        takes = [one for one in looking.signature(found).parameters.values() if one.default is one.empty]
        made = found(folder) if takes else found()
    predict = getattr(made, "predict", made)
    if not callable(predict):
        raise errors.Misconfigured(f"{where}: {what or type(made).__name__} has no method predict(self, inputs)")
    return Own(made if hasattr(made, "inputs") else module, predict, where), made


def _module(folder: Path, name: str) -> ModuleType:
    module = importlib.import_module(name)
    file = getattr(module, "__file__", None)
    if file is None or folder not in Path(file).parents:
        raise errors.Misconfigured(f"{folder}: {name!r} is already the name of {file or 'a module'}; call it otherwise")
    return module


def _only(module: ModuleType, where: str) -> Any:
    """The one thing of a module that can be a model."""
    found = [
        one
        for one in vars(module).values()
        if getattr(one, "__module__", "") == module.__name__ and isinstance(one, type) and hasattr(one, "predict")
    ]
    if not found and callable(getattr(module, "predict", None)):
        return module
    if len(found) != 1:
        raise errors.Misconfigured(
            f"{where}: {len(found)} classes in it have a method predict; say which: entry = 'file:Class'"
        )
    return found[0]


def _specs(made: Any, side: str, where: str) -> tuple[TensorSpec, ...]:
    said = getattr(made, side, None)
    if isinstance(said, Mapping) and said:
        return tuple(parse_spec(str(name), str(text)) for name, text in said.items())
    if isinstance(said, tuple | list) and said and all(isinstance(spec, TensorSpec) for spec in said):
        return tuple(said)
    raise errors.Misconfigured(f'{where}: it has no {side}; write {side} = {{"x": "FP32[-1,4]"}}, -1 for what is free')


def _compare(model: Own, found: Found, file: str) -> None:
    """What it says counts, where what came out has as many dimensions."""
    for said, came in zip(model.outputs, found.outputs, strict=True):
        fits = len(said.shape) == len(came.shape) and all(
            -1 in (a, b) or a == b for a, b in zip(said.shape, came.shape, strict=True)
        )
        if not fits:
            raise errors.Misconfigured(
                f"{file}: output {said.name!r} is {list(said.shape)} by its `outputs`, and {list(came.shape)} on the "
                "example"
            )
    if found.inputs == model.inputs:  # else trial has found that rows must come alone
        found.outputs = model.outputs
