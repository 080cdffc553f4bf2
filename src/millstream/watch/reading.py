"""What monitors read: a quantity of something, and its value now; and how readings lie in the log.

Rules of the room:
- A key names a quantity (watch/quantities.py) and what it is of, by labels in order. As text it is written as a series
  of Prometheus is, so that a person finds it there too.
- A value that is not finite is no reading: it is left out and counted where it was made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millstream import types
from millstream.errors import Corrupt

KEYED: Final = 60
"""Of so many records of readings one has the keys although they are those of the record before, so that a reader need
not begin at the beginning."""
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(,|$)')
_ESCAPED = {"\\": r"\\", '"': r"\"", "\n": r"\n"}


class Key(NamedTuple):
    """A quantity of something. Make it by `of`, which puts labels in order; those without a value are left out."""

    quantity: str
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, quantity: str, labels: Mapping[str, str]) -> Key:
        """The key of these labels."""
        return cls(quantity, tuple(sorted((name, value) for name, value in labels.items() if value)))

    def get(self, label: str) -> str:
        """The value of a label, "" where it has none."""
        return next((value for name, value in self.labels if name == label), "")

    def __str__(self) -> str:
        if not self.labels:
            return self.quantity
        said = ",".join(f'{name}="{"".join(_ESCAPED.get(c, c) for c in value)}"' for name, value in self.labels)
        return f"{self.quantity}{{{said}}}"


def parse(text: str) -> Key:
    """The key that is written so. Corrupt."""
    quantity, brace, rest = text.partition("{")
    labels, at = [], 0
    while brace and at < len(rest) - 1:
        if (found := _LABEL.match(rest[:-1], at)) is None:
            raise Corrupt(f"{text!r} is no key of a reading")
        value = re.sub(r"\\(.)", lambda escaped: "\n" if escaped[1] == "n" else escaped[1], found[2])
        labels.append((found[1], value))
        at = found.end()
    return Key(quantity, tuple(labels))


class Scribe:
    """Makes the records of one writer."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._since = KEYED

    def record(self, at: float, readings: Mapping[Key, float]) -> types.Readings:
        """The record of what was read at `at`, unix seconds."""
        keys = list(readings)
        self._since += 1
        named = keys != self._keys or self._since >= KEYED
        if named:
            self._keys, self._since = keys, 0
        values = np.fromiter(readings.values(), "<f8", len(keys)).tobytes()
        return types.Readings(at=at, values=values, keys=[str(key) for key in keys] if named else [])

    def lost(self) -> None:
        """The last record did not get into the log: the next one has its keys, so that none is read by older ones."""
        self._since = KEYED


class Reader:
    """Reads the records of one writer, in their order."""

    def __init__(self) -> None:
        self._keys: tuple[Key, ...] | None = None
        self._texts: list[str] = []

    def read(self, record: types.Readings) -> dict[Key, float] | None:
        """What was read; None before the first record that has its keys. Corrupt."""
        row = self.row(record)
        return None if row is None else dict(zip(row[0], row[1].tolist(), strict=True))

    def row(self, record: types.Readings) -> tuple[tuple[Key, ...], NDArray[np.float64]] | None:
        """As `read`: the keys, the same tuple as long as they are the same, and float64, one each."""
        if record.keys and (record.keys != self._texts or self._keys is None):
            self._texts, self._keys = record.keys, tuple(map(parse, record.keys))
        values = np.frombuffer(record.values, "<f8")
        if not len(values):
            return (), values
        if self._keys is None:
            return None
        if len(values) != len(self._keys):
            self._keys = None
            raise Corrupt(f"readings of {record.at}: {len(values)} values of other keys than those before")
        return self._keys, values


def finite(readings: Iterable[tuple[Key, float]]) -> tuple[dict[Key, float], int]:
    """Those that are numbers, and how many are not."""
    kept, odd = {}, 0
    for key, value in readings:
        if math.isfinite(value):
            kept[key] = value
        else:
            odd += 1
    return kept, odd
