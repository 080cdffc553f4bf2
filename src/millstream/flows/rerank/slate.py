"""What a list is built from: the candidates of one request as columns, exactly as the log keeps them.

Rules of the room:
- A list is a pure function of its slate and its rules: whatever a step looks at is in here, the time and the seed too.
- Arrays, not objects: a column has one row a candidate, and nothing writes into it.
- What is packed and unpacked is the same bit for bit, so the list that is built from it again is the same list.
- A column that is left out says of every candidate that nothing is known of it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.errors import BadInput, Corrupt, Later

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

FORMAT: Final = 1
UNKNOWN: Final[dict[str, Any]] = {
    "category": np.int32(-1),
    "author": np.int32(-1),
    "near": np.int32(-1),
    "created": np.float64(np.nan),
    "bid": np.float32(np.nan),
    "quality": np.float32(np.nan),
    "impressions": np.int64(0),
    "probability": np.float32(np.nan),
    "seen": np.bool_(False),
    "clicked_at": np.float64(np.nan),
    "embedding": None,
}
"""The columns that steps read, and what stands where nothing is known. `embedding` is float32, float16 or (a quarter of
the bytes in the log) int8 [n, d], a row of NaN or zeros where there is none; its length does not matter. The others are
[n]."""
_KINDS: Final = frozenset("biuf")
_LARGEST: Final = float(np.finfo(np.float32).max)


class Slate(msgspec.Struct, frozen=True, kw_only=True):
    """n candidates of one request.

    `items`: their names, no two the same; `scores` float32 [n]: to be served by, higher is better; `columns`: see
    UNKNOWN, each with n rows; codes (category, author, near) mean something within this slate only. `now`: unix
    seconds. `seed`: 0 to 2**64 - 1, decides what chance decides. `first`: the place of the one that chance puts first,
    -1 for none. `facts`: numbers of the request, such as `ads_shown`; `codes`: column -> name -> its code, for the
    names that rules use. Other lengths or dtypes: BadInput.
    """

    items: list[str]
    scores: NDArray[np.float32]
    columns: dict[str, NDArray[Any]] = {}
    now: float = 0.0
    seed: int = 0
    first: int = -1
    facts: dict[str, float] = {}
    codes: dict[str, dict[str, int]] = {}

    def __post_init__(self) -> None:
        n = len(self.items)
        if self.scores.shape != (n,) or self.scores.dtype != np.float32:
            raise BadInput(
                f"slate: scores are {self.scores.dtype} {self.scores.shape}, {n} candidates want float32 [n]"
            )
        for name, column in self.columns.items():
            if column.shape[:1] != (n,) or column.ndim != (2 if name == "embedding" else 1):
                raise BadInput(f"slate: column {name!r} has the shape {column.shape}, and there are {n} candidates")
            if column.dtype.kind not in _KINDS:
                raise BadInput(f"slate: column {name!r} is {column.dtype}; columns are numbers or booleans")
        if not -1 <= self.first < n:
            raise BadInput(f"slate: first is {self.first}, and there are {n} candidates; -1 is none")
        if not 0 <= self.seed < 2**64:
            raise BadInput(f"slate: the seed is {self.seed}; it is 0 to 2**64 - 1")

    def __len__(self) -> int:
        return len(self.items)

    def column(self, name: str) -> NDArray[Any]:
        """A column [n]; where it was left out, n times that nothing is known. `embedding` left out is [n, 0]."""
        found = self.columns.get(name)
        if found is not None:
            return found
        unknown = UNKNOWN[name]
        return np.zeros((len(self), 0), np.float32) if unknown is None else np.full(len(self), unknown)

    def finite(self) -> Floats:
        """The scores as float64 [n], all finite: what is no number is below everything else."""
        return np.nan_to_num(self.scores.astype(np.float64), nan=-_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)

    def chances(self, salt: int = 0) -> Floats:
        """A number in (0, 1) for each candidate [n], by seed, place and `salt` alone: splitmix64 (Steele et al., 2014),
        the same on every machine and with every library."""
        start = (self.seed + (salt + 1) * 0xD1342543DE82EF95) % 2**64
        x = np.uint64(start) + np.arange(1, len(self) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        return ((x >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52

    def pack(self, names: bool = True) -> bytes:
        """As bytes for the log: MessagePack, arrays as little-endian bytes. Without `names` the items are left out,
        for an event that has them anyway."""
        columns = [_packed(name, column) for name, column in sorted(self.columns.items())]
        return _encoder.encode(
            _Packed(
                n=len(self),
                items=self.items if names else None,
                scores=_packed("scores", self.scores)[3],
                columns=columns,
                now=self.now,
                seed=self.seed,
                first=self.first,
                facts=self.facts,
                codes=self.codes,
            )
        )

    @classmethod
    def unpack(cls, data: bytes, items: list[str] | None = None) -> Slate:
        """What `pack` gave, with these `items` where it left them out. Its arrays cannot be written. Damaged: Corrupt;
        of a format to come: Later."""
        try:
            found = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Corrupt(
                f"a logged slate cannot be read: {error}; was it cut short, or is it something else?"
            ) from None
        if found.format > FORMAT:
            raise Later("a logged slate", found.format, FORMAT)
        names = found.items if found.items is not None else items
        if names is None or len(names) != found.n:
            got = "no names" if names is None else f"{len(names)} names"
            raise Corrupt(f"a logged slate has {found.n} candidates and {got}: give the candidates of the same event")
        try:
            return cls(
                items=names,
                scores=np.frombuffer(found.scores, "<f4"),
                columns={name: _unpacked(dtype, shape, raw) for name, dtype, shape, raw in found.columns},
                now=found.now,
                seed=found.seed,
                first=found.first,
                facts=found.facts,
                codes=found.codes,
            )
        except (BadInput, ValueError, TypeError) as error:
            raise Corrupt(f"a logged slate cannot be read: {error}") from None


def narrow(embedding: NDArray[Any]) -> NDArray[np.int8]:
    """Embeddings [n, d] as int8, each row with 127 for its largest: a quarter of float32's bytes in the log, cosines to
    within about a hundredth. Rows that hold what is no finite number become zeros: no embedding."""
    wide = embedding.astype(np.float64)
    wide[~np.isfinite(wide).all(axis=1)] = 0.0
    largest = np.abs(wide).max(axis=1, initial=0.0)
    return np.rint(wide * (127.0 / np.where(largest > 0, largest, 1.0))[:, None]).astype(np.int8)


_Column = tuple[str, str, tuple[int, ...], bytes]


class _Packed(msgspec.Struct, kw_only=True):
    """How a slate lies in the log. A column: name, dtype ("<f4"), shape, bytes."""

    format: int = FORMAT
    n: int
    items: list[str] | None
    scores: bytes
    columns: list[_Column]
    now: float
    seed: int
    first: int
    facts: dict[str, float]
    codes: dict[str, dict[str, int]]


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(_Packed)


def _packed(name: str, column: NDArray[Any]) -> _Column:
    little = column.dtype.newbyteorder("<")
    return name, little.str, column.shape, column.astype(little, copy=False).tobytes()


def _unpacked(dtype: str, shape: tuple[int, ...], raw: bytes) -> NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind not in _KINDS:
        raise ValueError(f"a column is {dtype}")
    return np.frombuffer(raw, kind).reshape(shape)
