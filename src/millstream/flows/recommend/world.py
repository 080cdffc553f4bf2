"""What a process that makes lists knows of items and people, and how a request looks in it.

Rules of the room:
- It is kept current from the log by `live`, on the event loop; paths read it from threads.
- Attributes of a user and the context of a request are two places of one thing: the context counts where it has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millstream.errors import Misconfigured, NotFound
from millstream.flows.recommend.placement import QUOTA_MAX, Filtering, PathSettings
from millstream.flows.rerank import Rules, Slate, narrow
from millstream.guard.tenants import outside
from millstream.meter import Meter
from millstream.recall.attributes import texts
from millstream.recall.catalogue import Catalogue
from millstream.recall.filters import Filters, gone
from millstream.recall.filters import Rule as Filter
from millstream.recall.live import Live
from millstream.recall.scene import History, Numbers, Path, Scene
from millstream.recall.shards import Scattered, Shards
from millstream.recall.union import Recall
from millstream.types import Ask

LIKENESS = ("similar", "tags", "item_cf", "user_cf", "factors", "towers")
"""Paths that go by what was liked; the others know what is popular, new, or asked for."""
COLUMNS = ("category", "author", "created", "bid", "quality", "impressions", "embedding")
"""Columns of a slate that the catalogue has under the same name."""


class World:
    """`paths`: of recall, by name. Where there are tenants it is one's world: no other's items and people are in it."""

    def __init__(
        self, catalogue: Catalogue, filters: Filters, live: Live, paths: Mapping[str, Path], meter: Meter,
        shards: Shards | None = None,
    ) -> None:  # fmt: skip
        """`shards`: who search the paths that are Elsewhere."""
        self._shards = shards
        self.catalogue, self.filters, self.live, self.paths = catalogue, filters, live, paths
        self.tenant = live.tenant
        self._meter = meter
        self._recalls: list[Recall | Scattered] = []

    def recall(self, placement: str, wanted: Mapping[str, PathSettings]) -> Recall | Scattered:
        """The paths of a placement; all there are where it names none. Misconfigured for one that is not here."""
        if unknown := [name for name in wanted if name not in self.paths]:
            of = f"tenants.{self.tenant}." if self.tenant else ""
            where, there = f"recommend.{of}placements.{placement}.paths", ", ".join(self.paths)
            raise Misconfigured(f"{where}: there is no path {unknown[0]!r}; there are: {there}")
        chosen = (
            {"given": PathSettings(quota=QUOTA_MAX), **wanted} if wanted else dict.fromkeys(self.paths, PathSettings())
        )
        return self._asking({name: of for name, of in chosen.items() if name in self.paths})

    def likeness(self, wanted: Mapping[str, PathSettings]) -> Recall | Scattered:
        """Of the paths of a placement, those that go by what was liked: for items like one."""
        chosen = {name: wanted.get(name, PathSettings()) for name in self.paths if name in LIKENESS}
        return self._asking(chosen)

    def _asking(self, chosen: Mapping[str, PathSettings]) -> Recall | Scattered:
        paths = [(self.paths[name], of.quota, of.deadline_ms / 1e3) for name, of in chosen.items()]
        made: Recall | Scattered
        if self._shards is None:
            made = Recall(paths, self._meter)
        else:
            made = Scattered(self._shards, self.catalogue, paths, self._meter, self.tenant)
        self._recalls.append(made)
        return made

    def close(self) -> None:
        """Ask no path any more."""
        for recall in self._recalls:
            recall.close()

    def scene(self, ask: Ask, who: str, now: float, filtering: Filtering, seed: int) -> Scene:
        """The request as recall sees it. NotFound: it wants items like one that is not known."""
        catalogue, histories = self.catalogue, self.live.histories
        done, attributes = histories.of(who), self.live.attributes(who)
        history, exclude = done, catalogue.numbers(ask.exclude)
        if ask.similar:  # paths go by the item; what the user must not get stays what it is
            history = self._like(ask.similar, now)
            exclude = np.append(exclude, history.numbers)
        rule = Filter(
            region=_text(filtering.region, ask.context, attributes),
            age=_number(filtering.age, ask.context, attributes),
            stock=filtering.stock,
            seen_s=filtering.seen_s,
            done=tuple(histories.kinds.index(kind) for kind in filtering.done if kind in histories.kinds),
        )
        shown = histories.shown(who) if filtering.seen_s else None
        away = gone(rule, done, histories.blocks(who), exclude, shown, now)
        allowed = self.filters.allowed(rule, exclude=away)
        given = catalogue.numbers(ask.candidates)
        segment = _text(self.live.settings.segment, ask.context) or self.live.segment(who)
        return Scene(
            user=who, now=now, history=history, attributes=attributes, context=ask.context, allowed=allowed,
            given=given[given >= 0], seed=seed, segment=segment, done=done, rule=rule, gone=away,
        )  # fmt: skip

    def history(self, who: str) -> list[str]:
        """Items that a user liked, newest last."""
        return self.liked(self.live.histories.of(who))

    def liked(self, done: History) -> list[str]:
        """The items of a history by name."""
        return self.catalogue.names(done.numbers)

    def slate(
        self, scene: Scene, numbers: Numbers, items: Sequence[str], scores: NDArray[np.float32],
        heads: Mapping[str, NDArray[np.float32]], rules: Rules,
    ) -> Slate:  # fmt: skip
        """All that the rules look at, of candidates in the order of `numbers`."""
        reads, catalogue = rules.reads, self.catalogue
        columns: dict[str, NDArray[Any]] = {
            name: getattr(catalogue, name)[numbers] for name in COLUMNS if name in reads
        }
        if "embedding" in columns:
            columns["embedding"] = narrow(columns["embedding"])  # a quarter of the bytes in the log
        if "probability" in reads and "probability" in heads:
            columns["probability"] = heads["probability"]
        if "seen" in reads:
            columns["seen"] = np.isin(numbers, self.live.histories.shown(scene.user).numbers)
        if "clicked_at" in reads:
            columns["clicked_at"] = _latest(numbers, scene.done)
        facts = {}
        if "bid" in reads:  # how many ads the user was shown of late
            shown = self.live.histories.shown(scene.user).numbers
            facts["ads_shown"] = float((catalogue.bid[shown[shown >= 0]] > 0).sum())
        codes = {
            column: {name: code for name in names if (code := self._code(column, name)) >= 0}
            for column, names in rules.named.items()
        }
        return Slate(
            items=list(items), scores=scores, columns=columns, now=scene.now, seed=scene.seed, facts=facts, codes=codes
        )

    def _like(self, item: str, now: float) -> History:
        number = self.catalogue.number(item)
        if number < 0:
            item = outside(self.tenant, item)
            raise NotFound(f"similar: item {item[:80]!r} is not known here; POST /v1/items tells of items")
        return History(np.array([number], np.int32), np.zeros(1, np.uint8), np.array([now]))

    def _code(self, column: str, name: str) -> int:
        names = {"category": self.catalogue.categories, "author": self.catalogue.authors}.get(column, [])
        return names.index(name) if name in names else -1


def _latest(numbers: Numbers, history: History) -> NDArray[np.float64]:
    """When the user last did something with each, float64 [n], NaN for never."""
    latest = dict(zip(history.numbers.tolist(), history.times.tolist(), strict=True))
    return np.array([latest.get(number, math.nan) for number in numbers.tolist()], np.float64)


def _text(name: str, *places: Mapping[str, Any]) -> str:
    """What the first place that has it says; "" for none."""
    found = next((place[name] for place in places if place.get(name) is not None), "") if name else ""
    return next(iter(texts(found, 1)), "")


def _number(name: str, *places: Mapping[str, Any]) -> float:
    try:
        return float(_text(name, *places) or "nan")
    except ValueError:
        return math.nan
