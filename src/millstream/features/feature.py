"""One definition of features: what a row holds, its hash, and the one compiled code that makes rows.

Rules of the room:
- Serving, training and backfill call the same kernels on the same bytes: an attribute is text (UTF-8) wherever it comes
  from, and a token is a 32-bit hash of (column, text), never 0. 0 is an empty place: nothing known, nothing learnt.
- A row is fixed in width: user places, item places, one place for each column of the feature set that the definition
  names, then the places of each cross, in the order of the definition.
- The definition is data; its content hash is its version, is logged with every row, and changes when a row would.
- A column of several places takes values separated by "|". They are a set: repeats count once, and of more values than
  places those with the smallest tokens stay, so neither order nor the row's source matters.
- A column with a `bucket` holds floor(number / bucket). Text that is not a number leaves its place empty.
- The column named `id` is the entity's own identifier, known even of an entity that nobody has described yet.
- Of a feature set, a token is hashed with its feature's name, so that the values of a sequence are a bag; a number is
  its step on a scale that needs no tuning: its sign, its power of two and which eighth of that, so that 1, 2 ... 16 are
  steps of their own, and any number lies within 12.5 % of its step. What is missing leaves its place empty.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.native import f64, given, i64, inner, kernel, u8, u32, u64, void

if TYPE_CHECKING:
    from millstream.features.sets import FeatureSet

Tokens = NDArray[np.uint32]
Side = Literal["user", "item"]

WIDTH_MAX: Final = 512
PLACES_MAX: Final = 64
SCHEME: Final = 1  # the hashing and the layout; part of every definition's hash
SEPARATOR: Final = "|"


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An attribute of one side: at most `places` values at a time; `bucket` > 0 for a number cut into equal steps."""

    name: str
    places: int = 1
    bucket: float = 0.0


class Taken(msgspec.Struct, frozen=True):
    """What rows take of a feature set: its hash, and of each feature (name, how many values, whether it is tokens)."""

    hash: str
    features: tuple[tuple[str, int, bool], ...]


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """What a feature row holds. `crosses` pair two columns: "user.id*item.genres". `set` names a feature set whose
    columns are places too, in crosses "set.FEATURE"; what it is, is in `taken` once it was looked up (`taking`), and no
    setting. Inconsistent: Misconfigured."""

    user: tuple[Column, ...]
    item: tuple[Column, ...]
    crosses: tuple[str, ...] = ()
    set: str = ""
    taken: Taken | None = None

    def __post_init__(self) -> None:
        for side in ("user", "item"):
            names = [column.name for column in self.side(side)]
            if len(set(names)) < len(names):
                raise errors.Misconfigured(f"features.{side}: a column appears twice in {names}")
            for column in self.side(side):
                if not column.name or not 1 <= column.places <= PLACES_MAX or not 0 <= column.bucket < math.inf:
                    raise errors.Misconfigured(
                        f"features.{side}: {column}: needs a name, 1 to {PLACES_MAX} places and a bucket >= 0"
                    )
        if len(set(self.crosses)) < len(self.crosses):
            raise errors.Misconfigured(f"features.crosses: a cross appears twice in {list(self.crosses)}")
        if self.set and self.taken is None:
            return  # the rest is checked when the set is known
        if not 1 <= self.width <= WIDTH_MAX:
            raise errors.Misconfigured(f"features: a row has {self.width} places; it may have 1 to {WIDTH_MAX}")

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Definition:
        """From a table as TOML gives it. A field that is unknown, missing or of the wrong type: Misconfigured."""
        try:
            return msgspec.convert(table, cls)
        except msgspec.ValidationError as wrong:
            raise errors.Misconfigured(f"features: {wrong}") from wrong

    def taking(self, features: FeatureSet) -> Definition:
        """This definition with the set that it names. One that is of anything but users and items, or needs more of a
        request than these: Misconfigured."""
        if odd := [kind for kind in features.entities if kind not in ("user", "item")]:
            raise errors.Misconfigured(
                f"features.set: {features.name} has features of {odd[0]!r}; a ranking has users and items"
            )
        for one in features.ordered:
            if asked := getattr(one, "request", ()):
                raise errors.Misconfigured(
                    f"features.set: {one.name} of {features.name} takes {asked[0]!r} of a request; a ranking's has none"
                )
        kept = tuple((one.name, one.width, one.datatype == "UINT32") for one in features.features)
        return msgspec.structs.replace(self, taken=Taken(features.hash, kept))

    def side(self, side: str) -> tuple[Column, ...]:
        return self.user if side == "user" else self.item

    @cached_property
    def hash(self) -> str:
        """16 hex digits of SHA-256 over the content, the hash of its feature set and the hashing scheme: the
        definition's version."""
        content = msgspec.to_builtins(self)
        name, taken = content.pop("set"), content.pop("taken")
        if name and taken is None:
            raise errors.Misconfigured(f"features.set: nobody has looked up what {name} is")
        more = [taken["hash"]] if taken else []
        return hashlib.sha256(msgspec.json.encode([SCHEME, content, *more])).hexdigest()[:16]

    @cached_property
    def user_width(self) -> int:
        return sum(column.places for column in self.user)

    @cached_property
    def item_width(self) -> int:
        return sum(column.places for column in self.item)

    @cached_property
    def set_width(self) -> int:
        return sum(width for _, width, _ in self.taken.features) if self.taken else 0

    @cached_property
    def width(self) -> int:
        """Tokens in a row."""
        crossed = sum(int(left * right) for _, left, _, right in self.pairs)
        return self.user_width + self.item_width + self.set_width + crossed

    @cached_property
    def spans(self) -> dict[str, tuple[int, int]]:
        """First place and number of places in the row, of "user.COLUMN", "item.COLUMN" and "set.FEATURE"."""
        spans: dict[str, tuple[int, int]] = {}
        at = 0
        for side in ("user", "item"):
            for column in self.side(side):
                spans[f"{side}.{column.name}"] = (at, column.places)
                at += column.places
        for name, width, _ in self.taken.features if self.taken else ():
            spans[f"set.{name}"] = (at, width)
            at += width
        return spans

    @cached_property
    def id_place(self) -> int:
        """The place in the row of the item's own token, by which a history names it. None: Misconfigured."""
        for column in self.item:
            if column.name == "id" and column.places == 1 and not column.bucket:
                return self.spans["item.id"][0]
        raise errors.Misconfigured(
            'features.item: a history of items needs the column {name = "id"} there, of one place and without a bucket'
        )

    @cached_property
    def pairs(self) -> NDArray[np.int64]:
        """[crosses, 4]: first place and number of places in the row, of the left and of the right column."""
        spans = self.spans
        found: list[tuple[int, int, int, int]] = []
        for cross in self.crosses:
            left, _, right = cross.partition("*")
            for end in (left, right):
                if end not in spans:
                    raise errors.Misconfigured(
                        f"features.crosses: {cross!r} names {end!r}, which is not among {sorted(spans)}; "
                        'write "user.COLUMN*item.COLUMN", or "set.FEATURE" for one of its feature set'
                    )
            found.append((*spans[left], *spans[right]))
        return np.array(found, np.int64).reshape(-1, 4)


class Texts:
    """n byte strings as spans of one buffer, copying nothing: `data` uint8 (or bytes), `starts` and `ends` int64 [n].

    A column of a delimited file or of an Arrow array is one of these as it lies.
    """

    __slots__ = ("data", "ends", "starts")

    def __init__(
        self, data: bytes | NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], check: bool = True
    ) -> None:
        self.data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        self.starts, self.ends = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
        if check and not (
            starts.shape == ends.shape
            and ((starts >= 0) & (starts <= ends)).all()
            and int(ends.max(initial=0)) <= len(self.data)
        ):
            raise errors.BadInput(f"texts: the spans do not lie within the buffer of {len(self.data)} bytes")

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, values: Sequence[bytes]) -> Texts:
        """Pack separate strings."""
        ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
        return cls(b"".join(values), np.concatenate((np.zeros(1, np.int64), ends[:-1]))[: len(ends)], ends, check=False)

    @classmethod
    def table(cls, data: bytes, columns: int, separator: bytes = b"\t") -> list[Texts]:
        """The columns of delimited lines, each ended by a newline; no header, no quoting. Ragged lines: BadInput."""
        raw = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero((raw == separator[0]) | (raw == ord("\n")))
        newlines = raw[ends] == ord("\n")
        if len(ends) % columns or not newlines[columns - 1 :: columns].all() or newlines.sum() * columns != len(ends):
            raise errors.BadInput(f"table: every line must have {columns} fields and end with a newline")
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))[: len(ends)]
        return [cls(raw, starts[i::columns], ends[i::columns], check=False) for i in range(columns)]


class Rows:
    """Makes the rows of one definition. Stateless and thread-safe."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._pairs = np.ascontiguousarray(definition.pairs)
        self._seeds = {
            (side, column.name): _seed(np.frombuffer(f"{side}.{column.name}".encode(), np.uint8))
            for side in ("user", "item")
            for column in definition.side(side)
        }
        taken = definition.taken.features if definition.taken else ()
        places = [(f"set.{name}".encode(), tokens) for name, width, tokens in taken for _ in range(width)]
        self._set_seeds = np.array([_seed(np.frombuffer(name, np.uint8)) for name, _ in places], np.uint64)
        self._set_tokens = np.array([tokens for _, tokens in places], np.uint8)

    def tokens(self, side: Side, columns: Mapping[str, Texts]) -> Tokens:
        """Token rows [n, side's width] of n entities. A column that is not given leaves its places empty; one that the
        definition does not name is ignored. Columns of different length: BadInput."""
        lengths = {name: len(texts) for name, texts in columns.items()}
        if len(set(lengths.values())) != 1:
            raise errors.BadInput(f"{side} columns must be of one length, got {lengths}")
        named = self.definition.side(side)
        out = np.zeros((next(iter(lengths.values())), sum(column.places for column in named)), np.uint32)
        at = 0
        for column in named:
            if (texts := columns.get(column.name)) is not None:
                seed = self._seeds[side, column.name]
                _column(texts.data, texts.starts, texts.ends, seed, column.bucket, column.places, at, out)
            at += column.places
        return out

    def history(self, names: Sequence[str], h: int) -> Tokens:
        """Items that a user had to do with, newest last, as tokens uint32 [1, h]: the token that the item column `id`
        has of each. Of more names the newest h count; fewer stand last, behind empty places. Misconfigured: a row has
        no such token."""
        place = self.definition.id_place - self.definition.user_width
        out = np.zeros((1, h), np.uint32)
        newest = names[max(0, len(names) - h) :]
        if len(newest):
            texts = Texts.of([name.encode("utf-8", "surrogatepass") for name in newest])
            out[0, h - len(newest) :] = self.tokens("item", {"id": texts})[:, place]
        return out

    def of_set(self, matrix: NDArray[Any] | None, n: int) -> Tokens:
        """Token rows [n, set_width] of a feature set's matrix, float [n, columns]; without one (None) all places are
        empty. Another shape: BadInput."""
        width = self.definition.set_width
        out = np.zeros((n, width), np.uint32)
        if matrix is None or not width:
            return out
        if matrix.shape != (n, width):
            raise errors.BadInput(f"rows: the matrix of the feature set must be [{n}, {width}], got {matrix.shape}")
        values = np.ascontiguousarray(matrix, np.float64) + 0.0  # one zero, not two
        _of_set(values, values.view(np.uint64), self._set_seeds, self._set_tokens, out)
        return out

    def one(self, user: Tokens, items: Tokens, kept: NDArray[Any] | None = None) -> Tokens:
        """Rows [n, width] of one request: `user` [user_width] beside each of `items` [n, item_width], and of `kept`,
        the feature set's matrix [n, columns]; without one its places are empty."""
        users, items = self._blocks(user[None], items)
        out = np.empty((len(items), self.definition.width), np.uint32)
        _request(users[0], items, self.of_set(kept, len(items)), self._pairs, out)
        return out

    def many(self, users: Tokens, items: Tokens, kept: NDArray[Any] | None = None) -> Tokens:
        """Rows [n, width] of n pairs: row i of `users` [n, user_width] beside row i of `items` [n, item_width], and of
        `kept` [n, columns]."""
        users, items = self._blocks(users, items)
        if len(users) != len(items):
            raise errors.BadInput(f"rows: {len(users)} users beside {len(items)} items; give one of each a row")
        out = np.empty((len(items), self.definition.width), np.uint32)
        _pairwise(users, items, self.of_set(kept, len(items)), self._pairs, out)
        return out

    def _blocks(self, users: Tokens, items: Tokens) -> tuple[Tokens, Tokens]:
        """Both as the kernels, which check nothing, may read them; or BadInput."""
        d = self.definition
        for name, block, width in (("users", users, d.user_width), ("items", items, d.item_width)):
            if block.dtype != np.uint32 or block.ndim != 2 or block.shape[1] != width:
                got = f"{block.dtype} {list(block.shape)}"
                raise errors.BadInput(f"rows: {name} must be token rows uint32 [n, {width}], got {got}")
        return np.ascontiguousarray(users), np.ascontiguousarray(items)


def warm() -> None:
    """Run every kernel once on nothing much: after this, no request waits for one."""
    rows = Rows(Definition(user=(Column("id"),), item=(Column("id"),), crosses=("user.id*item.id",)))
    side = rows.tokens("user", {"id": Texts.of([b"1"])})
    rows.one(side[0], side)
    rows.many(side, side)


# FNV-1a over the bytes (Fowler, Noll, Vo), finished by MurmurHash3's 64-bit mixer (Appleby), upper half kept.
_FNV: Final = np.uint64(0x100000001B3)
_BASIS: Final = np.uint64(0xCBF29CE484222325)
_MIX_1: Final = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_STEP: Final = np.uint64(49)  # of a float64, what stays are its sign, its exponent and three bits of its fraction
_33, _32, _8, _ONE = np.uint64(33), np.uint64(32), np.uint64(8), np.uint32(1)
_BUCKET_MAX: Final = 9e15  # beyond, a float64 no longer tells neighbouring buckets apart
_DIGIT_0, _DIGIT_9, _PLUS, _MINUS, _DOT, _E = ord("0"), ord("9"), ord("+"), ord("-"), ord("."), ord("e")
_BAR: Final = ord(SEPARATOR)


@inner
def _token(state: Any) -> Any:
    """uint64 hash state to a token: uint32, never 0."""
    state = (state ^ (state >> _33)) * _MIX_1
    state = (state ^ (state >> _33)) * _MIX_2
    token = np.uint32((state ^ (state >> _33)) >> _32)
    return token if token != 0 else _ONE


@inner
def _fold(state: Any, data: Any, start: int, end: int) -> Any:
    for i in range(start, end):
        state = (state ^ np.uint64(data[i])) * _FNV
    return state


@inner
def _number(data: Any, start: int, end: int) -> float:
    """A decimal number (sign, digits, point, exponent); NaN when the text is not one. Exact to 15 digits."""
    at, sign = start, 1.0
    if at < end and (data[at] == _PLUS or data[at] == _MINUS):
        sign = -1.0 if data[at] == _MINUS else 1.0
        at += 1
    value, digits, scale, after = 0.0, 0, 0, False
    while at < end and ((_DIGIT_0 <= data[at] <= _DIGIT_9) or (data[at] == _DOT and not after)):
        if data[at] == _DOT:
            after = True
        else:
            value = value * 10.0 + (data[at] - _DIGIT_0)
            digits += 1
            scale -= 1 if after else 0
        at += 1
    if at + 1 < end and digits and data[at] | 0x20 == _E:
        at += 1
        down = data[at] == _MINUS
        if data[at] == _PLUS or data[at] == _MINUS:
            at += 1
        exponent = 0
        first = at
        while at < end and _DIGIT_0 <= data[at] <= _DIGIT_9:
            exponent = min(exponent * 10 + (data[at] - _DIGIT_0), 9999)
            at += 1
        if at == first:
            return math.nan
        scale += -exponent if down else exponent
    if at != end or digits == 0:
        return math.nan
    # Dividing by an exact power of ten rounds once; multiplying by its inverse would round twice. Below 1e-300 the size
    # no longer matters, but the sign does: a tiny negative number is in bucket -1.
    return sign * (value / 10.0 ** min(-scale, 300) if scale < 0 else value * 10.0**scale)


@inner
def _digits(state: Any, number: Any) -> Any:
    """The hash state after the 8 bytes of a number."""
    for _ in range(8):
        state = (state ^ (number & np.uint64(0xFF))) * _FNV
        number >>= _8
    return state


@inner
def _value(data: Any, start: int, end: int, seed: Any, bucket: float) -> Any:
    """The token of one value, 0 when there is none."""
    if start == end:
        return np.uint32(0)
    if bucket == 0.0:
        return _token(_fold(seed, data, start, end))
    step = np.floor(_number(data, start, end) / bucket)
    if not abs(step) < _BUCKET_MAX:  # beyond it, or NaN
        return np.uint32(0)
    return _token(_digits(seed, np.uint64(np.int64(step))))


@inner
def _cross(left: Any, right: Any) -> Any:
    if left == 0 or right == 0:
        return np.uint32(0)
    return _token((np.uint64(left) << _32) | np.uint64(right))


@inner
def _put(tokens: Any, at: Any, row: Any) -> Any:
    for one in range(len(tokens)):
        row[at + one] = tokens[one]
    return at + len(tokens)


@inner
def _fill(user: Any, item: Any, kept: Any, pairs: Any, row: Any) -> None:
    at = _put(user, 0, row)
    at = _put(item, at, row)
    at = _put(kept, at, row)
    for k in range(pairs.shape[0]):
        for i in range(pairs[k, 0], pairs[k, 0] + pairs[k, 1]):
            for j in range(pairs[k, 2], pairs[k, 2] + pairs[k, 3]):
                row[at] = _cross(row[i], row[j])
                at += 1


@kernel(u64(given(u8)))
def _seed(name: Any) -> Any:
    return _fold(_BASIS, name, 0, len(name)) * _FNV


@kernel(void(given(u8), given(i64, 1, "A"), given(i64, 1, "A"), u64, f64, i64, i64, u32[:, ::1]))
def _column(data: Any, starts: Any, ends: Any, seed: Any, bucket: float, places: int, at: int, out: Any) -> None:
    """Tokens of one column into out[:, at : at + places], which are 0; several are kept ascending."""
    for row in range(len(starts)):
        start, end = starts[row], ends[row]
        if places == 1:
            out[row, at] = _value(data, start, end, seed, bucket)
            continue
        used = 0
        while start <= end:
            stop = start
            while stop < end and data[stop] != _BAR:
                stop += 1
            token = _value(data, start, stop, seed, bucket)
            start = stop + 1
            spot = at
            while spot < at + used and out[row, spot] < token:
                spot += 1
            if token == 0 or spot == at + places or (spot < at + used and out[row, spot] == token):
                continue
            used = min(used + 1, places)
            for k in range(at + used - 1, spot, -1):
                out[row, k] = out[row, k - 1]
            out[row, spot] = token


@kernel(void(given(f64, 2), given(u64, 2), given(u64), given(u8), u32[:, ::1]))
def _of_set(values: Any, bits: Any, seeds: Any, tokens: Any, out: Any) -> None:
    """Tokens of a feature set's matrix into `out`, which is 0; `bits` are those of `values`."""
    for row in range(values.shape[0]):
        for k in range(values.shape[1]):
            value = values[row, k]
            if math.isnan(value) or (tokens[k] and value == 0):
                continue
            out[row, k] = _token(_digits(seeds[k], np.uint64(value) if tokens[k] else bits[row, k] >> _STEP))


@kernel(void(given(u32), given(u32, 2), given(u32, 2), given(i64, 2), u32[:, ::1]))
def _request(user: Any, items: Any, kept: Any, pairs: Any, out: Any) -> None:
    for row in range(items.shape[0]):
        _fill(user, items[row], kept[row], pairs, out[row])


@kernel(void(given(u32, 2), given(u32, 2), given(u32, 2), given(i64, 2), u32[:, ::1]))
def _pairwise(users: Any, items: Any, kept: Any, pairs: Any, out: Any) -> None:
    for row in range(items.shape[0]):
        _fill(users[row], items[row], kept[row], pairs, out[row])
