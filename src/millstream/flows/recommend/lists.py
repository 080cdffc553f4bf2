"""A list for somebody: recall, rank, re-rank, log. One scene, one served event, as many pages as are asked for.

    scene ─► recall: paths beside each other, inside the filters ─► union, cut to the best `candidates`
          ─► rank: one batched model call ─► score by the placement's formula
          ─► re-rank: the arm's rules, with reasons ─► served event ─► page

Rules of the room:
- Nothing that the filters forbid is ever given, whatever fails: later stages choose among what recall gave, and what
  was deleted meanwhile is left out.
- A stage that fails or is late makes the list worse, never an error: a path is missed, a ranker gives way to the
  version before it and then to recall's own scores, a model beside it to the ranker. The answer and the log say so.
- The whole list is made at once and remembered; pages are parts of it.
- Chance (`recommend.explore`) puts an item of the list first, by a hash of the request's id; how likely each was to be
  first is logged.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.clock import Clock
from millstream.errors import NotFound
from millstream.features import Entities
from millstream.flows.predict import Submit
from millstream.flows.recommend import cursor
from millstream.flows.recommend.ask import AskLimits, check_n, checked
from millstream.flows.recommend.explore import explored
from millstream.flows.recommend.once import Once, digest
from millstream.flows.recommend.placement import PathSettings, Placement
from millstream.flows.recommend.rank import Matrix, More
from millstream.flows.recommend.score import Ranked, Scoring, silent
from millstream.flows.recommend.world import World
from millstream.flows.rerank import Order, Rules, Slate
from millstream.flows.served import ServedLog
from millstream.guard.tenants import inside, outside
from millstream.meter import Counter as Number
from millstream.meter import Meter
from millstream.recall.scene import Numbers, Scene
from millstream.recall.union import Union
from millstream.types import Ask, Listing, Served, Slot

Floats = NDArray[np.float32]
LOOK_S = 0.01


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
    """`call(ask)` is a future of a Listing. `world`: what this process knows of items and people, of one tenant where
    there are any: names in a request and in its answer are as that one calls them. `entities`, `matrix`: rows for the
    ranker, None where nothing ranks; `others(model)`: versions loaded beside the live one, the newest first."""

    def __init__(
        self, world: World, submit: Submit, others: Callable[[str], Sequence[str]], clock: Clock, served: ServedLog,
        meter: Meter, model: str, placements: dict[str, Placement], limits: AskLimits, explore: float,
        entities: Entities | None = None, matrix: Matrix = lambda user, items: None,
        more: More = lambda model, history: {},
    ) -> None:  # fmt: skip
        self._world, self._clock, self._served = world, clock, served
        self.model, self._placements, self._limits, self._explore = model, placements, limits, explore
        self._entities, self._matrix = entities, matrix
        self._recalls = {name: world.recall(name, of.paths) for name, of in placements.items()}
        self._alike = {name: world.likeness(of.paths) for name, of in placements.items()}
        self._scoring = Scoring(submit, others, more, meter, model, [of.score for of in placements.values()])
        self._rules: dict[tuple[str, str], Rules] = {
            (name, arm): of.rules(arm) for name, of in placements.items() for arm in (of.arms or ("",))
        }
        self._hashes = {key: rules.hash(placements[key[0]].list_max) for key, rules in self._rules.items()}
        self._once = Once[Made](limits.lists_kept)
        self._relaxed = meter.counter("millstream_relaxed_total", "Positions at which a rule of order was given up.")
        self._counts = {(name, arm): _counts(meter, name, arm) for name, arm in self._rules}

    @property
    def tenant(self) -> str:
        """Whose lists these are; "" where there are no tenants."""
        return self._world.tenant

    @property
    def kept(self) -> int:
        """How many lists are remembered."""
        return self._limits.lists_kept

    def wait(self, deadline_ms: float) -> None:
        """From now on give every path so long, for lists that nobody waits for."""
        for name, of in self._placements.items():
            paths = of.paths or dict.fromkeys(self._world.paths, PathSettings())
            slow = {path: msgspec.structs.replace(one, deadline_ms=deadline_ms) for path, one in paths.items()}
            self._recalls[name] = self._world.recall(name, slow)

    def call(self, ask: Ask) -> asyncio.Future[Listing]:
        """Raises BadInput, TooLarge, NotFound (a placement, a cursor), Conflict for an id of another request."""
        if ask.cursor:
            return asyncio.ensure_future(self._next(ask))
        ask = checked(ask, self._limits, self._clock.now(), self._placements, self._world.tenant)
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
            heads=({"probability": probability[places]} if len(probability) else {}) | _logged(event, places),
            prices=np.frombuffer(event.prices, np.float32),
            model=event.model if event.version else "", version=event.version, arm=event.rules,
            missed=[*event.late, *(["rank"] if event.ranker else []), *silent(event.beside)],
            relaxed=dict(relaxed), paths=list(event.paths),
            page=self._placements[event.placement].n, user=event.user,
        )  # fmt: skip
        self._once.remember(event.request, event.asked, made, event.user)

    async def _page_of(self, making: asyncio.Future[Made], ask: Ask) -> Listing:
        return self._page(ask.id, await making, 0, ask.n, ask.explain)

    async def _next(self, ask: Ask) -> Listing:
        ident, at = cursor.read(ask.cursor)
        ident = inside(self._world.tenant, ident)
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
        catalogue, tenant = self._world.catalogue, self._world.tenant
        numbers = made.numbers[at:until]
        blocked = self._world.live.histories.blocks(made.user)
        alive = (self._world.filters.there(numbers) & ~np.isin(numbers, blocked)).tolist()
        slots = [
            Slot(
                item=outside(tenant, catalogue.name(int(made.numbers[place]))),
                score=float(made.scores[place]),
                reasons=made.reasons[place].split(),
                price=_price(made, place),
                why=_why(made, place) if explain else None,
            )
            for place, there in zip(range(at, until), alive, strict=True)
            if there
        ]
        ident = outside(tenant, ident)
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
        ranked = await self._scoring.of(ask.id, who, tokens, history, placement, union.scores)
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
        lists, empty = self._counts[ask.placement, arm]
        lists.add()
        empty.add(not len(order.places))
        await self._served.append(
            self._event(ask, asked, scene, union, items, tokens, ranked, slate, order, made, chance, history)
        )
        self._once.remember(ask.id, asked, made, who)
        return made

    def _tokens(self, who: str, items: Sequence[str]) -> NDArray[np.uint32] | None:
        if self._entities is None or not items:
            return None
        return self._entities.rows(who, items, self._matrix(who, items))

    def _made(
        self, union: Union, ranked: Ranked, order: Order, arm: str, placement: Placement, paths: list[str], who: str
    ) -> Made:
        places, output, sold = order.places, ranked.output, order.charges
        missed = [*union.late, *union.failed, *(["rank"] if ranked.instead else []), *silent(ranked.beside)]
        self._relaxed.add(sum(order.relaxed.values()))
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
            rules_hash=self._hashes[ask.placement, made.arm],
            context=ask.context,
            seed=scene.seed,
            ranker=ranked.instead,
            history=history,
            prices=made.prices.tobytes(),
            asked=asked,
            beside=ranked.beside,
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


def _counts(meter: Meter, placement: str, arm: str) -> tuple[Number, Number]:
    labels = {"placement": placement} | ({"arm": arm} if arm else {})
    return (
        meter.counter("millstream_lists_total", "Lists made, by placement and arm of its rules.", labels),
        meter.counter("millstream_empty_lists_total", "Lists without an item, by placement and arm.", labels),
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


def _logged(event: Served, places: NDArray[np.uint32]) -> dict[str, Floats]:
    """What models beside the ranker said of the items of a list."""
    return {
        f"{model}.{name}": np.frombuffer(scores, np.float32)[places]
        for model, said in event.beside.items()
        for name, scores in said.outputs.items()
    }


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
