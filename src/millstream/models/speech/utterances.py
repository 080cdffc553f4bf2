"""Slots of a streaming recogniser whose state is an object that nobody can copy: it is made again from the audio.

Rules of the room:
- A slot keeps the audio of its utterance, in the pieces in which it came. What is saved is that audio; what is restored
  hears it once more with its next step, which costs what it cost before.
- A step that fails leaves every slot as it was: those that had moved hear their audio again.
- Rows are computed one after the other, so none depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.models.speech.heard import Heard
from millstream.models.speech.tensors import RATE, column, sounds
from millstream.types import Array

UTTERANCE_S_MAX: Final = 120.0
"""Audio of one utterance, without `end`."""
Samples = NDArray[np.float32]


class Utterance(Protocol):
    """What is heard between a beginning and an end."""

    def feed(self, audio: Samples, end: bool) -> tuple[Heard, int]:
        """All words so far, and how many of the first of them will not change. After `end` nothing is fed."""
        ...

    def drop(self) -> None:
        """It is not needed any more, whether it has ended or not."""
        ...


class Utterances:
    """Slots over `begin()`, which gives a fresh utterance and may be called from several threads."""

    def __init__(self, begin: Callable[[], Utterance], count: int) -> None:
        self._begin = begin
        self._open: list[Utterance | None] = [None] * count
        self._kept: list[tuple[Samples, ...]] = [()] * count

    def step(self, inputs: dict[str, Array], slots: NDArray[np.intp]) -> dict[str, Array]:
        """See models.model.Slots. BadInput: an utterance of over UTTERANCE_S_MAX."""
        rows, numbers, ends = sounds(inputs), slots.tolist(), inputs["end"].tolist()
        for slot, row in zip(numbers, rows, strict=True):
            if len(row) + sum(map(len, self._pieces(slot))) > UTTERANCE_S_MAX * RATE:
                raise errors.BadInput(f"an utterance lasts over {UTTERANCE_S_MAX:g} s; end it (`end`) before")
        heard: list[tuple[Heard, int]] = []
        moved: list[tuple[int, Utterance]] = []
        try:
            for slot, row, end in zip(numbers, rows, ends, strict=True):
                moved.append((slot, self._utterance(slot)))
                heard.append(moved[-1][1].feed(row, end))
        except BaseException:
            for slot, utterance in moved:
                self._forget(slot, utterance)
            raise
        for (slot, utterance), row, end in zip(moved, rows, ends, strict=True):
            if slot < 0 or end:
                self._forget(slot, utterance)
            if slot >= 0:
                self._kept[slot] = () if end else (*self._kept[slot], row.copy())
        committed = [count for _, count in heard]
        return {"heard": column(one for one, _ in heard), "committed": np.array(committed, np.int32)}

    def reset(self, slots: NDArray[np.intp]) -> None:
        """See models.model.Slots."""
        for slot in slots.tolist():
            if (utterance := self._open[slot]) is not None:
                self._forget(slot, utterance)
            self._kept[slot] = ()

    def save(self, slot: int) -> dict[str, Array]:
        """See models.model.Slots: `audio` float32 [n] so far, `pieces` int32 [k], the samples of each step."""
        pieces = self._kept[slot]
        audio = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
        return {"audio": audio, "pieces": np.array([len(piece) for piece in pieces], np.int32)}

    def restore(self, slot: int, saved: dict[str, Array]) -> None:
        """See models.model.Slots."""
        audio, pieces = saved.get("audio"), saved.get("pieces")
        if audio is None or pieces is None or len(saved) != 2 or audio.dtype != np.float32 or pieces.dtype != np.int32:
            raise ValueError("the saved state has no 'audio' of float32 [n] and 'pieces' of int32 [k]")
        sizes: list[int] = pieces.ravel().tolist()
        if audio.ndim != 1 or pieces.ndim != 1 or any(size < 0 for size in sizes) or sum(sizes) != len(audio):
            raise ValueError("the saved state's 'pieces' do not make up its 'audio'")
        self.reset(np.array([slot]))
        parts = np.split(np.array(audio, np.float32), np.cumsum(sizes)[:-1]) if sizes else []
        self._kept[slot] = tuple(parts)

    def _pieces(self, slot: int) -> tuple[Samples, ...]:
        return self._kept[slot] if slot >= 0 else ()

    def _utterance(self, slot: int) -> Utterance:
        """The slot's utterance where it stands: what was lost has heard its audio again."""
        if slot >= 0 and (there := self._open[slot]) is not None:
            return there
        made = self._begin()
        try:
            for piece in self._pieces(slot):
                made.feed(piece, False)
        except BaseException:
            made.drop()
            raise
        if slot >= 0:
            self._open[slot] = made
        return made

    def _forget(self, slot: int, utterance: Utterance) -> None:
        if slot >= 0:
            self._open[slot] = None
        utterance.drop()
