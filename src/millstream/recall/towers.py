"""Two towers at work: a vector of who asks, and the items whose vectors point there.

Rules of the room:
- An index has items' vectors by one version of the model, and names it. Who asks is told by the user's tower of that
  very version, and items born since by its tower of items: what is learnt of another version later waits for the next
  index.
- What a token is, features say, above this room: `Telling` is given by who builds the process.
- A user of whom nothing is known has a vector all the same: of their attributes, or of nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.repository import Repository
from millstream.models.runtimes.onnx import Onnx
from millstream.recall.ann import Ann
from millstream.recall.catalogue import Catalogue
from millstream.recall.cooccur import recent
from millstream.recall.scene import Found, Scene

Tokens = NDArray[np.uint32]
Vectors = NDArray[np.float32]
USERS: Final = "model.onnx"
"""The user's tower among the files of a version: takes `tokens` and `history`."""
ITEMS: Final = "items.onnx"
"""The tower of items, which takes `tokens`."""
VECTOR: Final = "vector"
"""What either gives, float32 [n, width]."""
_ROWS: Final = 4096  # in one call


class Telling(NamedTuple):
    """What features say of people and items, as tokens. `items`: of known items, uint32 [n, item_width]; `user`: of
    somebody with these attributes, uint32 [1, user_width]; `history`: of items' names, newest last, uint32 [1, h];
    `hash`: of the definition."""

    items: Callable[[Sequence[str]], Tokens]
    user: Callable[[str, Mapping[str, Any]], Tokens]
    history: Callable[[Sequence[str], int], Tokens]
    hash: str


class Towers:
    """Both towers of a version, one thread a call. `width`: of a vector; `history`: items that the user's looks at."""

    def __init__(self, version: str, users: Onnx, items: Onnx) -> None:
        self.version, self._users, self._items = version, users, items
        shapes = {spec.name: spec.shape for spec in users.inputs}
        self.user_width, self.history = shapes["tokens"][1], shapes["history"][1]
        self.width = users.outputs[0].shape[1]

    @classmethod
    def open(cls, repository: Repository, model: str, version: str, definition: str) -> Self:
        """Those of a version, whose files are as they were put. It is gone: NotFound; a file is damaged: Corrupt; it is
        no such version, or takes tokens of another [features] than `definition`: Misconfigured."""
        manifest, folder = repository.verify(model, version), repository.folder(model, version)
        if manifest.features != definition or ITEMS not in manifest.digests or USERS not in manifest.digests:
            raise errors.Misconfigured(
                f"{model} {version}: it is no pair of towers over these [features] ({definition}); "
                "train one: millstream train offline --model towers"
            )
        return cls(version, Onnx(folder / USERS), Onnx(folder / ITEMS))

    def users(self, tokens: Tokens, history: Tokens) -> Vectors:
        """Vectors [n, width] of users."""
        return self._users.predict({"tokens": tokens, "history": history})[VECTOR].astype(np.float32, copy=False)

    def items(self, tokens: Tokens) -> Vectors:
        """Vectors [n, width] of items; without the GIL, thousands at a time."""
        found = np.empty((len(tokens), self.width), np.float32)
        for at in range(0, len(tokens), _ROWS):
            found[at : at + _ROWS] = self._items.predict({"tokens": tokens[at : at + _ROWS]})[VECTOR]
        return found


class Retrieval:
    """Items whose vectors point where the user's does. `ann` searches vectors by the tower of items of `towers`."""

    name = "towers"

    def __init__(self, ann: Ann, towers: Towers, telling: Telling, catalogue: Catalogue) -> None:
        if ann.width != towers.width:
            raise errors.Corrupt(f"towers {towers.version}: vectors of {towers.width}, in the index of {ann.width}")
        self._ann, self._towers, self._telling, self._catalogue = ann, towers, telling, catalogue

    def recall(self, scene: Scene, k: int) -> Found:
        """Scores: inner products."""
        liked = recent(scene.history, most=self._towers.history)[0][::-1]
        liked = liked[(liked >= 0) & (liked < self._catalogue.count)]
        history = self._telling.history(self._catalogue.names(liked), self._towers.history)
        try:
            tokens = self._telling.user(scene.user, scene.attributes)
        except errors.BadInput:  # attributes that no row can hold: they are as unknown as to the ranker
            tokens = self._telling.user(scene.user, {})
        return self._ann.search(self._towers.users(tokens, history)[0], k, scene.allowed)
