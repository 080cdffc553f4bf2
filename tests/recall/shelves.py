"""Random catalogues, and what the rules say of an item when they are read one by one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from millstream.recall.catalogue import Catalogue
from millstream.recall.filters import Rule
from millstream.recall.scene import Bits, History, Scene

QUICK = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
ITEMS = [f"i{number}" for number in range(12)]
REGIONS = ["de", "fr", "it"]
ODD: dict[str, list[Any]] = {
    "category": ["a", "b", "c", 7, "", None],
    "tags": [["x"], ["x", "y"], ["z", "x"], ["w", "z", "y"], [], "x|y", "", None],
    "regions": [["de"], ["fr", "de"], ["it"], [], "de", "", None],
    "stock": [1, 5, None, 3, "3", "", math.nan, 0, -2, "0", "false"],
    "min_age": [0, None, "", 12, 16, 17.5, 18, -3, "18", "adults", 400],
    "created": [5.0, 60.0, 1e12, "2001-09-09", "yesterday", None],
    "bid": [0, 0.5, -1, math.nan, "free", "2.5", None, 10**400],
    "quality": [0.1, "good", None],
    "embedding": [[1.0, 0.5], [-1.0, 0.2], [0.3, 1.0], [1.0], ["a", "b"], "1 2", [1.0, math.inf], None, []],
    "author": ["ann", "bob", None],
    "title": ["A title", 5, None],
    "blocked": [0, 0, None, 1, "true"],
    "deleted": [0, 0, 0, 0, None, 1, "yes"],
}


def many(one: Callable[[random.Random], Any], most: int) -> st.SearchStrategy[list[Any]]:
    """0 to `most` of what `one` makes. Lists that hypothesis draws itself have two or three entries, mostly."""
    return st.builds(
        lambda seed, count: [one(chance) for chance in [random.Random(seed)] for _ in range(count)],
        st.integers(0, 1 << 32),
        st.integers(0, most),
    )


def _step(chance: random.Random) -> tuple[str, dict[str, Any] | None]:
    if chance.random() < 0.1:
        return chance.choice(ITEMS), None
    said = [name for name in ODD if chance.random() < 0.6]
    return chance.choice(ITEMS), {name: chance.choice(ODD[name]) for name in said}


STEPS = many(_step, 60)
"""What is told of items, one after the other; None: it is removed."""
SOME = many(lambda chance: chance.randrange(-2, 16), 12).map(tuple)
"""Numbers, some of them of no item, some twice."""
RULES = st.builds(
    Rule,
    region=st.sampled_from(["", "de", "fr", "nowhere"]),
    age=st.sampled_from([math.nan, -1.0, 0.0, 12.0, 16.9, 17.0, 18.0, 99.0, 500.0]),
    stock=st.booleans(),
    seen_s=st.sampled_from([0.0, 50.0]),
    done=st.sampled_from([(), (0,), (0, 1)]),
)


def tell(catalogue: Catalogue, steps: list[tuple[str, dict[str, Any] | None]], start: float = 100.0) -> None:
    """Tell a catalogue, a second apart."""
    for at, (item, attributes) in enumerate(steps):
        if attributes is None:
            catalogue.remove(item)
        else:
            catalogue.upsert(item, attributes, start + at)


def known(steps: list[tuple[str, dict[str, Any] | None]]) -> dict[str, dict[str, Any] | None]:
    """item -> its attributes as they are in the end; None: it is gone. In the order of numbers."""
    items: dict[str, dict[str, Any] | None] = {}
    for item, attributes in steps:
        if attributes is not None:
            items[item] = None if attributes.get("deleted") in (1, "yes") else attributes
        elif item in items:
            items[item] = None
    return items


def may(attributes: dict[str, Any] | None, rule: Rule) -> bool:
    """Whether the rules of the catalogue let an item be shown: spelt out for the values that are told here."""
    if attributes is None or attributes.get("blocked") in (1, "true"):
        return False
    if rule.stock and attributes.get("stock") in (0, -2, "0", "false"):
        return False
    regions = attributes.get("regions") or []
    regions = [regions] if isinstance(regions, str) else regions
    if regions and rule.region not in regions:
        return False
    least = {17.5: 18, -3: 0, "18": 18, "adults": 999, 400: 999, "": 0, None: 0}
    told = attributes.get("min_age")
    years = least.get(told, told)
    return years == 0 or (not math.isnan(rule.age) and years <= math.floor(rule.age))


def scene(allowed: Bits, history: tuple[int, ...] = (), given: tuple[int, ...] = (), **other: Any) -> Scene:
    """A request."""
    numbers = np.array(history, np.int32)
    past = History(numbers, np.zeros(len(numbers), np.uint8), np.arange(len(numbers), dtype=np.float64))
    ready = {"user": "u", "now": 1000.0, "attributes": {}, "context": {}, "seed": 1} | other
    return Scene(history=past, allowed=allowed, given=np.array(given, np.int32), **ready)
