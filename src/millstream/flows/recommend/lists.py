"""A list for somebody: recall, rank, re-rank, log. One scene, one served event, as many pages as are asked for.

    scene ─► recall: paths beside each other, inside the filters ─► union, cut to the best `candidates`
          ─► rank: one batched model call ─► score by the placement's formula
          ─► re-rank: the arm's rules, with reasons ─► served event ─► page

Rules of the room:
- Nothing that the filters forbid is ever given, whatever fails: later stages choose among what recall gave, and what
  was deleted meanwhile is left out.
- A stage that fails or is late makes the list worse, never an error: a path is missed, a ranker gives way to the
  version before it and then to recall's own scores. The answer and the log say so.
- The whole list is made at once and remembered; pages are parts of it.
- Chance (`recommend.explore`) puts an item of the list first, by a hash of the request's id; how likely each was to be
  first is logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.clock import Clock
from millstream.errors import Error, NotFound
from millstream.features import Entities
from millstream.flows.formula import Formula
from millstream.flows.predict import Submit
from millstream.flows.recommend import cursor
from millstream.flows.recommend.ask import AskLimits, check_n, checked
from millstream.flows.recommend.explore import explored
from millstream.flows.recommend.once import Once, digest
from millstream.flows.recommend.placement import Placement
from millstream.flows.recommend.rank import Matrix, More
from millstream.flows.recommend.world import World
from millstream.flows.rerank import Order, Rules, Slate
from millstream.flows.served import ServedLog
from millstream.meter import Meter
from millstream.recall.scene import Numbers, Scene
from millstream.recall.union import Union
from millstream.types import Ask, Listing, Output, Request, Served, Slot

Floats = NDArray[np.float32]
LOOK_S = 0.01
logger = logging.getLogger("millstream.flows")


class Ranked(msgspec.Struct):
    """Candidates with their scores [n]. `heads`: a ranker's outputs; `output`: None where no ranker answered;
    `instead`: what answered for it, "" when it did itself."""

    scores: Floats
    heads: dict[str, Floats]
    output: Output | None = None
    instead: str = ""


class Made(msgspec.Struct):
    """A list as it is remembered, best place first, m items. `found` uint32 [m], `recalled` float32 [m]: as recall gave
    them; `heads`: of the ranker, [m] each; `prices` [m]: of a click on an ad, NaN where nobody pays, or [0] where
    nothing is sold."""

    numbers: Numbers
    scores: Floats
    reasons: list[str]
    found: NDArray[np.uint32]
    recalled: Floats
    heads: dict[str, Floats]
    prices: Floats
    model: str
    version: str
    arm: str
    missed: list[str]
    relaxed: dict[str, int]
    paths: list[str]
    page: int
    user: str


class Lists:
    """`call(ask)` is a future of a Listing. `world`: what this process knows of items and people; `entities`,
    `matrix`: rows for the ranker, None where nothing ranks; `others(model)`: versions loaded beside the live one, the
    newest first."""

    def __init__(
        self, world: World, submit: Submit, others: Callable[[str], Sequence[str]], clock: Clock, served: ServedLog,
        meter: Meter, model: str, placements: dict[str, Placement], limits: AskLimits, explore: float,
        entities: Entities | None = None, matrix: Matrix = lambda user, items: None,
        more: More = lambda model, version, history: {},
    ) -> None:  # fmt: skip
        self._world, self._submit, self._others, self._clock, self._served = world, submit, others, clock, served
        self.model, self._placements, self._limits, self._explore = model, placements, limits, explore
        self._entities, self._matrix, self._more = entities, matrix, more
        self._recalls = {name: world.recall(name, of.paths) for name, of in placements.items()}
        self._alike = {name: world.likeness(of.paths) for name, of in placements.items()}
        self._formulas = {name: Formula(of.score) for name, of in placements.items()}
        self._rules: dict[tuple[str, str], Rules] = {
            (name, arm): of.rules(arm) for name, of in placements.items() for arm in (of.arms or ("",))
        }
        self._once = Once[Made](limits.lists_kept)
        self._instead = {
            instead: meter.counter(
                "millstream_rank_instead_total", "Lists that the live ranker did not score.", {"by": instead}
            )
            for instead in ("previous", "recall")
        }
        self._relaxed = meter.counter("millstream_relaxed_total", "Positions at which a rule of order was given up.")
        self._empty = meter.counter("millstream_empty_lists_total", "Lists without an item.")
        self._said = False

    @property
    def kept(self) -> int:
        """How many lists are remembered."""
        return self._limits.lists_kept

    def call(self, ask: Ask) -> asyncio.Future[Listing]:
        """Raises BadInput, TooLarge, NotFound (a placement, a cursor), Conflict for an id of another request."""
        if ask.cursor:
            return asyncio.ensure_future(self._next(ask))
        ask = checked(ask, self._limits, self._clock.now(), self._placements)
        asked = digest(
            ask.placement, ask.user, ask.visitor, ask.candidates, ask.exclude, ask.similar, sorted(ask.context.items())
        )
        making = self._once.call(ask.id, asked, lambda: self._make(ask, asked))
        return asyncio.ensure_future(self._page_of(making, ask))

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Forget the lists of people by their names; how many."""
        return self._once.forget(mine)

    def take(self, event: Served) -> None:
        """Remember a list that stands in the log: of this process before it started, or of another one."""
        if not event.order or event.placement not in self._placements or self._once.get(event.request) is not None:
            return
        places = np.frombuffer(event.order, np.uint32)
        names = [event.candidates[place] for place in places.tolist()]
        relaxed = Counter(
            word.removeprefix("relaxed:")
            for reason in event.reasons
            for word in reason.split()
            if word.startswith("relaxed:")
        )
        probability = np.frombuffer(event.scores, np.float32)
        made = Made(
            numbers=self._world.catalogue.numbers(names),
            scores=Slate.unpack(event.slate, event.candidates).scores[places], reasons=list(event.reasons),
            found=np.frombuffer(event.sources, np.uint32)[places],
            recalled=np.frombuffer(event.recalled, np.float32)[places],
            heads={"probability": probability[places]} if len(probability) else {},
            prices=np.frombuffer(event.prices, np.float32),
            model=event.model if event.version else "", version=event.version, arm=event.rules,
            missed=[*event.late, *(["rank"] if event.ranker else [])], relaxed=dict(relaxed), paths=list(event.paths),
            page=self._placements[event.placement].n, user=event.user,
        )  # fmt: skip
        self._once.remember(event.request, event.asked, made, event.user)

    async def _page_of(self, making: asyncio.Future[Made], ask: Ask) -> Listing:
        return self._page(ask.id, await making, 0, ask.n, ask.explain)

    async def _next(self, ask: Ask) -> Listing:
        ident, at = cursor.read(ask.cursor)
        until = self._clock.monotonic() + self._limits.cursor_wait_s  # another process may have made it just now
        while (made := self._once.get(ident)) is None and self._clock.monotonic() < until:
            await self._clock.sleep(LOOK_S)
        if made is None:
            raise NotFound("cursor: that list is not remembered any more; ask for a new one, without a cursor")
        check_n(ask.n, self._limits)
        return self._page(ident, made, at, ask.n, ask.explain)

    def _page(self, ident: str, made: Made, at: int, n: int, explain: bool) -> Listing:
        """Part of a list; what was deleted since, or blocked by the user, is left out."""
        until = min(at + (n or made.page), len(made.numbers))
        catalogue = self._world.catalogue
        numbers = made.numbers[at:until]
        blocked = self._world.live.histories.blocks(made.user)
        alive = (self._world.filters.there(numbers) & ~np.isin(numbers, blocked)).tolist()
        slots = [
            Slot(
                item=catalogue.name(int(made.numbers[place])),
                score=float(made.scores[place]),
                reasons=made.reasons[place].split(),
                price=_price(made, place),
                why=_why(made, place) if explain else None,
            )
            for place, there in zip(range(at, until), alive, strict=True)
            if there
        ]
        more = cursor.write(ident, until) if until < len(made.numbers) else ""
        return Listing(
            id=ident, model=made.model, version=made.version, items=slots, arm=made.arm, cursor=more,
            missed=made.missed, relaxed=made.relaxed,
        )  # fmt: skip

    async def _make(self, ask: Ask, asked: bytes) -> Made:
        placement = self._placements[ask.placement]
        who = self._world.live.histories.name(ask.user or ask.visitor)  # of a visitor who is known by now: the user
        arm = placement.arm_of(ask.placement, who or ask.id)
        rules = self._rules[ask.placement, arm]
        now = self._clock.now()
        scene = self._world.scene(ask, who, now, placement.filters, seed(ask.id))
        recall = (self._alike if ask.similar else self._recalls)[ask.placement]
        pinned = self._world.catalogue.numbers(rules.items)
        union = _cut(await recall.gather(scene), pinned[scene.allowed.test(pinned)], placement.candidates)
        items = self._world.catalogue.names(union.numbers)
        tokens = self._tokens(who, items)
        history = self._world.liked(scene.done)
        ranked = await self._rank(ask, who, tokens, union, placement, history)
        slate = self._world.slate(scene, union.numbers, items, ranked.scores, ranked.heads, rules)
        order = rules.order(slate, placement.list_max)
        chance = None
        if self._explore and len(order.places):
            shown = explored(ask.id, _descending(len(order.places)), self._explore)
            chance = np.zeros(len(items), np.float32)
            chance[order.places] = shown.propensities
            if shown.first > 0:
                slate = msgspec.structs.replace(slate, first=int(order.places[shown.first]))
                order = rules.order(slate, placement.list_max)
        made = self._made(union, ranked, order, arm, placement, list(recall.names), who)
        await self._served.append(
            self._event(ask, asked, scene, union, items, tokens, ranked, slate, order, made, chance, history)
        )
        self._once.remember(ask.id, asked, made, who)
        return made

    def _tokens(self, who: str, items: Sequence[str]) -> NDArray[np.uint32] | None:
        if self._entities is None or not items:
            return None
        return self._entities.rows(who, items, self._matrix(who, items))

    async def _rank(
        self, ask: Ask, who: str, tokens: NDArray[np.uint32] | None, union: Union, placement: Placement,
        history: list[str],
    ) -> Ranked:  # fmt: skip
        """Scores of the live version; of one that was live before; of recall."""
        if tokens is None:
            return Ranked(union.scores, {})  # nothing to rank, or nothing that ranks
        for version in ("", *self._others(self.model)[:1]):
            try:
                inputs = {"tokens": tokens, **self._more(self.model, version, history)}
                request = Request(self.model, inputs, len(tokens), id=ask.id, key=who, version=version)
                output = await asyncio.wait_for(self._submit(request), placement.rank_ms / 1e3)
                heads = _heads(output, len(tokens))
                scores = self._formulas[ask.placement].of(heads)
            except (Error, TimeoutError) as error:
                if not self._said:
                    self._said = True
                    logger.warning(
                        "lists go on without %s %s: %s", self.model, version or "(live)", error or "too late"
                    )
                continue
            if version:
                self._instead["previous"].add()
            return Ranked(scores, heads, output, "previous" if version else "")
        self._instead["recall"].add()
        return Ranked(union.scores, {}, instead="recall")

    def _made(
        self, union: Union, ranked: Ranked, order: Order, arm: str, placement: Placement, paths: list[str], who: str
    ) -> Made:
        places, output, sold = order.places, ranked.output, order.charges
        missed = [*union.late, *union.failed, *(["rank"] if ranked.instead else [])]
        self._relaxed.add(sum(order.relaxed.values()))
        if not len(places):
            self._empty.add()
        return Made(
            numbers=union.numbers[places], scores=ranked.scores[places], reasons=order.reasons,
            found=union.sources[places], recalled=union.scores[places],
            heads={name: values[places] for name, values in ranked.heads.items()},
            prices=np.array([sold.get(place, np.nan) for place in places.tolist()] if sold else [], np.float32),
            model=output.model if output else "", version=output.version if output else "", arm=arm, missed=missed,
            relaxed=order.relaxed, paths=paths, page=placement.n, user=who,
        )  # fmt: skip

    def _event(
        self, ask: Ask, asked: bytes, scene: Scene, union: Union, items: list[str], tokens: NDArray[np.uint32] | None,
        ranked: Ranked, slate: Slate, order: Order, made: Made, chance: Floats | None, history: list[str],
    ) -> Served:  # fmt: skip
        output, probability = ranked.output, ranked.heads.get("probability")
        return Served(
            request=ask.id,
            model=output.model if output else self.model,
            version=output.version if output else "",
            policy=output.policy if output else 0,
            arm=output.arm if output else "live",
            user=scene.user,
            candidates=items,
            event_time=ask.event_time or scene.now,
            definition=self._entities.definition.hash if self._entities is not None else "",
            tokens=tokens.tobytes() if tokens is not None else b"",
            scores=probability.tobytes() if probability is not None else b"",
            propensities=chance.tobytes() if chance is not None else b"",
            explored=slate.first,
            placement=ask.placement,
            order=order.places.astype(np.uint32).tobytes(),
            reasons=order.reasons,
            sources=union.sources.tobytes(),
            paths=made.paths,
            late=[*union.late, *union.failed],
            recalled=union.scores.tobytes(),
            slate=slate.pack(names=False),
            rules=made.arm,
            context=ask.context,
            seed=scene.seed,
            ranker=ranked.instead,
            history=history,
            prices=made.prices.tobytes(),
            asked=asked,
        )


def _cut(union: Union, pinned: Numbers, most: int) -> Union:
    """The `most` best of what was found, and what pins name beside them: nothing found that, and recall scores it 0."""
    pinned = pinned[~np.isin(pinned, union.numbers[:most])]
    sources, scores = np.zeros(len(pinned), np.uint32), np.zeros(len(pinned), np.float32)
    return union._replace(
        numbers=np.concatenate((union.numbers[:most], pinned)),
        sources=np.concatenate((union.sources[:most], sources)),
        scores=np.concatenate((union.scores[:most], scores)),
    )


def seed(ident: str) -> int:
    """A request's chance: a retry has the same."""
    digest_ = hashlib.blake2b(ident.encode(errors="surrogatepass"), digest_size=8, person=b"seed").digest()
    return int.from_bytes(digest_, "big")


def _descending(count: int) -> Floats:
    """Scores of a list's items: the first is the best."""
    return -np.arange(count, dtype=np.float32)


def _price(made: Made, place: int) -> float:
    """Of a click; 0 where nobody pays."""
    return float(np.nan_to_num(made.prices[place])) if len(made.prices) else 0.0


def _heads(output: Output, rows: int) -> dict[str, Floats]:
    """A ranker's outputs that are one number a row; NaN becomes 0."""
    found = {
        name: np.ascontiguousarray(np.nan_to_num(values.reshape(-1), nan=0.0), np.float32)
        for name, values in output.outputs.items()
        if values.size == rows and values.dtype.kind in "fiu"
    }
    if not found:
        raise NotFound(f"model {output.model} {output.version} has no output with one number a candidate")
    return found


def _why(made: Made, place: int) -> dict[str, Any]:
    """An item's path through the stages."""
    bits = int(made.found[place])
    return {
        "position": place + 1,
        "recall": [name for bit, name in enumerate(made.paths) if bits >> bit & 1],
        "recall_score": float(made.recalled[place]),
        "outputs": {name: float(values[place]) for name, values in made.heads.items()},
        "score": float(made.scores[place]),
        "rerank": made.reasons[place].split(),
        "arm": made.arm,
    }
