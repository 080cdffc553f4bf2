"""A deep ranker as the file that is served: ONNX, with inputs `tokens` and, for DIN, `history`.

Rules of the room:
- The file takes tokens as serving makes them, and has the network as it was trained: what finds a token's place is in
  the file, so it is small where few tokens are known, and a strange one is as none, as in training.
- It gives `probability`, of the task that comes first, and each head by its own name.
- It is proved before anybody has it: ONNX Runtime and the network answer the same rows, or it is refused; so it is with
  one row of `history` for all of them, which spares repeating it (`once` of a manifest's [batching]).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from millstream.errors import Misconfigured
from millstream.learn.deep.fit import Floats, Learnt, told
from millstream.learn.deep.rows import Shown
from millstream.learn.deep.settings import PRIMARY
from millstream.learn.deep.vocabulary import slots
from millstream.models.runtimes.onnx import Onnx
from millstream.types import Array

FILE: Final = "model.onnx"
TOLERANCE: Final = 1e-5
SAMPLES: Final = 256  # rows that are compared, at most


def to_onnx(learnt: Learnt, shown: Shown) -> tuple[bytes, float]:
    """The file, and the largest difference of its answers over rows of `shown`, relative beyond 1. They differ by more
    than 1e-5: Misconfigured."""
    served = Served(learnt)
    history = learnt.network.shape.history
    widths = {"tokens": learnt.network.shape.width} | ({"history": history} if history else {})
    proto = exported(served, widths, served.names)
    if history:  # a size of its own: the exporter takes it for that of `tokens`, and there may be one row for all
        proto.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "histories"
        del proto.graph.value_info[:]  # where that is written, too
    model = proto.SerializeToString()
    return model, _proved(model, learnt, shown)


def exported(module: Any, widths: dict[str, int], names: list[str]) -> Any:
    """The ONNX graph of a module over tokens: inputs uint32 [n, width] by name, and outputs called `names`."""
    example = tuple(torch.from_numpy(np.ones((3, width), np.uint32)) for width in widths.values())
    with _quiet():
        made = torch.onnx.export(
            module, example, dynamo=True, verbose=False, input_names=list(widths), output_names=names,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * len(example),
        )  # fmt: skip
    return made.model_proto


class Served(nn.Module):  # type: ignore[misc]
    """A network over tokens. `names` of what it gives, in order."""

    def __init__(self, learnt: Learnt) -> None:
        super().__init__()
        self._learnt, self._bits, self.network = learnt, learnt.vocabulary.bits, learnt.network
        self.names = [PRIMARY, *(head.name for head in learnt.heads)]
        self.register_buffer("places", torch.from_numpy(learnt.vocabulary.of_slots.astype(np.int32)))
        self.eval()

    def forward(self, tokens: Any, history: Any = None) -> Any:
        """`probability` and every head, [n] each, of `tokens` uint32 [n, width] and `history` uint32 [n, h]."""
        found = told(
            self.network(self._placed(tokens), None if history is None else self._placed(history)), self._learnt
        )
        return (found[:, 0].clone(), *(found[:, at] for at in range(found.shape[1])))

    def _placed(self, tokens: Any) -> Any:
        return self.places[slots(tokens.to(torch.int64), self._bits)].to(torch.int64)


def _proved(model: bytes, learnt: Learnt, shown: Shown) -> float:
    random = np.random.default_rng(0)
    rows = np.sort(random.choice(len(shown), min(SAMPLES, len(shown)), replace=False))
    tokens, history = shown.tokens(rows), shown.histories(rows)
    if not len(rows):
        tokens, history = (np.zeros((1, block.shape[1]), np.uint32) for block in (tokens, history))
    mixed = random.permuted(tokens, axis=0)  # rows that nobody saw, too
    tokens, history = np.concatenate((tokens, mixed)), np.concatenate((history, history))
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / FILE
        file.write_bytes(model)
        runtime = Onnx(file)
    given: dict[str, Array] = {"tokens": tokens}
    if learnt.network.shape.history:
        given["history"] = history
    worst = _apart(runtime.predict(given), learnt.outputs(tokens, history), learnt)
    if learnt.network.shape.history:
        single = runtime.predict(given | {"history": history[:1]})
        worst = max(worst, _apart(single, learnt.outputs(tokens, np.repeat(history[:1], len(tokens), axis=0)), learnt))
    if not worst <= TOLERANCE:
        raise Misconfigured(
            f"the ONNX file answers otherwise than the network, by up to {worst:.2g}; nothing was written. "
            "Take another version of torch or onnxscript"
        )
    return worst


def _apart(got: dict[str, Array], expected: Floats, learnt: Learnt) -> float:
    """The largest difference of outputs, relative beyond 1."""
    worst = 0.0
    for at, name in enumerate([PRIMARY, *(head.name for head in learnt.heads)]):
        true = expected[:, max(0, at - 1)]
        apart = np.abs(np.asarray(got[name], np.float64) - true) / np.maximum(1.0, np.abs(true))
        worst = max(worst, float(apart.max(initial=0.0)))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages that are nobody's concern here."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
