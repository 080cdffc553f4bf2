"""Two towers as the files that are served: ONNX, `model.onnx` for users and `items.onnx` for items.

Rules of the room:
- The files take tokens as serving makes them, as those of deep rankers do, and give `vector`, float32 [n, width].
- They are proved before anybody has them: ONNX Runtime and the network answer the same rows, or they are refused.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from millstream.errors import Misconfigured
from millstream.learn.deep.export import TOLERANCE, exported
from millstream.learn.deep.vocabulary import slots
from millstream.learn.towers.fit import Learnt
from millstream.learn.towers.rows import Likes, Tokens
from millstream.models.runtimes.onnx import Onnx
from millstream.recall.towers import ITEMS, USERS, VECTOR

SAMPLES: Final = 256  # rows that are compared, at most


def to_onnx(learnt: Learnt, likes: Likes) -> tuple[dict[str, bytes], float]:
    """The files by name, and the largest difference of their answers over rows of `likes`, relative beyond 1. They
    differ by more than 1e-5: Misconfigured."""
    rows = np.arange(min(SAMPLES, len(likes)))
    people, items = likes.known.people[likes.whose[rows]], likes.known.items[likes.what[rows]]
    history = likes.histories(rows, learnt.network.shape.history)
    graphs = {
        USERS: exported(_Users(learnt), {"tokens": people.shape[1], "history": history.shape[1]}, [VECTOR]),
        ITEMS: exported(_Items(learnt), {"tokens": items.shape[1]}, [VECTOR]),
    }
    files = {name: graph.SerializeToString() for name, graph in graphs.items()}
    apart = max(
        _apart(files[USERS], {"tokens": people, "history": history}, learnt.users(people, history)),
        _apart(files[ITEMS], {"tokens": items}, learnt.items(items)),
    )
    if not apart <= TOLERANCE:
        raise Misconfigured(
            f"the ONNX files answer otherwise than the towers, by up to {apart:.2g}; nothing was written. "
            "Take another version of torch or onnxscript"
        )
    return files, apart


class _Served(nn.Module):  # type: ignore[misc]
    """A tower over tokens."""

    def __init__(self, learnt: Learnt) -> None:
        super().__init__()
        self._bits, self.network = learnt.vocabulary.bits, learnt.network
        self.register_buffer("places", torch.from_numpy(learnt.vocabulary.of_slots.astype(np.int32)))
        self.eval()

    def _placed(self, tokens: Any) -> Any:
        return self.places[slots(tokens.to(torch.int64), self._bits)].to(torch.int64)


class _Users(_Served):
    def forward(self, tokens: Any, history: Any) -> Any:
        return self.network.user(self._placed(tokens), self._placed(history))


class _Items(_Served):
    def forward(self, tokens: Any) -> Any:
        return self.network.item(self._placed(tokens))


def _apart(file: bytes, given: dict[str, Tokens], expected: Any) -> float:
    with tempfile.TemporaryDirectory() as aside:
        path = Path(aside) / USERS
        path.write_bytes(file)
        got = Onnx(path).predict(dict(given))[VECTOR]
    return float((np.abs(got - expected) / np.maximum(1.0, np.abs(expected))).max(initial=0.0))
