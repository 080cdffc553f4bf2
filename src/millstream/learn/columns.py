"""What the columns of a team's own tables are: guessed from their names and from what stands in them.

Rules of the room:
- A guess is a proposal: a person, or an option, says otherwise field by field (`read_entries`).
- A name that says it counts first; then whether values are those of another table's ids; then their looks. Where two
  columns are as good, nothing is guessed.
- Fields of interactions: user, item, event_time, kind, rating. Of items and users: an id, what the catalogue gives a
  meaning (`ROLES`), and plain attributes, which keep the names of their columns. What nobody can learn from, such as
  long texts, is left out.
- Pure functions over a sample of rows; nothing is read or written here.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from millstream.errors import BadInput

Row = Mapping[str, Any]
Table = Literal["interactions", "items", "users"]
TIMES: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Units of times that are numbers, in seconds; `iso` is a text or a date."""
TYPES: Final = ("str", "float", "list", "iso", *TIMES)
ROLES: Final = ("category", "tags", "title", "created", "author", "stock", "regions", "min_age", "embedding")
SAMPLE: Final = 20_000
ATTRIBUTES_MAX: Final = 8
PROPERTIES_MAX: Final = 12
LONG: Final = 64  # characters of a text that says too much to be one of a few
_NAMES: Final[dict[str, str]] = {
    "user": "userid user uid visitorid visitor customerid customer reviewerid reviewer memberid member accountid "
    "account clientid client personid profileid userhash username sessionid session",
    "item": "itemid item productid product asin parentasin sku movieid movie articleid article newsid contentid "
    "content artistid artmbid artist trackid track songid bookid isbn videoid adid postid objectid stockcode",
    "event_time": "eventtime timestamp unixreviewtime time ts datetime date eventdate createdat occurredat invoicedate "
    "at when",
    "kind": "event eventtype kind action actiontype behavior behaviortype behaviour type activity interaction",
    "rating": "rating overall stars score rate grade value like label plays playcount listens count quantity qty "
    "weight dwell watchtime duration",
    "category": "category categoryid cat categoryname maincategory maincat genre section topic department subject "
    "class producttype",
    "tags": "tags genres keywords categories labels topics tag subjects",
    "title": "title name itemname productname headline movietitle label",
    "created": "created createdat publishedat published publishdate releasedate pubdate date timestamp added addedat "
    "unixtime",
    "author": "author brand seller publisher channel artist artistname creator store vendor director",
    "stock": "stock instock available availability inventory",
    "regions": "regions region countries country markets",
    "min_age": "minage agelimit fsk ageminimum",
    "embedding": "embedding vector embeddings emb",
}  # fmt: skip
_AMOUNTS: Final = frozenset(
    ["plays", "playcount", "listens", "count", "quantity", "qty", "weight", "dwell", "watchtime", "duration"]
)
_SEPARATORS: Final = re.compile(r"[|,;]+")


class Part(msgspec.Struct, frozen=True):
    """One entry of a map: the column that a field comes from, and how it is read: one of TYPES."""

    column: str
    type: str = "str"


Map = dict[str, Part]


class Facts(msgspec.Struct, frozen=True):
    """Of a column in a sample of rows: how many had a value, how many different ones, the share of these that are
    numbers, lists and ISO times, quantiles of the numbers (.05, .5, .95), whether all are whole, the longest text and
    the most values of a list."""

    name: str
    rows: int
    filled: int
    distinct: int
    numbers: float
    lists: float
    times: float
    low: float
    middle: float
    high: float
    whole: bool
    longest: int
    places: int
    values: frozenset[str]

    @property
    def plain(self) -> str:
        """Its name without what people write differently."""
        return re.sub(r"[^a-z0-9]", "", self.name.lower())

    @property
    def unit(self) -> str:
        """How it is a time: "iso", or a unit of TIMES by its size; "" for none."""
        if self.filled and self.times > 0.5:
            return "iso"
        if self.numbers < 0.99 or self.low <= 0:
            return ""
        return next((unit for unit, of in TIMES.items() if self.low * of >= 1e8 and self.high * of < 1e10), "")


def facts(rows: Sequence[Row]) -> list[Facts]:
    """Of each column of a sample."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [_facts(name, [row.get(name) for row in rows]) for name in names]


def _facts(name: str, cells: list[Any]) -> Facts:
    filled = [one for one in cells if one is not None and one != ""]
    lists = [one for cell in filled if (one := _list(cell)) is not None]
    plain = not any(isinstance(one, (list, tuple)) or "|" in str(one) for one in filled)
    if plain and not all(map(_bracketed, filled)) and len({len(one) for one in lists}) == 1:
        lists = []  # "Dec 27, 2006", "Oslo, Norway": commas, but no list
    numbers = sorted(number for one in filled if (number := _number(one)) is not None)
    times = sum(_moment(one) is not None for one in filled if not isinstance(one, (int, float, list)))
    texts = {text_of(one) for one in filled}
    count = max(len(filled), 1)

    def quantile(q: float) -> float:
        return numbers[min(int(q * len(numbers)), len(numbers) - 1)] if numbers else math.nan

    return Facts(
        name=name, rows=len(cells), filled=len(filled), distinct=len(texts), numbers=len(numbers) / count,
        lists=len(lists) / count, times=times / count, low=quantile(0.05), middle=quantile(0.5), high=quantile(0.95),
        whole=all(one.is_integer() for one in numbers), longest=max(map(len, texts), default=0),
        places=max(map(len, lists), default=1), values=frozenset(texts),
    )  # fmt: skip


def guess_interactions(found: Sequence[Facts], items: Sequence[Facts] = (), users: Sequence[Facts] = ()) -> Map:
    """Which columns say who did what with which item when. What cannot be told is left out."""
    map: Map = {}
    times = [one for one in found if one.unit]
    named = _named("event_time", times) or (times[0] if len(times) == 1 else None) or _named("event_time", found)
    if named:  # where only the name says so, reading it tells what is wrong with it
        map["event_time"] = Part(named.name, named.unit or "iso")
    for field, others in (("item", items), ("user", users)):
        left = [one for one in found if one.name not in _taken(map) and one.filled]
        known = [one for one in others if one.distinct == one.filled == one.rows]
        if one := _named(field, left) or _overlapping(left, known):
            map[field] = Part(one.name)
    left = [one for one in found if one.name not in _taken(map)]
    if kind := _named("kind", [one for one in left if one.distinct <= 50 and one.numbers < 0.5]):
        map["kind"] = Part(kind.name)
    if rating := _named("rating", [one for one in left if one.numbers > 0.9 and one.name not in _taken(map)]):
        map["rating"] = Part(rating.name, "float")
    return map


def is_amount(column: str) -> bool:
    """Whether a number is how much somebody did, not how well it was liked."""
    return re.sub(r"[^a-z0-9]", "", column.lower()) in _AMOUNTS


def guess_entities(table: Table, found: Sequence[Facts], known: Facts | None = None) -> Map:
    """Which column is the id of items or users, and what the others say. `known`: the column of interactions that
    names them."""
    map: Map = {}
    unique = [one for one in found if one.filled == one.rows and one.distinct > 0.98 * one.rows]
    same = next(
        (one for one in found if known is not None and one.name == known.name and one.distinct > one.rows / 2), None
    )
    by_name = next((one for one in found if one.plain == "id"), None) or _named(table.removesuffix("s"), found)
    if one := same or (_overlapping(unique, [known]) if known else None) or by_name:
        map["id"] = Part(one.name)
    if table == "items":
        for role in ROLES:
            if one := _named(role, [one for one in found if one.name not in _taken(map) and _fits(role, one)]):
                map[role] = Part(one.name, _type_of(role, one))
    for one in found:
        if one.name in _taken(map) or one.distinct < 2 or len(map) > ATTRIBUTES_MAX + len(ROLES):
            continue
        if type := _attribute(one):
            map[attribute_name(one.name)] = Part(one.name, type)
    return map


def attribute_name(column: str) -> str:
    """What an attribute is called: as its column, but for what a setting could not name."""
    name = re.sub(r"\W+", "_", column).strip("_") or "column"
    return f"{name}_" if name in ("id", *ROLES) else name


def bucket(one: Facts) -> float:
    """Steps that a number is cut into: 1, 2 or 5 times a power of ten, about eight between its 5 % and 95 %; 0 for one
    that takes few values, which are told apart as they are."""
    spread = one.high - one.low
    if not spread > 0 or (one.whole and one.distinct <= 12):
        return 0.0
    step = spread / 8
    power = 10.0 ** math.floor(math.log10(step))
    return next(float(f"{n * power:.6g}") for n in (1, 2, 5, 10) if n * power >= step * 0.999)


def read_entries(entries: Iterable[str]) -> dict[Table, dict[str, Part | None]]:
    """`items.category=cat`, `event_time=ts:ms`, `users.age=` (leave it out) as fields by table; without a table it is
    of interactions. BadInput."""
    made: dict[Table, dict[str, Part | None]] = {"interactions": {}, "items": {}, "users": {}}
    for entry in entries:
        named, equals, rest = entry.partition("=")
        table, dot, field = named.strip().partition(".")
        if not dot:
            table, field = "interactions", table
        if not (equals and field) or table not in made:
            raise BadInput(
                f"--map {entry!r}: write FIELD=COLUMN, items.FIELD=COLUMN or users.FIELD=COLUMN, with :TYPE behind it "
                f"where it needs one ({', '.join(TYPES)}); nothing after = leaves the field out"
            )
        if table == "interactions" and field not in FIELDS:
            raise BadInput(f"--map {entry!r}: interactions have the fields {', '.join(FIELDS)}, not {field}")
        column, colon, type = rest.strip().rpartition(":")
        if not colon or type not in TYPES:
            column, type = rest.strip(), ""
        made[table][field] = Part(column, type) if column else None
    return made


FIELDS: Final = ("user", "item", "event_time", "kind", "rating")


def revised(map: Map, said: Mapping[str, Part | None], found: Sequence[Facts], where: str) -> Map:
    """A map with what somebody says in place of what was guessed. BadInput: a column that is not there."""
    columns = {one.name: one for one in found}
    made = {field: part for field, part in map.items() if field not in said}
    for field, part in said.items():
        if part is None:
            continue
        if part.column not in columns:
            raise BadInput(f"{where}: no column {part.column!r}; the columns are {', '.join(columns)}")
        for other in [name for name, one in made.items() if one.column == part.column]:
            if field in (*FIELDS, "id") or (field in ROLES and other not in ROLES):
                del made[other]
        made[field] = part if part.type else Part(part.column, _type_for(field, columns[part.column]))
    return made


def when(cell: Any, type: str) -> float | None:
    """A cell as unix seconds; None where it is none. Without a zone it is UTC."""
    if type in TIMES:
        number = _number(cell)
        return None if number is None or number <= 0 else number * TIMES[type]
    return _moment(cell)


def value_of(cell: Any, type: str) -> Any:
    """A cell as an attribute; None where it says nothing, or not what its column says."""
    if cell is None or cell == "" or cell != cell:
        return None
    if type == "float":
        return _number(cell)
    if type == "list":
        found = _list(cell)
        return found if found is not None else [str(cell)]
    if type == "iso":  # before 1970 is long ago, not unknown
        return None if (time := when(cell, type)) is None else max(1.0, time)
    return when(cell, type) if type in TIMES else text_of(cell) or None


def is_blank(cell: Any) -> bool:
    """Whether a cell names nobody and nothing: empty, only spaces, or no number."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def text_of(cell: Any) -> str:
    """A cell as an id or a text: 7.0, as Parquet may have it where a value is missing elsewhere, is 7."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _named(field: str, found: Iterable[Facts]) -> Facts | None:
    """The column whose name says it best."""
    words, found = _NAMES[field].split(), list(found)
    ranked = [(words.index(one.plain), one) for one in found if one.plain in words]
    if not ranked and field in ("user", "item", "event_time"):  # musicbrainz-artist-id
        long = [word for word in words if len(word) >= 4]
        near = [one for one in found if any(one.plain.startswith(w) or one.plain.endswith(w) for w in long)]
        best = [one for one in near if one.plain.endswith("id")] or near
        ranked = [(0, one) for one in best] if len(best) == 1 else []
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _overlapping(found: Sequence[Facts], known: Sequence[Facts]) -> Facts | None:
    """The one column most of whose values are values of a known one; None where it is no other's equal."""
    shares = sorted(
        ((max(len(one.values & other.values) / max(len(one.values), 1) for other in known), one.name, one)
         for one in found) if known else (), reverse=True,
    )  # fmt: skip
    if not shares or shares[0][0] < 0.5 or (len(shares) > 1 and shares[1][0] == shares[0][0]):
        return None
    return shares[0][2]


def _taken(map: Map) -> set[str]:
    return {part.column for part in map.values()}


def _fits(role: str, one: Facts) -> bool:
    """Whether a column can be what its name says."""
    if not one.filled:
        return False
    if role == "created":
        return bool(one.unit)
    if role == "category":
        return one.lists < 0.5 and one.longest <= 2 * LONG and (one.distinct < 0.5 * one.filled or one.filled < 20)
    if role in ("stock", "min_age"):
        return one.numbers > 0.9 or role == "stock"
    return role != "embedding" or one.lists > 0.9


def _type_of(role: str, one: Facts) -> str:
    if role == "created":
        return one.unit
    if role in ("tags", "regions", "embedding"):
        return "list"
    return "float" if role in ("stock", "min_age") and one.numbers > 0.9 else "str"


def _type_for(field: str, one: Facts) -> str:
    """How a column is read that somebody named for a field without saying how."""
    if field == "event_time":
        return one.unit or "iso"
    if field in ROLES:
        return _type_of(field, one) or "iso"
    return "float" if field == "rating" else "str" if field in (*FIELDS, "id") else _attribute(one) or "str"


def _attribute(one: Facts) -> str:
    """How a column is an attribute to learn from; "" where it is none: a text of its own in most rows, a time."""
    if one.unit:
        return ""
    if one.numbers > 0.95:
        return "float" if not one.whole or one.distinct > 12 else "str"
    if one.lists > 0.5:
        return "list" if one.longest <= 4 * LONG else ""
    return "str" if one.longest <= LONG and one.distinct <= max(12, 0.2 * one.filled) else ""


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, (int, float, str)):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _list(cell: Any) -> list[str] | None:
    """The values of a cell that holds several; of a vector's numbers none is left out."""
    if isinstance(cell, (list, tuple)):
        flat = [one for each in cell for one in (each if isinstance(each, (list, tuple)) else [each])]
        texts = [text_of(one) for one in flat if one is not None and one != ""]
        return texts if any(isinstance(one, float) for one in flat) else list(dict.fromkeys(texts))
    if not isinstance(cell, str):
        return None
    if bracketed := _bracketed(cell):  # ["a", "b"], as programs write a list into one cell
        cell = cell.strip()[1:-1]
    elif not _SEPARATORS.search(cell):
        return None
    found = [one.strip() for one in (cell.split("|") if "|" in cell else _SEPARATORS.split(cell))]
    return [one for each in found if (one := each.strip("\"'") if bracketed else each)]


def _bracketed(cell: Any) -> bool:
    return isinstance(cell, str) and cell.strip()[:1] == "[" and cell.strip()[-1:] == "]"


def _moment(cell: Any) -> float | None:
    """A date or an ISO 8601 text as unix seconds."""
    try:
        if isinstance(cell, str):
            cell = cell.strip()
            if len(cell) < 8 or not cell[:4].isdigit():
                return None
            cell = datetime.datetime.fromisoformat(cell.removesuffix(" UTC"))
        elif isinstance(cell, datetime.date) and not isinstance(cell, datetime.datetime):
            cell = datetime.datetime(cell.year, cell.month, cell.day, tzinfo=datetime.UTC)
        if not isinstance(cell, datetime.datetime):
            return None
        return (cell if cell.tzinfo else cell.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
