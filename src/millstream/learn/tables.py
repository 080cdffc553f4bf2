"""A team's own tables as files: a sample that says what their columns are, then all rows.

Rules of the room:
- Tables are read as streams, and as often as they are needed; several files of one table are one behind the other.
- What is said of columns (columns.py) is proposed from the first rows of each table, and may be revised; nothing is
  read by a map that lacks what it needs.
- A table of items with a row a property is turned; the latest value of each property counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from millstream.clock import Clock
from millstream.errors import BadInput
from millstream.learn import columns
from millstream.learn.columns import Facts, Map, Part, Row, Table
from millstream.learn.history import read_rows
from millstream.learn.interactions import Interactions, Liked, propose, read

TABLES: Final[tuple[Table, ...]] = ("interactions", "items", "users")
PROPERTY: Final = ("property", "attribute", "feature", "name", "key")
VALUE: Final = ("value", "val")


class Tables(msgspec.Struct, frozen=True):
    """The files of each table; several are read one after the other."""

    interactions: list[Path]
    items: list[Path] = []
    users: list[Path] = []

    @property
    def names(self) -> str:
        """For people: what they are called."""
        return ", ".join(path.name for path in [*self.items, *self.users, *self.interactions])

    def of(self, table: Table) -> list[Path]:
        """The files of one."""
        return {"interactions": self.interactions, "items": self.items, "users": self.users}[table]

    def name(self, table: Table) -> str:
        """What errors call one."""
        return ", ".join(map(str, self.of(table)))


class Looked(msgspec.Struct):
    """What a sample of the tables says: facts of columns and a map for each table. `tall`: items told a property a row,
    as (column of the property's name, of its value, its time or "")."""

    tables: Tables
    facts: dict[Table, list[Facts]]
    maps: dict[Table, Map]
    tall: tuple[str, str, str] | None = None
    properties: list[str] = []

    def revise(self, said: Mapping[Table, Mapping[str, Part | None]]) -> None:
        """Take what somebody says in place of what was guessed. BadInput."""
        for table, fields in said.items():
            if fields and not self.facts[table]:
                raise BadInput(f"--map {table}.{next(iter(fields))}: there is no table of {table}: give --{table} FILE")
            self.maps[table] = columns.revised(self.maps[table], fields, self.facts[table], self.tables.name(table))

    def rows(self, table: Table) -> Iterator[Row]:
        """All of a table, from its beginning."""
        rows = _rows(self.tables.of(table))
        if table == "items" and self.tall:
            return _pivoted(rows, self.tall, self.properties, self.maps["items"]["id"].column)
        return rows

    def check(self) -> None:
        """BadInput: what has to be known is not."""
        needed: dict[Table, tuple[str, ...]] = {"interactions": ("user", "item"), "items": ("id",), "users": ("id",)}
        for table, fields in needed.items():
            found = self.facts[table]
            if found and (missing := [one for one in fields if one not in self.maps[table]]):
                prefix = "" if table == "interactions" else f"{table}."
                raise BadInput(
                    f"{self.tables.name(table)}: which column is the {missing[0]}? Say --map "
                    f"{prefix}{missing[0]}=COLUMN; the columns are {', '.join(one.name for one in found)}"
                )


def look(tables: Tables) -> Looked:
    """Read a sample of each table and guess what its columns are. BadInput: a file that cannot be read, or is empty."""
    samples: dict[Table, list[Row]] = {}
    for table in TABLES:
        paths = tables.of(table)
        samples[table] = list(islice(_rows(paths), columns.SAMPLE))
        if paths and not samples[table]:
            raise BadInput(f"{tables.name(table)}: it has no rows")
    facts: dict[Table, list[Facts]] = {table: columns.facts(rows) for table, rows in samples.items()}
    tall, properties = _tall(facts["items"], samples["items"])
    if tall:
        facts["items"] = columns.facts(list(_pivoted(samples["items"], tall, properties, facts["items"][0].name)))
    interactions = columns.guess_interactions(facts["interactions"], facts["items"], facts["users"])
    maps: dict[Table, Map] = {"interactions": interactions, "items": {}, "users": {}}
    known = {one.name: one for one in facts["interactions"]}
    fields: dict[Table, str] = {"items": "item", "users": "user"}
    for table, field in fields.items():
        of = known[interactions[field].column] if field in interactions else None
        if facts[table]:
            maps[table] = columns.guess_entities(table, facts[table], of)
    return Looked(tables, facts, maps, tall, properties)


def gather(looked: Looked, newest: int, clock: Clock) -> Interactions:
    """All interactions, by the map. BadInput."""
    looked.check()
    where = looked.tables.name("interactions")
    return read(looked.rows("interactions"), looked.maps["interactions"], newest, clock.now(), where)


def proposed(looked: Looked, found: Interactions) -> Liked:
    """What most likely means that an item was liked."""
    rating = looked.maps["interactions"].get("rating")
    return propose(found, columns.is_amount(rating.column) if rating else False)


def read_liked(words: Sequence[str], found: Interactions) -> Liked:
    """`["addtocart", "transaction"]`, `["rating>=4"]` or `["all"]`, as somebody says it. BadInput."""
    if list(words) == ["all"]:
        return Liked()
    if len(words) == 1 and ">=" in words[0]:
        field, _, least = words[0].partition(">=")
        try:
            if field.strip() == "rating":
                return Liked(least=float(least))
        except ValueError:
            pass
        raise BadInput(f"--liked {words[0]!r}: write rating>=NUMBER")
    kinds = tuple(word.lower() for word in words)
    if unknown := [kind for kind in kinds if kind not in found.kind_names]:
        there = ", ".join(f"{kind} ({count:,})" for kind, count in found.counts().items()) or "none"
        raise BadInput(
            f"--liked {unknown[0]}: there is no such kind of event; there are: {there}; or rating>=NUMBER, or all"
        )
    return Liked(kinds=kinds)


def _rows(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
        yield from read_rows(path)


def _tall(found: Sequence[Facts], rows: Sequence[Row]) -> tuple[tuple[str, str, str] | None, list[str]]:
    """Whether a table tells a property of an item a row, and which properties most of its items have."""
    plain = {one.plain: one for one in found}
    name = next((plain[word] for word in PROPERTY if word in plain), None)
    value = next((plain[word] for word in VALUE if word in plain), None)
    if name is None or value is None or name.distinct > 5000 or name.distinct < 2 or len(found) > 5:
        return None, []
    time = next((one.name for one in found if one.unit), "")
    counts = Counter(columns.text_of(row[name.name]) for row in rows if row.get(name.name) not in (None, ""))
    worded = sorted(counts, key=lambda one: (one.lstrip("-").isdigit(), -counts[one]))
    return (name.name, value.name, time), worded[: columns.PROPERTIES_MAX]


def _pivoted(rows: Iterable[Row], tall: tuple[str, str, str], properties: Sequence[str], id: str) -> Iterator[Row]:
    """A row an item, of a table with a row a property: the latest value of each counts."""
    name, value, time = tall
    wanted, made = set(properties), dict[str, dict[str, Any]]()
    when = dict[tuple[str, str], float]()
    id = id if id not in (name, value, time) else ""
    for row in rows:
        id = id or next(one for one in row if one not in (name, value, time))
        what = columns.text_of(row.get(name, ""))
        item = made.setdefault(columns.text_of(row.get(id, "")), {id: row.get(id), **dict.fromkeys(properties)})
        if what in wanted:
            at = columns.when(row[time], "s") or columns.when(row[time], "iso") or 0.0 if time else 0.0
            key = str(item[id]), what
            if at >= when.get(key, 0.0):
                when[key], item[what] = at, row.get(value)
    yield from made.values()
