"""Whether a report finds the better of two rules, and what another rule would have earned: logs with a planted truth.

    python bench/arms.py [--seeds 100] [--lists 1200] [--json]

Items are liked by what they are worth; those of one category are worth `LIFT` more, which no score knows. One arm of
rules boosts that category, the other does not, or both do nothing. Each seed is a log of its own: other people, with
moods of their own, other requests, other coins; lists are made and logged as a server does it, and `millstream report`
reads them. The truth is the mean of what 30,000 lists of such people would earn, from the probabilities
themselves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.app.installation import Installation, Settings
from millstream.app.report.matching import Span
from millstream.app.report.summary import report
from millstream.app.report.whatif import what_if
from millstream.clock import FakeClock
from millstream.flows.recommend.explore import explored
from millstream.flows.rerank import Order, Rules, Slate
from millstream.flows.rerank.sift import Boost
from millstream.simulate.world import looked_at
from millstream.stream.event import encode
from millstream.types import Entity, Outcome, Served

ITEMS, CATEGORIES, LENGTH, PAGE, EXPLORE = 60, 4, 8, 5, 0.3
LIFT = 0.5
START = 2_000_000.0
PLAIN, BOOSTED = Rules(()), Rules((Boost("c0", factor=3.0),))
BOOST = '[[rerank]]\nstep = "boost"\nvalue = "c0"\nfactor = 3.0\n'
TRUTH_LISTS = 30_000
SETTINGS = {
    "http_port": 0,
    "recommend": {"explore": EXPLORE, "placements": {"home": {"list_max": LENGTH}}},
    "learn": {"model": "ranker"},
}

WORTH = np.random.default_rng(7).beta(2.0, 8.0, ITEMS)  # of an item, without the lift: the same in every log
CATEGORY = np.arange(ITEMS) % CATEGORIES
LOOKS = looked_at(PAGE)


class Wish(NamedTuple):
    """A request: `places` of its candidates among the items, their `scores`, and the `mood` of who asks."""

    user: int
    places: NDArray[np.int64]
    scores: NDArray[np.float32]
    mood: float

    def slate(self, seed: int, now: float) -> Slate:
        return Slate(
            items=[f"i{place}" for place in self.places.tolist()], scores=self.scores, now=now, seed=seed,
            columns={"category": CATEGORY[self.places].astype(np.int32)}, codes={"category": {"c0": 0}},
        )  # fmt: skip

    def liked(self, lift: float) -> NDArray[np.float64]:
        """How likely each candidate is liked by who looks at it."""
        return np.clip(WORTH[self.places] + lift * (CATEGORY[self.places] == 0) + self.mood, 0.01, 0.95)


def wishes(random: np.random.Generator, lists: int, users: int) -> list[Wish]:
    """Requests of people, each with a mood for good."""
    moods = random.normal(0.0, 0.04, users)
    found = []
    for _ in range(lists):
        user, places = int(random.integers(users)), random.choice(ITEMS, LENGTH, replace=False)
        scores = (WORTH[places] + random.normal(0.0, 0.03, LENGTH)).astype(np.float32)
        found.append(Wish(user, places, scores, float(moods[user])))
    return found


def listed(rules: Rules, slate: Slate, request: str, explore: float) -> tuple[Slate, Order, NDArray[np.float32]]:
    """A list as a server makes it: by the rules, and now and then with what chance puts first."""
    order = rules.order(slate, LENGTH)
    shown = explored(request, -np.arange(len(order.places), dtype=np.float32), explore)
    chance = np.zeros(len(slate), np.float32)
    chance[order.places] = shown.propensities
    if shown.first > 0:
        slate = msgspec.structs.replace(slate, first=int(order.places[shown.first]))
        order = rules.order(slate, LENGTH)
    return slate, order, chance


def write(
    at: Installation, arms: dict[str, Rules], lists: int, seed: int, lift: float = LIFT, explore: float = EXPLORE
) -> None:
    """A log of so many lists of a tenth as many people, who are in one arm each, and of what they do."""
    random = np.random.default_rng(seed)
    served, outcomes, items = (at.log.writer(topic) for topic in ("served", "outcomes", "items"))
    for number in range(ITEMS):
        known = Entity(id=f"i{number}", attributes={"category": f"c{CATEGORY[number]}", "created": START - 1e6})
        items.append(b"", encode(known))
    named = [*arms]
    for number, wish in enumerate(wishes(random, lists, max(2, lists // 10))):
        request, now = f"{seed}-{number}", START + 600.0 * number
        arm = named[wish.user % len(named)]
        slate, order, chance = listed(arms[arm], wish.slate(number, now), request, explore)
        event = Served(
            request=request, model="ranker", version="1@0", policy=1, arm="live", user=f"u{wish.user}",
            candidates=slate.items, event_time=now, placement="home", order=order.places.astype(np.uint32).tobytes(),
            reasons=order.reasons, sources=np.full(LENGTH, 1, np.uint32).tobytes(), paths=["popular"],
            slate=slate.pack(names=False), rules=arm, rules_hash=arms[arm].hash(LENGTH), explored=slate.first,
            propensities=chance.tobytes() if explore else b"",
        )  # fmt: skip
        served.append(request.encode(), encode(event))
        page = order.places[:PAGE]
        liked = random.random(PAGE) < wish.liked(lift)[page] * LOOKS
        for position, place in enumerate(page.tolist()):
            kinds = ("impression", "like") if liked[position] else ("impression",)
            for kind in kinds:
                told = Outcome(request=request, item=slate.items[place], kind=kind, event_time=now + 1.0)
                outcomes.append(request.encode(), encode(told))


def truth(rules: Rules, lift: float = LIFT, lists: int = TRUTH_LISTS) -> tuple[float, float]:
    """What a rule that explores earns on average: likes an impression, and likes of the first place of a list."""
    random = np.random.default_rng(99)
    all_places, first = 0.0, 0.0
    for number, wish in enumerate(wishes(random, lists, lists // 10)):
        slate = wish.slate(number, START)
        liked, order = wish.liked(lift), rules.order(slate, LENGTH)
        likely = EXPLORE / len(order.places) + (1.0 - EXPLORE) * (np.arange(len(order.places)) == 0)
        first += float(likely @ liked[order.places]) * LOOKS[0]
        for position, place in enumerate(order.places.tolist()):  # the list when chance puts this one first
            moved = [place, *(other for other in order.places.tolist() if other != place)]
            all_places += float(likely[position]) * float(liked[moved[:PAGE]] @ LOOKS)
    return all_places / (lists * PAGE), first / lists


def installed(folder: Path) -> Installation:
    """An installation whose log is empty."""
    return Installation(folder, msgspec.convert(SETTINGS, Settings), FakeClock(START))


class Found(NamedTuple):
    """What one log said: of two arms, `better` on user experience and whether any axis differs; of the other rule."""

    ctr: float
    low: float
    high: float
    better: str
    differs: int
    ecosystem: str


def compared(seed: int, arms: dict[str, Rules], lists: int, lift: float = LIFT) -> Found:
    """A log of two arms, and what its report says of the second less the first in CTR."""
    with tempfile.TemporaryDirectory() as name, installed(Path(name)) as at:
        write(at, arms, lists, seed, lift)
        found = report(at, Span()).placements[0]
    one = next(one for one in found.differences if one.measure == "ctr")
    sign = 1.0 if one.second == next(iter(arms)) else -1.0
    low, high = sorted((sign * one.low, sign * one.high))
    axes = {said.partition(":")[0]: said for said in found.verdicts}
    better = next((arm for arm in arms if f": {arm} is better" in axes["user experience"]), "")
    ecosystem = next((arm for arm in arms if f": {arm} is better" in axes["content ecosystem"]), "")
    return Found(
        sign * one.value, low, high, better, sum("better" in said for said in found.verdicts), ecosystem
    )  # fmt: skip


def asked(seed: int, lists: int, file: Path) -> dict[str, tuple[float, float, float]]:
    """A log of the plain rules alone, and what it says the boosted ones would have earned: value, low, high."""
    with tempfile.TemporaryDirectory() as name, installed(Path(name)) as at:
        write(at, {"plain": PLAIN}, lists, seed)
        found = what_if(at, file, Span())
    likes = found.earned[0]
    return {
        kind: (one.value, one.low or -np.inf, one.high or np.inf)
        for kind, one in (("IPS", likes.ips), ("SNIPS", likes.snips), ("DR", likes.dr), ("gain", likes.gain))
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=100)
    options.add_argument("--lists", type=int, default=1200, help="of a log (default: 1200)")
    options.add_argument("--json", action="store_true", help="one line of JSON, last")
    chosen = options.parse_args()
    began, seeds = time.monotonic(), range(chosen.seeds)
    plain, boosted = truth(PLAIN), truth(BOOSTED)
    difference, gain = boosted[0] - plain[0], boosted[1] - plain[1]
    ab = [compared(seed, {"plain": PLAIN, "boosted": BOOSTED}, chosen.lists) for seed in seeds]
    aa = [compared(1000 + seed, {"one": PLAIN, "two": PLAIN}, chosen.lists) for seed in seeds]
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(BOOST)
        file.flush()
        other = [asked(2000 + seed, chosen.lists, Path(file.name)) for seed in seeds]
    print(f"{chosen.seeds} logs of {chosen.lists} lists for each row; {time.monotonic() - began:.0f} s")
    print(f"{'two arms in one log':44}{'truth':>9}{'mean':>9}{'inside 95 %':>13}{'said better':>13}")
    shares = {}

    def told(name: str, true: float, values: list[tuple[float, float, float]], said: str = "") -> None:
        inside = float(np.mean([low <= true <= high for _, low, high in values]))
        shares[name] = inside
        print(f"{name:44}{true:9.4f}{np.mean([value for value, _, _ in values]):9.4f}{inside:13.1%}{said:>13}")

    right = np.mean([one.better == "boosted" for one in ab])
    told("CTR of boosted less plain", difference, [(one.ctr, one.low, one.high) for one in ab], f"{right:.1%}")
    wrong = np.mean([one.better != "" for one in aa])
    told("the same of two arms that are the same", 0.0, [(one.ctr, one.low, one.high) for one in aa], f"{wrong:.1%}")
    axes = sum(one.differs for one in aa) / (3 * len(aa))
    print(f"{'axes said to differ of two that are the same':44}{'at most 5 %':>18}{axes:26.1%}")
    print(f"{'boosted, from a log of plain':44}{'truth':>9}{'mean':>9}{'inside 95 %':>13}")
    for kind in ("IPS", "SNIPS", "DR", "gain"):
        told(f"{kind}, likes of a first place", gain if kind == "gain" else boosted[1], [one[kind] for one in other])
    if chosen.json:
        print(json.dumps({"right": float(right), "wrong": float(wrong), "axes_wrong": axes, "inside": shares}))


if __name__ == "__main__":
    main()
