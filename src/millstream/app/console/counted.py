"""The numbers of all processes together, by the name of their metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from millstream.meter import Meter, quantile

NOWHERE: Mapping[str, str] = {}


class Counted:
    """What the meter pages of an installation hold at one moment. `where`: labels that a series must have."""

    def __init__(self, meter: Meter) -> None:
        self._by: dict[str, list[dict[str, object]]] = {}
        for spec in meter.total().values():
            self._by.setdefault(str(spec["name"]), []).append(spec)

    def sum(self, name: str, where: Mapping[str, str] = NOWHERE) -> float:
        """All series of a counter or gauge together; 0.0 without any."""
        return float(sum(_values(spec)[0] for spec in self._of(name, where)))

    def level(self, name: str, where: Mapping[str, str] = NOWHERE) -> float | None:
        """As `sum`; None where no process has said anything."""
        return self.sum(name, where) if self._of(name, where) else None

    def by(self, name: str, label: str, where: Mapping[str, str] = NOWHERE) -> dict[str, float]:
        """The series that have a label, by its value."""
        found: dict[str, float] = {}
        for spec in self._of(name, where):
            value = labels_of(spec).get(label, "")
            found[value] = found.get(value, 0.0) + _values(spec)[0]
        return found

    def quantile(self, name: str, q: float, where: Mapping[str, str] = NOWHERE) -> float | None:
        """The q-quantile of a histogram; None where nothing was observed."""
        found = self._of(name, where)
        counts = [sum(column) for column in zip(*(_values(spec)[:-1] for spec in found), strict=False)]
        if not sum(counts):
            return None
        return quantile(tuple(cast("list[float]", found[0]["bounds"])), counts, q)

    def values(self, name: str, label: str) -> list[str]:
        """The values that a label has in the series of this name, in order."""
        return sorted({labels_of(spec)[label] for spec in self._of(name, NOWHERE) if label in labels_of(spec)})

    def _of(self, name: str, where: Mapping[str, str]) -> list[dict[str, object]]:
        return [spec for spec in self._by.get(name, ()) if labels_of(spec).items() >= where.items()]


def labels_of(spec: dict[str, object]) -> dict[str, str]:
    """The labels of a series."""
    return cast("dict[str, str]", spec["labels"])


def _values(spec: dict[str, object]) -> list[float]:
    return cast("list[float]", spec["values"])
