"""What a feature is: definitions as code, checked, and hashed.

Rules of the room:
- A definition is data. Its hash covers all that decides a value (source, key, column, op, window, condition, datatype,
  and the rules of time below), so another hash is another feature; who owns it and what it is for are not in it.
- Values are as of a time T, by what was known then: of the events that arrived before T, those with
  `floor((T - window) / hop) * hop <= time < T`. `time` is the event's own, but never after its arrival. The hop is the
  window's grain: the far edge moves by whole hops, the near edge is exact. docs/features.md says all of it.
- Times and windows are whole microseconds.
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, Literal

import msgspec

from millstream import errors
from millstream.features.where import Condition, Type, columns_of, parse

Op = Literal[
    "count", "sum", "mean", "var", "std", "min", "max", "last", "last_n", "distinct_n", "top_k", "approx_distinct",
    "quantile", "decay", "since",
]  # fmt: skip
Datatype = Literal["FP32", "FP64", "UINT32"]
SEMANTICS: Final = 1
"""The rules of time and of the ops; part of every hash."""
SECOND: Final = 1_000_000
LIFETIME: Final = "lifetime"
N_MAX, HOPS_MAX, NAME_MAX = 64, 100, 64
NEEDS_COLUMN: Final = frozenset(
    ("sum", "mean", "var", "std", "min", "max", "last", "last_n", "distinct_n", "top_k", "approx_distinct", "quantile",
     "decay")
)  # fmt: skip
TEXT_OPS: Final = frozenset(("last", "last_n", "distinct_n", "top_k", "approx_distinct"))
"""Ops that take columns of text; all but `approx_distinct` then give tokens (UINT32)."""
SKETCHES: Final = frozenset(("top_k", "approx_distinct", "quantile"))
_SPAN = re.compile(r"([0-9]+)(s|m|h|d)")
_UNITS = {"s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86400 * SECOND}
_GRAINS = [seconds * SECOND for seconds in (5, 15, 60, 300, 900, 3600, 4 * 3600, 86400, 7 * 86400)]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def span(text: str, where: str = "span") -> int:
    """Microseconds of "90s", "30m", "1h", "7d"; 0 of "lifetime". Anything else: Misconfigured."""
    if text == LIFETIME:
        return 0
    found = _SPAN.fullmatch(text)
    if not found or int(found[1]) == 0 or int(found[1]) > 100_000:
        raise errors.Misconfigured(
            f'{where}: {text!r} is no span of time; write "90s", "30m", "1h", "7d" or "lifetime"'
        )
    return int(found[1]) * _UNITS[found[2]]


def hop_of(window: int, sketch: bool = False) -> int:
    """The grain of a window, microseconds: the largest usual step that divides it into at least 12 (a sketch: 6) and at
    most HOPS_MAX, else the largest number of whole days that does; 0 where none does."""
    least = 6 if sketch else 12
    fits = [grain for grain in _GRAINS if window % grain == 0 and window // grain >= least]
    if not fits or window // fits[-1] > HOPS_MAX:
        days = window // _UNITS["d"] if window % _UNITS["d"] == 0 else 0
        fits = [days // hops * _UNITS["d"] for hops in range(HOPS_MAX, least - 1, -1) if days and days % hops == 0]
    return fits[-1] if fits else 0


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Events of one kind: a topic, and Parquet files of the same rows. `columns`: name -> "number" or "text". Every row
    also has `event_time` and `arrival` (unix seconds). `id`: the column that names an event: of those that come again
    within `again` of one another the first counts, if it is given."""

    name: str
    columns: dict[str, Type]
    topic: str = ""
    table: str = ""
    id: str = ""
    again: str = "1h"
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_types(self, f"source {self.name}")
        check_name(self.name, "source")
        where = f"source {self.name}"
        for column in self.columns:
            check_name(column, where)
        if "event_time" in self.columns or "arrival" in self.columns:
            raise errors.Misconfigured(f"{where}: event_time and arrival are there anyway; leave them out of columns")
        if self.id and self.columns.get(self.id) != "text":
            raise errors.Misconfigured(f"{where}: id = {self.id!r} is no column of text")
        if span(self.again, where) == 0:
            raise errors.Misconfigured(f"{where}: again must end; write how far apart copies of one event may come")

    @property
    def log_topic(self) -> str:
        """The topic of the log that has its events."""
        return self.topic or self.name

    @property
    def content(self) -> object:
        """What decides values."""
        return [self.name, sorted(self.columns.items()), self.id, span(self.again) if self.id else 0]


class Aggregate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """One number (`last_n`, `distinct_n`, `top_k`: n of them) of the events of `source` whose column `key` names the
    entity. See docs/features.md for every op, its value where there are no events, and its error if it has one."""

    name: str
    source: Source
    key: str
    op: Op
    column: str = ""
    window: str = LIFETIME
    where: str = ""
    entity: str = ""
    n: int = 1
    q: float = 0.5
    half_life: str = ""
    datatype: Datatype = "FP32"
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_types(self, f"feature {self.name}")
        check_name(self.name, "feature")
        check_name(self.of, f"feature {self.name}: entity")
        where, columns = f"feature {self.name}", self.source.columns
        if columns.get(self.key) != "text":
            raise errors.Misconfigured(f"{where}: key = {self.key!r} is no column of text of source {self.source.name}")
        if bool(self.column) != (self.op in NEEDS_COLUMN):
            raise errors.Misconfigured(f"{where}: op {self.op!r} takes {'a' if not self.column else 'no'} column")
        if self.column and self.column not in columns:
            raise errors.Misconfigured(f"{where}: source {self.source.name} has no column {self.column!r}")
        if self.column and columns[self.column] == "text" and self.op not in TEXT_OPS:
            raise errors.Misconfigured(f"{where}: op {self.op!r} takes a number, and {self.column!r} is text")
        if self.tokens != (self.datatype == "UINT32"):
            wanted = "UINT32 (tokens)" if self.tokens else "FP32 or FP64"
            raise errors.Misconfigured(f"{where}: its datatype is {wanted}, got {self.datatype}")
        if not 1 <= self.n <= N_MAX or (self.n > 1 and self.op not in ("last_n", "distinct_n", "top_k")):
            raise errors.Misconfigured(f"{where}: n = {self.n}: 1 to {N_MAX}, for last_n, distinct_n and top_k alone")
        if not 0 <= self.q <= 1:
            raise errors.Misconfigured(f"{where}: q = {self.q}: a quantile lies between 0 and 1")
        if (self.op == "decay") != bool(self.half_life) or (self.half_life and not span(self.half_life, where)):
            raise errors.Misconfigured(f'{where}: op "decay", and no other, has a half_life that ends')
        if self.op == "decay" and self.window != LIFETIME:
            raise errors.Misconfigured(f'{where}: op "decay" has the window "lifetime": its half_life forgets')
        if (window := span(self.window, where)) and not (self.hop and window // self.hop <= HOPS_MAX):
            raise errors.Misconfigured(
                f"{where}: window {self.window!r} has no usual grain; take whole minutes up to an hour, else whole "
                "hours or days"
            )
        if 0 < window < 60 * SECOND:
            raise errors.Misconfigured(f"{where}: window {self.window!r} is shorter than a minute")
        _ = self.condition

    @property
    def tokens(self) -> bool:
        """Whether its values are tokens of text."""
        text = bool(self.column) and self.source.columns.get(self.column) == "text"
        return text and self.op != "approx_distinct"

    @property
    def of(self) -> str:
        """The entity that it belongs to."""
        return self.entity or self.key

    @property
    def width(self) -> int:
        """How many values it is."""
        return self.n

    @property
    def span(self) -> int:
        """Its window in microseconds; 0: without end."""
        return span(self.window)

    @cached_property
    def hop(self) -> int:
        """The grain of its window in microseconds; 0 where it has none."""
        return hop_of(self.span, self.op in SKETCHES) if self.span else 0

    @cached_property
    def condition(self) -> Condition | None:
        """`where`, read."""
        return parse(self.where, self.source.columns, f"feature {self.name}") if self.where else None

    @property
    def looks_at(self) -> set[str]:
        """The columns of its source that it needs."""
        named = {self.key, self.column} - {""}
        return named | (columns_of(self.condition) if self.condition else set())

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    @property
    def content(self) -> object:
        """What decides its values."""
        condition = msgspec.json.encode(self.condition).decode() if self.condition else ""
        half_life = span(self.half_life) if self.half_life else 0
        what = [self.op, self.column, self.n, self.q if self.op == "quantile" else 0, half_life]
        return [
            "aggregate",
            self.source.content,
            self.key,
            self.of,
            *what,
            self.span,
            self.hop,
            condition,
            self.datatype,
        ]


def Attribute(name: str, source: Source, key: str, column: str, **more: Any) -> Aggregate:  # noqa: N802
    """What was last said of an entity: a column of the latest row of a source of facts about it."""
    return Aggregate(name=name, source=source, key=key, op="last", column=column, **_of_type(source, column) | more)


def Sequence(name: str, source: Source, key: str, column: str, n: int, **more: Any) -> Aggregate:  # noqa: N802
    """The last n values of a column, newest first: what a ranker that attends to history takes."""
    more = _of_type(source, column) | more
    return Aggregate(name=name, source=source, key=key, op="last_n", column=column, n=n, **more)


def _of_type(source: Source, column: str) -> dict[str, Any]:
    return {"datatype": "UINT32"} if source.columns.get(column) == "text" else {}


class Ratio(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One number over another: `(over + prior[0]) / (under + prior[1])`. NaN where a part is, and where it would divide
    by 0."""

    name: str
    over: str
    under: str
    prior: tuple[float, float] = (0.0, 0.0)
    datatype: Literal["FP32", "FP64"] = "FP32"
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_types(self, f"feature {self.name}")
        check_name(self.name, "feature")
        if not all(math.isfinite(part) for part in self.prior):
            raise errors.Misconfigured(f"feature {self.name}: prior = {self.prior}: finite numbers")

    @property
    def width(self) -> int:
        return 1

    @property
    def inputs(self) -> tuple[str, ...]:
        """Features that it is made of."""
        return self.over, self.under

    @property
    def content(self) -> object:
        return ["ratio", self.over, self.under, list(self.prior), self.datatype]


class Transform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`function(columns)`: one value a row, from other features and from what the request brings. Columns are arrays
    [n], float64 (tokens: uint32), by the names in `inputs` and `request`. The function's text is part of the hash, so
    it may depend on numpy and its argument alone: closures and defaults are refused."""

    name: str
    function: Callable[[Mapping[str, Any]], Any]
    inputs: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    datatype: Datatype = "FP32"
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_types(self, f"feature {self.name}")
        check_name(self.name, "feature")
        names = (*self.inputs, *self.request)
        if not names or len(set(names)) < len(names):
            raise errors.Misconfigured(
                f"feature {self.name}: a transform takes features or values of the request, each once; got {names}"
            )
        for name in self.request:
            check_name(name, f"feature {self.name}: request")
        _ = self.content

    @property
    def width(self) -> int:
        return 1

    @property
    def content(self) -> object:
        try:
            text = textwrap.dedent(inspect.getsource(self.function))
        except (OSError, TypeError) as error:
            raise errors.Misconfigured(
                f"feature {self.name}: the text of its function cannot be read ({error})"
            ) from None
        kept = [getattr(self.function, name, None) for name in ("__closure__", "__defaults__", "__kwdefaults__")]
        if any(kept) or text.count("lambda") > 1:
            raise errors.Misconfigured(
                f"feature {self.name}: its text does not say all of its function; write a function of its own, without "
                "defaults, that takes nothing from around it"
            )
        return ["transform", list(self.inputs), list(self.request), text, self.datatype]


class Cross(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The token of two values together, tokens or numbers; 0 where one is missing."""

    name: str
    left: str
    right: str
    owner: str = ""
    description: str = ""
    datatype: Literal["UINT32"] = "UINT32"

    def __post_init__(self) -> None:
        check_types(self, f"feature {self.name}")
        check_name(self.name, "feature")

    @property
    def width(self) -> int:
        return 1

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.left, self.right

    @property
    def content(self) -> object:
        return ["cross", self.left, self.right]


Feature = Aggregate | Ratio | Transform | Cross


def check_types(one: msgspec.Struct, where: str) -> None:
    """Refuse a field that is not of its type: Python's own constructors take anything."""
    for field in msgspec.structs.fields(one):
        if field.name in ("source", "function", "features", "parts"):
            continue
        try:
            msgspec.convert(getattr(one, field.name), field.type)
        except (msgspec.ValidationError, OverflowError) as error:
            raise errors.Misconfigured(f"{where}: {field.name}: {error}") from None


def check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > NAME_MAX:
        raise errors.Misconfigured(f"{what} {name[:80]!r}: a name is a letter, then at most 63 of a-z, 0-9 and _")
