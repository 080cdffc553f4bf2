"""Features of entities for a back end that ranks by itself: a request's rows out of the files that `learn` keeps.

Rules of the room:
- The files of a set appear when `learn` has made them, maybe long after this process started. They are looked for when
  somebody asks, once a second at most; until their writer has said as of when they are, a read is refused (503): rows
  of nobody would look like users whom nobody knows.
- Whatever is no item is known by the name that the log has for it: a pseudonym, where the name is an address or a
  number of a person.
- A large read is made beside the event loop, as it would hold up the others: many rows, or much text of names.
- A share of the reads is logged, so that `millstream features verify` can recompute them. A log that is full or gone
  stops no answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.clock import Clock
from millstream.features.define import SECOND, Transform
from millstream.features.online import ROWS_MAX, Reader
from millstream.features.pipeline import folder_of, stores_of
from millstream.features.registry import Registry
from millstream.features.sets import FeatureSet
from millstream.guard.pii import pseudonym
from millstream.meter import Meter
from millstream.store.rows import RowStore
from millstream.types import FeaturesRead

LOOK_S: Final = 1.0
ROWS_HERE_MAX, NAMES_HERE_MAX = 2048, 65_536
"""Rows, and bytes of their names, of a read that is made on the event loop."""
NAME_BYTES_MAX: Final = 512
LOGGED_MAX: Final = 64  # rows of a read
_SECONDS: Final = (20e-6, 50e-6, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
logger = logging.getLogger("millstream.flows")
Names = Mapping[str, Sequence[str]]
Numbers = Mapping[str, Sequence[float | None]]
Stores = Mapping[str, RowStore]


class Read(msgspec.Struct, frozen=True):
    """What was read of a set. `values` float32 or float64 [n, columns], NaN and token 0 where missing; `missing`: of
    each name that was asked for, by kind of entity, whether it has no row; as of `at`, of rows as of `as_of`, unix
    microseconds."""

    set: str
    hash: str
    columns: tuple[str, ...]
    datatype: str
    values: NDArray[Any]
    missing: dict[str, NDArray[np.bool_]]
    at: int
    as_of: int
    age_s: float
    stale: bool


class Rows:
    """One set's rows, looked for until they are there. `stores`: opens them, or raises NotFound."""

    def __init__(self, features: FeatureSet, stores: Callable[[FeatureSet], Stores], clock: Clock) -> None:
        self.features = features
        self._stores, self._clock = stores, clock
        self._reader: Reader | None = None
        self._look_at, self._why = clock.monotonic(), errors.Error("nobody has looked yet")

    def reader(self) -> Reader:
        """Who reads them. Busy: they are not there yet; Misconfigured, Corrupt: they cannot be read."""
        if self._reader is None:
            if (now := self._clock.monotonic()) < self._look_at:
                raise self._why.with_traceback(None)  # it would grow by a line with each
            self._look_at = now + LOOK_S
            try:
                self._reader = self._opened()
            except errors.Error as error:
                self._why = error
                raise
        return self._reader

    def _opened(self) -> Reader:
        try:
            stores = self._stores(self.features)
            if all(store.vouched() for store in stores.values()):
                return Reader(self.features, stores)
        except errors.NotFound:
            pass
        raise errors.Busy(
            f"the rows of feature set {self.features.name} ({self.features.hash}) are not there yet; the role learn "
            "makes them of what the log holds: ask again, or see whether it runs",
            LOOK_S,
        )


class Features:
    """`call(set, entities, request)` is a future of what was read. `root`: the folder of all rows; `stale_s_max`: rows
    as of longer ago are said to be stale; `log` is told of a share `log_share` of the reads; `name_bytes_max`: the
    longest name, bytes of UTF-8."""

    def __init__(
        self,
        registry: Registry,
        root: Path,
        clock: Clock,
        meter: Meter,
        stale_s_max: float,
        log: Callable[[FeaturesRead], None] | None = None,
        log_share: float = 0.0,
        name_bytes_max: int = NAME_BYTES_MAX,
    ) -> None:
        self._registry, self._clock, self._stale_s_max = registry, clock, stale_s_max
        self._log, self._log_share, self._random = log, log_share, random.Random()
        self._sets = {one.name: _Set(one, root, clock, meter, name_bytes_max) for one in registry.sets.values()}

    def call(self, name: str, entities: Names, request: Numbers) -> asyncio.Future[Read]:
        """The features of n rows: `entities` has n names of each kind, or one that all rows share; `request` what
        transforms take of it. NotFound, BadInput, TooLarge; Busy while the rows are not there."""
        one = self._set(name)
        rows, size = one.check(entities, request)
        if rows > ROWS_HERE_MAX or size > NAMES_HERE_MAX:
            return asyncio.ensure_future(self._beside(one, entities, request))
        done: asyncio.Future[Read] = asyncio.get_running_loop().create_future()
        done.set_result(self.read(name, entities, request))
        return done

    def read(self, name: str, entities: Names, request: Numbers) -> Read:
        """As `call`, at once: for a program that has no other work."""
        one, begun = self._set(name), self._clock.monotonic()
        one.check(entities, request)
        found = self._read(one, one.rows.reader(), entities, request)
        one.count(found, self._clock.monotonic() - begun)
        self._note(found, entities, request)
        return found

    async def _beside(self, one: _Set, entities: Names, request: Numbers) -> Read:
        begun, reader = self._clock.monotonic(), one.rows.reader()
        found = await asyncio.to_thread(self._read, one, reader, entities, request)
        one.count(found, self._clock.monotonic() - begun)
        self._note(found, entities, request)
        return found

    def _note(self, found: Read, entities: Names, request: Numbers) -> None:
        """Log the first rows of the read, if it is one of the sample."""
        if self._log is None or self._random.random() >= self._log_share:
            return
        numbers = {name: [math.nan if one is None else one for one in values] for name, values in request.items()}
        self._log(
            FeaturesRead(
                features=found.set,
                hash=found.hash,
                at=found.at,
                as_of=found.as_of,
                keys={kind: list(names[:LOGGED_MAX]) for kind, names in entities.items()},
                values=found.values[:LOGGED_MAX].astype("<f8").tobytes(),
                request={name: values[:LOGGED_MAX] for name, values in numbers.items()},
            )
        )

    def _set(self, name: str) -> _Set:
        return self._sets[self._registry.find(name).name]

    def _read(self, one: _Set, reader: Reader, entities: Names, request: Numbers) -> Read:
        known = {
            kind: names if kind == "item" else [pseudonym(name) for name in names] for kind, names in entities.items()
        }
        given = {name: np.array(values, np.float64) for name, values in request.items()}  # None is NaN
        found = reader.read(known, int(self._clock.now() * SECOND), given)
        missing = {kind: gone[: len(entities[kind])] for kind, gone in found.missing.items()}
        features = one.rows.features
        return Read(
            features.name,
            features.hash,
            found.columns,
            features.datatype,
            found.values,
            missing,
            found.at,
            found.as_of,
            found.age_s,
            found.age_s > self._stale_s_max,
        )


class RankRows:
    """The feature set that a ranker's rows take, as it is now. Ranking waits for nothing: where the rows are not there
    yet, are older than `stale_s_max` (`learn` is gone, say) or cannot be read, there is no matrix: that is counted, and
    said the first time. `log` is told of a share `log_share` of the reads."""

    def __init__(
        self,
        features: FeatureSet,
        root: Path,
        clock: Clock,
        meter: Meter,
        stale_s_max: float,
        log: Callable[[FeaturesRead], None] | None = None,
        log_share: float = 0.0,
    ) -> None:
        self._log, self._log_share, self._random = log, log_share, random.Random()
        self._rows = Rows(features, lambda one: stores_of(one, folder_of(one, root), 1, write=False), clock)
        self._clock, self._stale_s_max = clock, stale_s_max
        self._without = {
            cause: meter.counter(
                "millstream_feature_rankings_without_total", "Rankings without their feature set.",
                {"set": features.name, "cause": cause},
            )
            for cause in ("absent", "stale", "failed")
        }  # fmt: skip

    def matrix(self, user: str, items: Sequence[str]) -> NDArray[Any] | None:
        """Float [len(items), columns] of a user, by the name that the log has, beside each item, or None."""
        try:
            names = {kind: [user] if kind == "user" else items for kind in self._rows.features.entities}
            found = self._rows.reader().read(names, int(self._clock.now() * SECOND))
        except errors.Error as error:
            self._without_it("absent" if isinstance(error, errors.Busy) else "failed", str(error))
            return None
        if found.age_s > self._stale_s_max:
            self._without_it("stale", f"its rows are {found.age_s:.0f} s old; see whether the role learn runs")
            return None
        if self._log is not None and self._random.random() < self._log_share:
            keys = {kind: list(of[:LOGGED_MAX]) for kind, of in names.items()}
            self._log(
                FeaturesRead(
                    features=self._rows.features.name,
                    hash=self._rows.features.hash,
                    at=found.at,
                    as_of=found.as_of,
                    keys=keys,
                    values=found.values[:LOGGED_MAX].astype("<f8").tobytes(),
                )
            )
        return np.broadcast_to(found.values, (len(items), found.values.shape[1]))

    def _without_it(self, cause: str, why: str) -> None:
        if not self._without[cause].value:
            logger.warning("rankings go on without feature set %s: %s", self._rows.features.name, why)
        self._without[cause].add()


class _Set:
    """A set, what it takes, and its counters."""

    def __init__(self, features: FeatureSet, root: Path, clock: Clock, meter: Meter, name_bytes_max: int) -> None:
        self._name_bytes_max = name_bytes_max
        self.rows = Rows(features, lambda one: stores_of(one, folder_of(one, root), 1, write=False), clock)
        made = [one for one in features.ordered if isinstance(one, Transform)]
        self._request = tuple(dict.fromkeys(name for one in made for name in one.request))
        self._entities = features.entities
        labels = {"set": features.name}
        self._reads = meter.counter("millstream_feature_reads_total", "Reads of features.", labels)
        self._seconds = meter.histogram(
            "millstream_feature_read_seconds", "A read of features, from names to their matrix.", labels, _SECONDS
        )
        self._missing = {
            kind: meter.counter(
                "millstream_feature_missing_total", "Names that were read and have no row.", labels | {"entity": kind}
            )
            for kind in self._entities
        }

    def check(self, entities: Names, request: Numbers) -> tuple[int, int]:
        """How many rows these are, and the bytes of their names. BadInput: what the set has no use for, as a misspelt
        name would be a value that is missing, and a name that is too long; TooLarge."""
        for given, known, what in ((entities, self._entities, "kind of entity"), (request, self._request, "value")):
            if unknown := [name for name in given if name not in known]:
                raise errors.BadInput(
                    f"feature set {self.rows.features.name} takes no {what} {unknown[0][:80]!r} of a request; it takes "
                    f"{', '.join(known) or 'none'}"
                )
        n = max(map(len, (*entities.values(), *request.values())), default=0)
        if n > ROWS_MAX:
            raise errors.TooLarge(f"{n} rows in one request, at most {ROWS_MAX} are read at once; split it")
        return n, sum(self._bytes(kind, names) for kind, names in entities.items())

    def _bytes(self, kind: str, names: Sequence[str]) -> int:
        """The bytes of all names together, after each was measured."""
        sizes = [len(name) if name.isascii() else len(name.encode(errors="surrogatepass")) for name in names]
        if sizes and (longest := max(sizes)) > self._name_bytes_max:
            raise errors.BadInput(
                f"entities.{kind}[{sizes.index(longest)}]: {longest} bytes, a name has {self._name_bytes_max} at most"
            )
        return sum(sizes)

    def count(self, found: Read, seconds: float) -> None:
        """Meter a read."""
        self._reads.add()
        self._seconds.observe(seconds)
        for kind, gone in found.missing.items():
            if gone.any():
                self._missing[kind].add(int(gone.sum()))
