"""How SQL computes the values of events: four ways, of which each op has one.

Rules of the room:
- *running*: what is put together from parts (counts, sums, the smallest, the largest, the latest). Time is cut into
  blocks as long as the window. A window always begins in the block before the one that T is in (hops divide blocks), so
  its value is that of the rest of the one block and of the beginning of the other: two running aggregates over events
  and asks in one order, which is the as-of join that every warehouse has. Nothing is subtracted, so nothing cancels.
  That is right for events that arrived in the block of their time. Of the others, only those that arrived in the next
  block can count, and only for asks in that block: they are joined with these, pair by pair.
- *listed*: the n latest. An event that is later than all that arrived before it is a *record*. One that n records have
  followed is no more among the n latest, so an ask is joined with the events since the last n records that it knows.
- *paired*: asks beside every event of their window, by blocks again, and one GROUP BY.
- *ranked*: the same pairs, put in order within each ask.
- The first two take about as long as sorting; the others grow with the events in the windows of all asks together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from millstream.features.define import Aggregate, span
from millstream.features.where import Both, Comparison, Condition, Not, Type

Way = Literal["running", "listed", "paired", "ranked"]
RUNNING: Final = frozenset(("count", "sum", "mean", "min", "max", "last", "since"))
PAIRED: Final = frozenset(("var", "std", "decay", "approx_distinct"))
_LATEST: Final = frozenset(("last", "last_n", "distinct_n"))
_SO_FAR: Final = "ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"
_MERGED: Final = {"COUNT": "SUM", "SUM": "SUM", "MIN": "MIN", "MAX": "MAX"}


class Look(msgspec.Struct, frozen=True):
    """Aggregates that are computed together: of the asks and events of these names, over one window (`span`, `hop`:
    microseconds, 0 without end)."""

    number: int
    way: Way
    entity: str
    asks: str
    events: str
    span: int
    hop: int
    aggregates: tuple[Aggregate, ...]

    @property
    def name(self) -> str:
        return f"_look_{self.number}_{self.entity}"

    def part(self, what: str) -> str:
        """The name of something on the way."""
        return f"_{what}_{self.number}_{self.entity}"


def way_of(one: Aggregate) -> Way:
    """How an aggregate is computed. One that lists a single latest value is a `last`."""
    if one.op in RUNNING or _is_last(one) or (one.op in ("var", "std") and not one.span):
        return "running"
    if one.op == "last_n":
        return "listed"
    return "paired" if one.op in PAIRED else "ranked"


def shared(one: Aggregate) -> object:
    """What else aggregates have in common that are computed together: a list has its events to itself."""
    return (one.where, one.column) if way_of(one) == "listed" else None


def by_rank(one: Aggregate) -> bool:
    """Whether it needs the rank of events in time."""
    return one.op in _LATEST


def parts(look: Look) -> dict[str, str]:
    """The queries, by name and in order, whose last has a row for every ask that has anything: `_key`, `_at` and a
    column for each value."""
    ways = {"running": _running, "listed": _listed, "paired": _paired, "ranked": _ranked}
    return ways[look.way](look)


def quoted(name: str) -> str:
    return f'"{name}"'


def number(value: float) -> str:
    """A double: without an exponent some dialects read a decimal."""
    text = repr(float(value))
    return text if "e" in text else f"{text}e0"


def condition(one: Condition, columns: dict[str, Type], name: Callable[[str], str] = quoted) -> str:
    """A condition as SQL, whose logic it has anyway; `name` quotes a column."""
    match one:
        case Not(part):
            return f"NOT ({condition(part, columns, name)})"
        case Both(joined, several):
            return "(" + f" {joined.upper()} ".join(condition(part, columns, name) for part in several) + ")"
        case Comparison(column, operator, values):
            constants = [_constant(value) for value in values]
            if operator in ("in", "not in"):
                return f"{name(column)} {operator.upper()} ({', '.join(constants)})"
            return f"{name(column)} {({'==': '=', '!=': '<>'}).get(operator, operator)} {constants[0]}"
    raise AssertionError(one)


def floor(time: str, step: int) -> str:
    """The multiple of `step` at or before a time, before 1970 too (MOD takes the sign of what it divides)."""
    return f"({time} - MOD(MOD({time}, {step}) + {step}, {step}))"


def _constant(value: str | float) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else number(value)


def _is_last(one: Aggregate) -> bool:
    return one.op == "last" or (one.op in _LATEST and one.n == 1)


def _selected(one: Aggregate, value: str) -> str:
    """`value` of the events that count, else NULL."""
    tests = [condition(one.condition, one.source.columns)] if one.condition else []
    if one.column and value != quoted(one.column):
        tests.append(f"{quoted(one.column)} IS NOT NULL")
    return f"CASE WHEN {' AND '.join(tests)} THEN {value} END" if tests else value


# --- running ---------------------------------------------------------------------------------------------------------


class _Cells:
    """What is aggregated, each once: `inputs`, expressions of an event by their type; `cells`, aggregates of these."""

    def __init__(self) -> None:
        self.inputs: dict[str, str] = {}
        self.cells: dict[tuple[str, str], str] = {}

    def add(self, function: str, text: str, kind: str) -> str:
        """The name of a cell."""
        self.inputs.setdefault(text, kind)
        return self.cells.setdefault((function, text), f"_c{len(self.cells)}")

    @property
    def names(self) -> list[str]:
        return [f"_x{at}" for at in range(len(self.inputs))]

    def of_events(self) -> str:
        return ", ".join(f"{text} AS _x{at}" for at, text in enumerate(self.inputs))

    def of_asks(self) -> str:
        return ", ".join(f"CAST(NULL AS {kind}) AS _x{at}" for at, kind in enumerate(self.inputs.values()))

    def over(self, window: str) -> str:
        order = list(self.inputs)
        return ", ".join(f"{f}(_x{order.index(text)}) OVER ({window}) AS {c}" for (f, text), c in self.cells.items())

    def of_one(self) -> str:
        """The cells of a single event."""
        order = list(self.inputs)
        return ", ".join(
            f"CASE WHEN _x{order.index(text)} IS NULL THEN 0 ELSE 1 END AS {cell}"
            if function == "COUNT"
            else f"_x{order.index(text)} AS {cell}"
            for (function, text), cell in self.cells.items()
        )

    def merged(self) -> str:
        return ", ".join(f"{_MERGED[function]}({cell}) AS {cell}" for (function, _), cell in self.cells.items())


def _running(look: Look) -> dict[str, str]:
    cells = _Cells()
    joins: list[str] = []
    values = [f"{_running_value(one, cells, look, joins)} AS {quoted(one.name)}" for one in look.aggregates]
    made = _in_window(look, cells) if look.span else _for_ever(look, cells)
    made[look.name] = (
        f"SELECT _all._key, _all._at, {', '.join(values)} FROM {quoted(list(made)[-1])} AS _all {' '.join(joins)}"
    )
    return made


def _running_value(one: Aggregate, cells: _Cells, look: Look, joins: list[str]) -> str:
    """The value as of an ask, from cells; of a `last` by way of the event's rank."""
    if one.op == "count":
        return f"CAST({cells.add('COUNT', _selected(one, '1'), 'BIGINT')} AS DOUBLE)"
    if one.op == "since":
        latest = cells.add("MAX", _selected(one, "_time"), "BIGINT")
        return f"CAST(_all._at - {latest} AS DOUBLE) / 1e6"
    if _is_last(one):
        rank, alias = cells.add("MAX", _selected(one, "_rank"), "BIGINT"), f"_latest_{len(joins)}"
        joins.append(
            f"LEFT JOIN {quoted(look.events)} AS {alias} ON {alias}._key = _all._key AND {alias}._rank = _all.{rank}"
        )
        return f"{alias}.{quoted(one.column)}"
    column = _selected(one, quoted(one.column))
    if one.op in ("var", "std"):  # without a window there is nothing to put together
        var = cells.add("VAR_POP", column, "DOUBLE")
        return var if one.op == "var" else f"SQRT({var})"
    if one.op == "mean":
        total, count = cells.add("SUM", column, "DOUBLE"), cells.add("COUNT", column, "DOUBLE")
        return f"{total} / NULLIF(CAST({count} AS DOUBLE), 0e0)"
    return cells.add(one.op.upper(), column, "DOUBLE")


def _for_ever(look: Look, cells: _Cells) -> dict[str, str]:
    """Every event that arrived before the ask. An ask comes before what arrives at its time: `_turn`."""
    union = (
        f"SELECT _key, _at, _at AS _when, 0 AS _turn, {cells.of_asks()} FROM {quoted(look.asks)} UNION ALL "
        f"SELECT _key, CAST(NULL AS BIGINT), _arrival, 1, {cells.of_events()} FROM {quoted(look.events)}"
    )
    over = cells.over(f"PARTITION BY _key ORDER BY _when, _turn {_SO_FAR}")
    return {look.part("whole"): _asked(f"SELECT _key, _at, {over} FROM ({union}) AS _both", cells)}


def _in_window(look: Look, cells: _Cells) -> dict[str, str]:
    """The end of the block before, the beginning of this one, and what arrived in this one of the one before."""
    edges, cut, never = quoted(look.part("edges")), quoted(look.part("cut")), "CAST(NULL AS BIGINT)"
    names, inputs = ", ".join(cells.cells.values()), ", ".join(cells.names)
    begun = (
        f"SELECT _key, _at, _block, _at AS _when, 0 AS _turn, {cells.of_asks()} FROM {edges} UNION ALL "
        f"SELECT _key, {never}, _block, _arrival, 1, {inputs} FROM {cut} WHERE _came = _block"
    )
    ended = (  # backwards: an event at the far edge comes before the ask
        f"SELECT _key, _at, _block - {look.span} AS _block, _far AS _when, 1 AS _turn, {cells.of_asks()} FROM {edges} "
        f"UNION ALL SELECT _key, {never}, _block, _time, 0, {inputs} FROM {cut} WHERE _came = _block"
    )
    over_begun = cells.over(f"PARTITION BY _key, _block ORDER BY _when, _turn {_SO_FAR}")
    over_ended = cells.over(f"PARTITION BY _key, _block ORDER BY _when DESC, _turn {_SO_FAR}")
    made = {
        look.part("begun"): _asked(f"SELECT _key, _at, {over_begun} FROM ({begun}) AS _both", cells),
        look.part("ended"): _asked(f"SELECT _key, _at, {over_ended} FROM ({ended}) AS _both", cells),
        look.part("late"): (
            f"SELECT _ask._key, _ask._at, {cells.of_one()} FROM {edges} AS _ask JOIN {cut} AS _event "
            f"ON _event._key = _ask._key AND _event._came = _ask._block AND _event._block = _ask._block - {look.span} "
            "WHERE _event._arrival < _ask._at AND _event._time >= _ask._far"
        ),
    }
    three = " UNION ALL ".join(f"SELECT _key, _at, {names} FROM {quoted(name)}" for name in made)
    return {
        look.part("edges"): _edges(look),
        look.part("cut"): _cut(look, cells),
        **made,
        look.part("whole"): f"SELECT _key, _at, {cells.merged()} FROM ({three}) AS _three GROUP BY _key, _at",
    }


def _cut(look: Look, cells: _Cells) -> str:
    """Events with the block of their time and that of their arrival; those alone of which something counts."""
    blocks = f"{floor('_time', look.span)} AS _block, {floor('_arrival', look.span)} AS _came"
    cut = f"SELECT _key, _time, _arrival, {blocks}, {cells.of_events()} FROM {quoted(look.events)}"
    return f"SELECT * FROM ({cut}) AS _all WHERE {' OR '.join(f'{name} IS NOT NULL' for name in cells.names)}"


def _asked(running: str, cells: _Cells) -> str:
    """The rows of asks alone."""
    return f"SELECT _key, _at, {', '.join(cells.cells.values())} FROM ({running}) AS _along WHERE _at IS NOT NULL"


def _edges(look: Look) -> str:
    """Asks with the far edge of their window, and the block that they are in."""
    far, block = floor(f"(_at - {look.span})", look.hop), floor("_at", look.span)
    return f"SELECT _key, _at, {far} AS _far, {block} AS _block FROM {quoted(look.asks)}"


# --- listed ----------------------------------------------------------------------------------------------------------


def _listed(look: Look) -> dict[str, str]:
    """See above. `_age`: how many records had come, with the event itself or before the ask."""
    first, most = look.aggregates[0], max(one.n for one in look.aggregates)
    along, asks = f"PARTITION BY _key ORDER BY _arrival, _rank {_SO_FAR}", look.asks
    selected = f"SELECT _key, _time, _arrival, _rank, {_selected(first, quoted(first.column))} AS _x FROM "
    new = f"CASE WHEN _rank = MAX(_rank) OVER ({along}) THEN 1 ELSE 0 END AS _new"
    cut, aged, known = (quoted(look.part(name)) for name in ("cut", "aged", "known"))
    made: dict[str, str] = {}
    far, inside = "", "_event._arrival < _ask._at"
    if look.span:
        asks = look.part("edges")
        made[asks] = _edges(look)
        far, inside = ", _far", f"{inside} AND _event._time >= _ask._far"
    none = ", CAST(NULL AS BIGINT)" if look.span else ""
    both = (
        f"SELECT _key, _at{far}, _at AS _when, 0 AS _turn, CAST(NULL AS BIGINT) AS _age FROM {quoted(asks)} UNION ALL "
        f"SELECT _key, CAST(NULL AS BIGINT){none}, _arrival, 1, _age FROM {aged}"
    )
    age = f"MAX(_age) OVER (PARTITION BY _key ORDER BY _when, _turn {_SO_FAR}) AS _age"
    back = " UNION ALL ".join(f"SELECT {at} AS _back" for at in range(most))
    ask = f"SELECT _key, _at{far}, _age - _back AS _age FROM {known} AS _all CROSS JOIN ({back}) AS _steps"
    values = [value for one in look.aggregates for value in _places(one, "_place = {}", "_x")]
    return made | {
        look.part("cut"): f"SELECT *, {new} FROM ({selected} {quoted(look.events)}) AS _all WHERE _x IS NOT NULL",
        look.part(
            "aged"
        ): f"SELECT _key, _time, _arrival, _rank, _x, CAST(SUM(_new) OVER ({along}) AS BIGINT) AS _age FROM {cut}",
        look.part("known"): (
            f"SELECT _key, _at{far}, _age FROM (SELECT _key, _at{far}, {age} FROM ({both}) AS _both) AS _along "
            "WHERE _at IS NOT NULL AND _age IS NOT NULL"
        ),
        look.part("ordered"): (
            "SELECT _ask._key, _ask._at, _event._x, "
            "ROW_NUMBER() OVER (PARTITION BY _ask._key, _ask._at ORDER BY _event._rank DESC) AS _place "
            f"FROM ({ask}) AS _ask JOIN {aged} AS _event ON _event._key = _ask._key AND _event._age = _ask._age "
            f"WHERE {inside}"
        ),
        look.name: (
            f"SELECT _key, _at, {', '.join(values)} FROM {quoted(look.part('ordered'))} "
            f"WHERE _place <= {most} GROUP BY _key, _at"
        ),
    }


# --- paired and ranked -----------------------------------------------------------------------------------------------


def _pairs(look: Look, inputs: list[str], ranked: bool) -> dict[str, str]:
    """Every ask beside every event that its window holds: `_x0`, `_x1`, ... are NULL where an event does not count."""
    taken = [f"{text} AS _x{at}" for at, text in enumerate(inputs)] + (["_rank"] if ranked else [])
    names = [f"_x{at}" for at in range(len(inputs))] + (["_rank"] if ranked else [])
    counts = " OR ".join(f"_event._x{at} IS NOT NULL" for at in range(len(inputs)))
    block = f", {floor('_time', look.span)} AS _block" if look.span else ""
    events = f"SELECT _key, _time, _arrival{block}, {', '.join(taken)} FROM {quoted(look.events)}"
    made: dict[str, str] = {}
    asks, on, inside = quoted(look.asks), "_event._key = _ask._key", f"({counts}) AND _event._arrival < _ask._at"
    if look.span:
        edges = quoted(look.part("edges"))
        made[look.part("edges")] = _edges(look)
        asks = (
            f"(SELECT _key, _at, _far, _block FROM {edges} "
            f"UNION ALL SELECT _key, _at, _far, _block - {look.span} FROM {edges})"
        )
        on, inside = f"{on} AND _event._block = _ask._block", f"{inside} AND _event._time >= _ask._far"
    made[look.part("pairs")] = (
        f"SELECT _ask._key, _ask._at, _event._time, {', '.join(f'_event.{name}' for name in names)} "
        f"FROM {asks} AS _ask JOIN ({events}) AS _event ON {on} WHERE {inside}"
    )
    return made


def _paired(look: Look) -> dict[str, str]:
    inputs = list(dict.fromkeys(_selected(one, quoted(one.column)) for one in look.aggregates))
    values = [
        f"{_paired_value(one, f'_x{inputs.index(_selected(one, quoted(one.column)))}')} AS {quoted(one.name)}"
        for one in look.aggregates
    ]
    made = _pairs(look, inputs, ranked=False)
    made[look.name] = f"SELECT _key, _at, {', '.join(values)} FROM {quoted(look.part('pairs'))} GROUP BY _key, _at"
    return made


def _paired_value(one: Aggregate, x: str) -> str:
    if one.op == "approx_distinct":
        return f"CAST(COUNT(DISTINCT {x}) AS DOUBLE)"
    if one.op == "decay":
        return f"SUM({x} * POWER(0.5e0, CAST(_at - _time AS DOUBLE) / {number(span(one.half_life))}))"
    return f"VAR_POP({x})" if one.op == "var" else f"SQRT(VAR_POP({x}))"


def _ranked(look: Look) -> dict[str, str]:
    """Three steps, each a list of window functions over the pairs: numbers become whole (some dialects have no
    partitions by doubles), then equal values are told apart and counted, then all are put in order."""
    inputs = list(dict.fromkeys(_selected(one, quoted(one.column)) for one in look.aggregates))
    steps: tuple[list[str], list[str], list[str]] = ([], [], [])
    values: list[str] = []
    for at, one in enumerate(look.aggregates):
        values += _ranked_values(one, at, f"_x{inputs.index(_selected(one, quoted(one.column)))}", steps)
    made = _pairs(look, inputs, ranked=any(by_rank(one) for one in look.aggregates))
    for name, columns in zip(("numbered", "told", "ordered"), steps, strict=True):
        if columns:
            last = quoted(list(made)[-1])
            made[look.part(name)] = f"SELECT *, {', '.join(dict.fromkeys(columns))} FROM {last}"
    last = quoted(list(made)[-1])
    made[look.name] = f"SELECT _key, _at, {', '.join(values)} FROM {last} GROUP BY _key, _at"
    return made


def _ranked_values(one: Aggregate, at: int, x: str, steps: tuple[list[str], list[str], list[str]]) -> list[str]:
    numbered, told, ordered = steps
    missing_last = f"CASE WHEN {x} IS NULL THEN 1 ELSE 0 END"
    place, same = f"_place{at}", x
    if one.op == "quantile":
        ordered.append(f"ROW_NUMBER() OVER (PARTITION BY _key, _at ORDER BY {missing_last}, {x}) AS {place}")
        ordered.append(f"COUNT({x}) OVER (PARTITION BY _key, _at) AS _count{at}")
        # A quotient is rounded as the constant is, a product would not be: 0.07 * 100 is over 7
        share = f"CAST({place} AS DOUBLE) / NULLIF(CAST(_count{at} AS DOUBLE), 0e0)"
        return [f"MIN(CASE WHEN {share} >= {number(one.q)} THEN {x} END) AS {quoted(one.name)}"]
    if one.source.columns[one.column] == "number":
        same = f"_same{at}"
        numbered.append(f"DENSE_RANK() OVER (PARTITION BY _key, _at ORDER BY {missing_last}, {x}) AS {same}")
    alike = f"PARTITION BY _key, _at, {same}"
    if one.op == "distinct_n":
        first, order = f"ROW_NUMBER() OVER ({alike} ORDER BY _rank DESC)", "_rank DESC"
    else:
        told.append(f"COUNT(*) OVER ({alike}) AS _often{at}")
        first, order = f"ROW_NUMBER() OVER ({alike} ORDER BY _time)", f"_often{at} DESC, {x}"
    told.append(f"{first} AS _first{at}")
    counts = f"CASE WHEN {x} IS NOT NULL AND _first{at} = 1 THEN 0 ELSE 1 END"
    ordered.append(f"ROW_NUMBER() OVER (PARTITION BY _key, _at ORDER BY {counts}, {order}) AS {place}")
    return _places(one, f"_first{at} = 1 AND {place} = {{}}", x)


def _places(one: Aggregate, test: str, x: str) -> list[str]:
    names = [one.name] if one.n == 1 else [f"{one.name}_{at}" for at in range(one.n)]
    return [f"MAX(CASE WHEN {test.format(at)} THEN {x} END) AS {quoted(name)}" for at, name in enumerate(names, 1)]
