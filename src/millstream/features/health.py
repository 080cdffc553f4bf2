"""Whether the rows are what they should be: a sample of them is read again each minute, as serving reads them.

Rules of the room:
- What is read is compared with the state, byte by byte; a row that differs is counted, said and written again.
- How many values are missing, and where the others lie, is told for every column of the set from the same sample.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Final

import numpy as np

from millstream import errors
from millstream.features.define import span
from millstream.features.events import Times
from millstream.features.matrix import Columns
from millstream.features.plan import Values
from millstream.features.sets import FeatureSet
from millstream.features.state import State
from millstream.meter import Meter
from millstream.store.rows import RowStore

SAMPLE: Final = 256
QUANTILES: Final = (0.1, 0.5, 0.9)
logger = logging.getLogger(__name__)


class Health:
    """Looks at the rows of one feature set."""

    def __init__(self, features: FeatureSet, meter: Meter, randomness: random.Random | None = None) -> None:
        self._features, self._random = features, randomness or random.Random()
        labels = {"set": features.name}
        self._checked = meter.counter("millstream_feature_rows_checked_total", "Rows of features read again.", labels)
        self._wrong = meter.counter(
            "millstream_feature_rows_wrong_total", "Rows of features that were not what their state says.", labels
        )
        self._said = False
        self._columns, self._expire = Columns(features), span(features.ttl) > 0
        kept = [(name, labels | {"feature": name}) for name in features.columns]
        self._missing = {
            name: meter.gauge("millstream_feature_missing_share", "Share of rows whose value is missing.", one)
            for name, one in kept
        }
        self._spread = {
            (name, q): meter.gauge(
                "millstream_feature_quantile", "Where the values of a feature lie.", one | {"q": str(q)}
            )
            for name, one in kept
            for q in QUANTILES
        }

    def look(self, state: State, stores: Mapping[str, RowStore], at: int) -> dict[str, Times]:
        """Read a sample of rows that were written as of `at` (microseconds) or hold until then; the places of those
        that are wrong, by kind of entity."""
        wrong: dict[str, Times] = {}
        values: dict[str, Values] = {}
        for name, table in state.entities.items():
            count = table.places.count
            places = np.sort(np.array(self._random.sample(range(count), min(SAMPLE, count)), np.int64))
            stored = table.stored(places, at)[0]
            found = stores[name].get(table.places.keys[places])
            odd = (found.rows != table.plan.pack(stored)).any(axis=1)
            if self._expire:  # what nothing happened to for so long has no row any more
                odd &= found.written != 0
            self._checked.add(len(places))
            if odd.any():
                self._wrong.add(int(odd.sum()))
                logger.error(
                    "feature set %s: %d of %d %s rows are not what their state says; they are written again",
                    self._features.name, int(odd.sum()), len(places), name,
                )  # fmt: skip
            wrong[name] = places[odd]
            values[name] = table.plan.finish(stored, at)
        self._tell(values)
        return wrong

    def _tell(self, values: Mapping[str, Values]) -> None:
        """Say how the columns lie that need nothing of a request, over one entity of each kind at a time."""
        n = min((len(one) for one in values.values()), default=0)
        if not n or self._columns.request:
            return
        try:
            matrix = self._columns.make({name: one[:n] for name, one in values.items()}, {}, n)
        except errors.Error as error:  # a transform of the user's: it must not stop who keeps the rows
            if not self._said:
                self._said = True
                logger.error("feature set %s: its columns cannot be looked at: %s", self._features.name, error)
            return
        tokens = {f"{one.name}" for one in self._features.features if one.datatype == "UINT32"}
        for at, name in enumerate(self._features.columns):
            column = matrix[:, at]
            token = name in tokens or name.rpartition("_")[0] in tokens
            known = column[column != 0] if token else column[~np.isnan(column)]
            self._missing[name].set(1.0 - len(known) / n)
            if len(known) and not token:
                for q, value in zip(QUANTILES, np.quantile(known, QUANTILES).tolist(), strict=True):
                    self._spread[name, q].set(value)
