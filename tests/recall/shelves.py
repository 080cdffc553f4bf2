"""Random catalogues, and what the rules say of an item when they are read one by one."""

from __future__ import annotations

import math
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
ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        "category": st.sampled_from(["a", "b", "c", 7, "", None]),
        "tags": st.lists(st.sampled_from(["x", "y", "z", "w"]), max_size=3) | st.sampled_from(["x|y", "", None]),
        "regions": st.lists(st.sampled_from(REGIONS), max_size=2) | st.sampled_from(["de", "", None]),
        "stock": st.sampled_from([0, 1, 5, -2, None, "0", "3", "false", "", math.nan]),
        "min_age": st.sampled_from([0, 12, 16, 17.5, 18, -3, "18", "adults", 400, None, ""]),
        "created": st.sampled_from([5.0, 60.0, 1e12, "2001-09-09", "yesterday", None]),
        "bid": st.sampled_from([0, 0.5, -1, math.nan, "free", "2.5", None, 10**400]),
        "quality": st.sampled_from([0.1, "good", None]),
        "embedding": st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2)
        | st.sampled_from([[1.0], ["a", "b"], "1 2", [1.0, math.inf], None, []]),
        "author": st.sampled_from(["ann", "bob", None]),
        "title": st.sampled_from(["A title", 5, None]),
        "blocked": st.sampled_from([0, 1, "true", None]),
        "deleted": st.sampled_from([0, 0, 0, 1, "yes"]),
    },
)
STEPS = st.lists(st.tuples(st.sampled_from(ITEMS), ATTRIBUTES | st.none()), max_size=60)
"""What is told of items, one after the other; None: it is removed."""
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
        if attributes is not None and attributes.get("deleted") in (1, "yes"):
            attributes = None
        if attributes is not None or item in items:
            items[item] = attributes
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
