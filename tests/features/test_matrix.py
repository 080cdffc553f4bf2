"""A set's matrix: the quick way, for sets of kept values and rates, gives the bits of the way that takes anything."""

import numpy as np

from millstream.features import Aggregate, Cross, FeatureSet, Ratio, Source
from millstream.features.matrix import Columns

EVENTS = Source(name="events", columns={"user": "text", "item": "text", "price": "number"})


def single(name, key, op="count", **more):
    column = "" if op == "count" else "price"
    return Aggregate(name=name, source=EVENTS, key=key, op=op, column=column, **more)


KEPT = (
    single("seen", "user"),
    single("spent", "user", "sum", datatype="FP64"),
    single("asked", "item"),
    single("lowest", "item", "min"),
)
RATES = (
    Ratio(name="mixed", over="seen", under="asked", prior=(1, 3)),
    Ratio(name="none", over="spent", under="seen"),
    Ratio(name="large", over="spent", under="lowest"),
)
VALUES = np.array([0.0, 1.0, 3.0, 7.0, -2.5, 1e30, 1e300, np.nan])


def test_the_quick_way_gives_the_bits_of_the_other():
    cross = Cross(name="cross", left="seen", right="asked")
    random = np.random.default_rng(1)
    for features in ((*RATES, KEPT[0]), (RATES[0], KEPT[2], RATES[2], KEPT[1], RATES[1]), (KEPT[3], RATES[1])):
        rest = tuple(one for one in KEPT if one not in features)
        quick = Columns(FeatureSet(name="quick", features=features, parts=rest))
        slow = Columns(FeatureSet(name="slow", features=(*features, cross), parts=rest))
        assert quick._plain is not None and quick._rates is not None and slow._plain is None
        values = {kind: random.choice(VALUES, (500, 2)) for kind in ("user", "item")}
        with np.errstate(over="ignore"):  # rows hold no number that is beyond its datatype
            found = quick.make(values, {}, 500)
            other = slow.make(values, {}, 500)[:, :-1].astype(found.dtype)
        assert found.tobytes() == other.tobytes()
        assert np.isnan(other).any() and np.isfinite(other).any()
