"""Slates and rules that chance makes, for the laws of re-ranking."""

import numpy as np
from hypothesis import strategies as st

from millstream.flows.rerank import Rules, Slate
from millstream.flows.rerank.diversity import Dpp, Mmr, Window
from millstream.flows.rerank.exposure import Ads, Fresh
from millstream.flows.rerank.sift import Blocks, Boost, NearDuplicates, Newer, Pins, Seen

NOW = 1_700_000_000.0
NAN, INF = float("nan"), float("inf")


def slate(scores, **columns):
    """With the dtypes that columns have; `now`, `seed`, `first`, `facts`, `codes` and `items` go to the slate."""
    kinds = {"created": "f8", "bid": "f4", "quality": "f4", "impressions": "i8", "probability": "f4", "seen": "?"}
    kinds |= {"clicked_at": "f8", "embedding": "f4"}
    own = {name: columns.pop(name) for name in ("now", "seed", "first", "facts", "codes", "items") if name in columns}
    made = {name: np.array(column, kinds.get(name, "i4")) for name, column in columns.items()}
    own.setdefault("items", [f"i{place}" for place in range(len(scores))])
    own.setdefault("now", NOW)
    return Slate(scores=np.array(scores, np.float32), columns=made, **own)


_VALUES = {
    "category": [-1, 0, 1, 2],
    "author": [-1, 0, 1, 2],
    "near": [-1, 0, 1, 2, 3],
    "created": [NOW, NOW - 1e3, NOW - 1e7, NOW + 50, NAN],
    "bid": [NAN, 0.0, -1.0, 0.25, 1.0, 2.0, 3.0, 1e30, INF, -INF],
    "quality": [NAN, 0.0, 0.5, 1.0],
    "impressions": [0, 0, 20, 100, 250],
    "probability": [NAN, 0.0, 0.01, 0.1, 0.2, 0.3, 1.0, 1.5, -0.1],
    "seen": [False, False, False, True],
    "clicked_at": [NAN, NAN, NOW - 10, NOW - 1e6],
    "embedding": [-1.0, 0.0, 0.5, 2.0, NAN],
}
_SCORES = [0.0, 0.1, 0.2, 0.2, 0.9, -1.0, NAN, INF]


@st.composite
def slates(draw, most=24):
    """Every column is there or not; what is in it, a seed decides, which is quick."""
    n, random = draw(st.integers(0, most)), np.random.default_rng(draw(st.integers(0, 2**32)))
    there = draw(st.sets(st.sampled_from(sorted(_VALUES)))) if draw(st.booleans()) else set(_VALUES)
    columns = {name: random.choice(_VALUES[name], (n, 3) if name == "embedding" else n) for name in sorted(there)}
    return slate(
        random.choice(_SCORES[: draw(st.sampled_from([6, 8]))], n),
        **columns,
        seed=draw(st.integers(0, 2**64 - 1)),
        first=draw(st.integers(-1, n - 1)),
        facts=draw(st.sampled_from([{}, {"ads_shown": 3.0}])),
        codes={"category": {"news": 1}},
    )


_PLACES = st.integers(0, 23)
_STEPS = {
    "seen": st.builds(Seen, shown=st.booleans(), clicked_s=st.sampled_from([0.0, 60.0])),
    "near": st.builds(NearDuplicates),
    "blocks": st.builds(lambda places: Blocks(items=tuple(f"i{p}" for p in places)), st.sets(_PLACES, max_size=4)),
    "pins": st.builds(
        lambda places, first: Pins(items={f"i{p}": first + 2 * at for at, p in enumerate(places)}),
        st.sets(_PLACES, max_size=4),
        st.integers(1, 12),
    ),
    "boost": st.builds(Boost, value=st.sampled_from(["news", "sport"]), factor=st.sampled_from([0.0, 0.5, 3.0])),
    "newer": st.builds(Newer),
    "category": st.builds(Window, most=st.integers(1, 3), window=st.integers(0, 6)),
    "author": st.builds(Window, by=st.just("author"), most=st.integers(1, 3), window=st.integers(0, 6)),
    "mmr": st.builds(Mmr, by=st.sampled_from(["embedding", "category"])),
    "dpp": st.builds(Dpp, theta=st.sampled_from([0.05, 0.7, 1.0])),
    "fresh": st.builds(
        Fresh, share=st.sampled_from([0.0, 0.1, 0.5]), quality_least=st.sampled_from([0.0, 0.5]),
    ),
    "ads": st.builds(
        Ads, share=st.sampled_from([0.0, 0.2, 0.5, 1.0]), page=st.integers(1, 12), first=st.integers(1, 4),
        spacing=st.integers(0, 3), user_most=st.sampled_from([0, 4, 50, 50]), quality_least=st.sampled_from([0.0, 0.5]),
        ecpm_least=st.sampled_from([0.0, 100.0]),
    ),
}  # fmt: skip


@st.composite
def rules(draw, *named):
    """Some of all steps, or all that are `named`, in any order."""
    names = draw(st.permutations(named or sorted(_STEPS)))
    names = names if named else names[: draw(st.integers(0, 6))]
    return Rules(tuple(draw(_STEPS[name]) for name in names))
