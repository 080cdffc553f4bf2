"""The settings and features that a team's tables call for, as files that a person reads and changes.

Rules of the room:
- Attributes keep the names of the team's own columns, so that what they post later fits; `[catalogue]` says what each
  means.
- Nothing is set that is as it would be anyway, unless a person should see it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from millstream.learn.columns import ROLES, Facts, Map, bucket
from millstream.learn.interactions import AGAINST, BOUGHT, LIKE, SHOWN, Liked

DAY_S: Final = 86400.0
SIDE_MAX: Final = 8
PLACES_MAX: Final = 6
SEGMENTS_MAX: Final = 64
REGIONS: Final = ("region", "country", "state", "market", "countrycode")
KNOWN: Final = ("click", "dwell", "skip", "rating", "comment")
"""Feedback that is known without being told; see join.feedback."""


class Found(msgspec.Struct, kw_only=True):
    """What was found out of the tables. `items`, `users`: their maps, empty without a table, with the facts of their
    columns; `kinds`: of interactions, how often each; `rows`: interactions kept; `age_s`: of the oldest; `spans_s`:
    from the first to the last; `dated`: whether they have times."""

    items: Map
    users: Map
    item_facts: dict[str, Facts]
    user_facts: dict[str, Facts]
    item_count: int
    kinds: dict[str, int]
    liked: Liked
    rows: int
    age_s: float
    span_s: float
    window_s: float
    dated: bool
    sources: str
    port: int

    @property
    def likes(self) -> tuple[str, ...]:
        """The feedback kinds that a ranker learns to foresee."""
        return self.liked.kinds or (LIKE,)

    @property
    def interests(self) -> tuple[str, ...]:
        """Those that speak for an item at all: a look says something too, where it is something else than a like."""
        weak = [kind for kind in self.kinds if kind not in {*self.likes, *SHOWN, *AGAINST}]
        return (*self.likes, *(weak if self.liked.kinds else ()))


def settings(found: Found) -> str:
    """`millstream.toml`."""
    parts = [
        f"# Made by `millstream init` from {found.sources}. Every setting: docs/settings.md.",
        f"http_port = {found.port}\n",
        _catalogue(found),
        _outcomes(found),
        _ranking(found),
        _placement(found),
        _bounds(found),
    ]
    return "\n".join(part for part in parts if part)


def _catalogue(found: Found) -> str:
    lines = ["# What the attributes of items mean. `POST /v1/items` takes them under these names.", "[catalogue]"]
    told = {"created": "  # unix seconds, or ISO 8601", "tags": "  # a list, or a text with | between them"}
    lines += [f"{role} = {_text(name)}{told.get(role, '')}" for role, name in roles(found.items).items()]
    if "category" not in found.items and "tags" in found.items:
        lines.append(f"category = {_text(roles(found.items)['tags'])}  # the first of them")
    if found.item_count > 500_000:
        lines.append(f"items_max = {4 * found.item_count}")
    return "\n".join(lines) + "\n"


def roles(map: Map) -> dict[str, str]:
    """Role -> the attribute that has it."""
    return {role: attribute(map, role) for role in ROLES if role in map}


def attribute(map: Map, field: str) -> str:
    """What the attribute of a field is called: a role's is its column, unless that is the id's name too."""
    if field not in ROLES:
        return field
    name = re.sub(r"\W+", "_", map[field].column).strip("_") or field
    return f"{name}_" if name == "id" else name


def _outcomes(found: Found) -> str:
    if found.liked.kinds:
        said = f"The events {', '.join(found.likes)} are likes"
    elif found.liked.least is not None:
        said = f"A rating of at least {found.liked.least:g} became the outcome {LIKE} with value 1, another one with 0"
    else:
        said = f"Every interaction became the outcome {LIKE}"
    against = [kind for kind in found.kinds if kind in AGAINST]
    segment = _segment(found)
    feedback = [*KNOWN, *(kind for kind in found.kinds if kind not in {*KNOWN, *found.likes, *SHOWN})]
    lines = [
        f"# {said}. Tell them so: POST /v1/outcomes, after an impression of each item shown.",
        "# What speaks for an item, by kind, with the value from which it does.",
        "[histories]",
        f"kinds = {_table(dict.fromkeys(found.interests, 1.0))}",
    ]
    if against:
        lines.append(f"blocks = {_list(dict.fromkeys(['block', 'hide', *against]))}")
    if segment:
        lines.append(f"segment = {_text(segment)}  # what is popular is told apart by it")
    if found.rows > 100_000:
        lines.append(f"backlog_max = {4 * found.rows}  # a server reads all of the history when it starts from nothing")
    lines += [
        "",
        "# What the ranker learns to foresee. A shown item without a like within the window is a no.",
        "[join]",
    ]
    if feedback != [*KNOWN]:
        lines.append(f"feedback = {_list(feedback)}")
    lines += [
        f"[join.tasks.{LIKE}]",
        f"kinds = {_table(dict.fromkeys(found.likes, 1.0))}",
        f"window_s = {found.window_s}",
    ]
    return "\n".join(lines) + "\n"


def _segment(found: Found) -> str:
    """The attribute of users that says in which company they are: a region, else what has the fewest values."""
    few = {
        name: one
        for name, part in found.users.items()
        if name != "id" and 2 <= (one := found.user_facts[part.column]).distinct <= SEGMENTS_MAX
        and one.lists < 0.5 and part.type == "str"
    }  # fmt: skip
    regions = [name for name, one in few.items() if one.plain in REGIONS]
    return (regions or sorted(few, key=lambda name: few[name].distinct))[0] if few else ""


def _ranking(found: Found) -> str:
    user, item = _side(found.users, found.user_facts), _side(found.items, found.item_facts)
    crosses = [f"user.id*item.{name}" for name in item if name != "id" and not item[name].startswith("number")][:3]
    crosses += [f"user.{name}*item.id" for name in user if name != "id"][:3]
    crosses += ["set.history*item.id"] if found.dated else []
    lines = ["[recommend]", 'model = "ranker"', "", "[learn]", 'model = "ranker"', ""]
    if found.dated:
        lines += ["[feature_store]", 'definitions = "features.py"', ""]
    lines += ["# What the ranker knows: columns of users and items, pairs of them, and the features of features.py."]
    lines += ["[features]", 'set = "ranker"'] if found.dated else ["[features]"]
    for name, side in (("user", user), ("item", item)):
        lines += [
            f"{name} = [",
            *(f"    {{ name = {_text(one)}{how.removeprefix('number')} }}," for one, how in side.items()),
            "]",
        ]
    lines.append(f"crosses = {_list(crosses)}")
    return "\n".join(lines) + "\n"


def _side(map: Map, facts: Mapping[str, Facts]) -> dict[str, str]:
    """The columns of one side, and how each is written beside its name; "number..." for one that is no text."""
    side = {"id": ""}
    for field, part in map.items():
        if field in ("id", "title", "created", "stock", "regions", "min_age", "embedding") or len(side) > SIDE_MAX:
            continue
        one = facts[part.column]
        if part.type == "float":
            if step := bucket(one):
                side[attribute(map, field)] = f"number, bucket = {step:g}"
        elif part.type == "list":
            side[attribute(map, field)] = f", places = {max(2, min(one.places, PLACES_MAX))}"
        else:
            side[attribute(map, field)] = ""
    return side


def _placement(found: Found) -> str:
    known = roles(found.items)
    bought = [kind for kind in found.likes if kind in BOUGHT]
    done = bought if found.liked.kinds else [LIKE]
    filters = [f"done = {_list(done)}"] if done else []
    regions = [name for name, part in found.users.items() if found.user_facts[part.column].plain in REGIONS]
    if "regions" in known and regions:
        filters.append(f"region = {_text(regions[0])}")
    lines = [
        "# A list: POST /v1/recommend. Paths of recall: all that there are.",
        "[recommend.placements.home]",
        "n = 20",
        "# What never comes: what the user did these things with. seen_s = 86400: nor what was shown within a day.",
        f"filters = {{ {', '.join(filters)} }}" if filters else "# filters = { seen_s = 86400 }",
        "",
    ]
    if "category" in known or "tags" in known:
        lines += [
            "# Not too much of one category in a row: the last step in this file gives way first.",
            "[[recommend.placements.home.rerank]]", 'step = "window"', 'by = "category"', "most = 2", "window = 5", "",
        ]  # fmt: skip
    if "author" in known:
        lines += [
            "[[recommend.placements.home.rerank]]", 'step = "window"', 'by = "author"', "most = 2", "window = 5", "",
        ]  # fmt: skip
    lines += [
        "# A tenth of the positions for items of the last week, until they have been shown 200 times.",
        "[[recommend.placements.home.rerank]]", 'step = "fresh"', "share = 0.1", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _bounds(found: Found) -> str:
    """History is older than what a log usually keeps, and recall reads it again when its role starts."""
    days = int(found.age_s // DAY_S) + 366
    return (
        "# Recall learns from the history again when it starts: keep it for a year more.\n"
        f"[log]\nretain_s = {days * DAY_S:.1f}\n"
    )


def features(found: Found) -> str:
    """`features.py`: counts and rates over windows that the history is long enough for, and what a user liked last."""
    spans = [name for name, days in (("1d", 1), ("7d", 7), ("30d", 30)) if found.span_s >= days * DAY_S]
    if found.liked.kinds:
        liked = " or ".join(f"kind == {kind!r}" for kind in found.likes)
        liked = f"({liked}) and value >= 1" if len(found.likes) > 1 else f"{liked} and value >= 1"
    else:
        liked = f"kind == {LIKE!r} and value >= 1"
    return FEATURES.format(liked=liked, windows=json.dumps([*spans, "lifetime"]))


FEATURES: Final = '''"""What the ranker knows of users and items beside their attributes: how often they were shown
and liked, and what a user liked last. `millstream.toml` names this file; docs/features.md says what it may hold."""

from millstream.features import Aggregate, FeatureSet, Ratio, Sequence, Source

LIKED = {liked!r}

outcomes = Source(
    name="outcomes",
    columns={{"user": "text", "item": "text", "kind": "text", "value": "number", "id": "text"}},
    id="id",
)


def count(key: str, what: str, window: str, where: str) -> Aggregate:
    """How many outcomes a user or an item had."""
    name = f"{{key}}_{{what}}_{{window}}"
    return Aggregate(name=name, source=outcomes, key=key, op="count", window=window, where=where)


groups = [(key, window) for key in ("user", "item") for window in {windows}]
shown = [count(key, "shown", window, "kind == 'impression'") for key, window in groups]
likes = [count(key, "likes", window, LIKED) for key, window in groups]
rates = [
    Ratio(name=f"{{of}}_rate_{{span}}", over=f"{{of}}_likes_{{span}}", under=f"{{of}}_shown_{{span}}", prior=(1, 10))
    for of, span in groups
]
history = Sequence("history", outcomes, key="user", column="item", n=3, where=LIKED)

ranker = FeatureSet(
    name="ranker",
    features=(*shown, *rates, history),
    parts=tuple(likes),
    description="what the ranker takes of users and items",
)
'''


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _list(texts: Sequence[str] | Mapping[str, None]) -> str:
    return "[" + ", ".join(map(_text, texts)) + "]"


def _table(values: Mapping[str, float]) -> str:
    return "{ " + ", ".join(f"{_text(name)} = {value:.1f}" for name, value in values.items()) + " }"
