"""What the demo's ranker knows of users and items beside their attributes: how often they were shown and liked lately,
and what a user liked last. `millstream.toml` names this file; docs/features.md says what it may hold."""

from millstream.features import Aggregate, FeatureSet, Ratio, Sequence, Source

LIKED = "kind == 'like' and value >= 1"

outcomes = Source(
    name="outcomes",
    columns={"user": "text", "item": "text", "kind": "text", "value": "number", "id": "text"},
    id="id",
)


def count(key: str, what: str, window: str, where: str) -> Aggregate:
    """How many outcomes a user or an item had."""
    return Aggregate(name=f"{key}_{what}_{window}", source=outcomes, key=key, op="count", window=window, where=where)


groups = [(key, window) for key in ("user", "item") for window in ("1h", "1d", "7d", "lifetime")]
shown = [count(key, "shown", window, "kind == 'impression'") for key, window in groups]
likes = [count(key, "likes", window, LIKED) for key, window in groups]
rates = [
    Ratio(name=f"{key}_like_rate_{window}", over=f"{key}_likes_{window}", under=f"{key}_shown_{window}", prior=(5, 10))
    for key, window in groups
]
history = Sequence("history", outcomes, key="user", column="item", n=3, where=LIKED)

ranker = FeatureSet(
    name="ranker",
    features=(*shown, *rates, history),
    parts=tuple(likes),
    owner="demo",
    description="what the demo's ranker takes of users and items",
)
