"""Nearest vectors among millions, inside what is allowed: faiss, IVF lists of codes.

Rules of the room:
- A `Base` is built once and never changes; what was born since lies in a flat tier beside it, searched exactly, until
  the next build takes it in.
- How many lists a search looks into is measured when the base is built, on queries whose exact answers are known; what
  was reached is kept with it. A filter that leaves little makes a search look into more of them.
- Filters hold inside the search. What is left when almost nothing is allowed is looked at one by one, exactly.
- Scores are inner products of the vectors as they were given, not of codes: codes bring more than are asked for, the
  shorter they are the more, and the best by the vectors stay.
- One thread a search: many requests share the cores better than one request can. So no BLAS here, which has threads of
  its own and waits for them.
"""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.native import f32, given, i32, kernel, u8, void
from millstream.recall.scene import Bits, Found, Numbers, best
from millstream.recall.settings import Coding

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells of each build of itself that is not here
try:
    import faiss
except ImportError as missing:
    raise errors.Missing.extra("recommend", "recall") from missing

Vectors = NDArray[np.float32]
Rows = NDArray[np.int32]
Metric = Literal["inner", "cosine"]

FLAT_ROWS: Final = 20_000
"""Up to so many rows, all that is allowed is looked at: exact, in less time than a request has."""
MOST: Final = 0.5
"""Where at least this part is allowed, lists are searched whole and what is forbidden is left out of what they give."""
TIER_ROWS: Final = 50_000
"""So many vectors may be born between two builds."""
SAMPLE: Final = 256  # queries that measure a base
AMONG: Final = 100  # nearest ones that they ask for
_BROUGHT: Final[dict[Coding, float]] = {"sq8": 1.5, "pq": 16.0}  # by codes, for each one that is asked for
_TOGETHER: Final = (4, 2, 1)  # numbers that a byte of "pq" stands for: as many as the width can be parted into
_LITTLE: Final = 0.002
_DEARER: Final = 5  # so many codes are looked at in the time of one vector somewhere in memory
_CHEAPER: Final = 400  # so many rows are translated in the time in which a search keeps one more of what it meets
_TRAIN: Final = 40  # vectors a list that its centre is found from
_ROUNDS: Final = 8  # of k-means
_CHUNK: Final = 1 << 16  # vectors in work at a time where all are compared


class Places:
    """Which catalogue number each row of an index has, and back: numbers int32 [rows], -1 where this process knows no
    such item. One thread sets, many read."""

    def __init__(self, rows: int) -> None:
        self.numbers: Numbers = np.full(rows, -1, np.int32)
        self._rows: Rows = np.empty(0, np.int32)

    @classmethod
    def same(cls, rows: int) -> Places:
        """Row i is number i."""
        places = cls(rows)
        places.set(np.arange(rows, dtype=np.int32), np.arange(rows, dtype=np.int32))
        return places

    def set(self, rows: Rows, numbers: Numbers) -> None:
        """Row `rows[i]` is item `numbers[i]`; -1 for one that nobody knows."""
        known = numbers >= 0
        top = int(numbers.max(initial=-1)) + 1
        if top > len(self._rows):
            grown = np.full(max(top, 2 * len(self._rows)), -1, np.int32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[numbers[known]] = rows[known]
        self.numbers[rows] = numbers

    def rows(self, numbers: NDArray[Any]) -> Rows:
        """int32, as many as `numbers`: their rows, -1 for items that the index does not have."""
        table = self._rows
        inside = (numbers >= 0) & (numbers < len(table))
        if not len(table):
            return np.full(len(numbers), -1, np.int32)
        return np.where(inside, table[np.where(inside, numbers, 0)], np.int32(-1))


class Measured(msgspec.Struct, frozen=True):
    """What a base is. `lists`: 0 for a flat one; `probes`: lists that a search without filters looks into; `recall`:
    the part of the exact 100 nearest that it finds so, on `queries` of them."""

    metric: Metric
    codes: Coding = "sq8"
    lists: int = 0
    probes: int = 0
    recall: float = 1.0
    queries: int = 0


class Base:
    """Vectors float32 [n, d] and, above FLAT_ROWS, lists of codes to search them by: "sq8", a byte a number, or "pq", a
    byte for four (H. Jegou, M. Douze, C. Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011)."""

    def __init__(self, vectors: Vectors, measured: Measured, lists: Any = None, share: float = 1.0) -> None:
        """`share`: of the vectors that are in the lists."""
        self.vectors, self.measured, self.lists, self.share = vectors, measured, lists, share

    @classmethod
    def build(
        cls, vectors: Vectors, metric: Metric = "inner", queries: Vectors | None = None, recall: float = 0.96,
        seed: int = 0, threads: int = 1, flat_rows: int = FLAT_ROWS, codes: Coding = "sq8",
    ) -> Base:  # fmt: skip
        """Of `vectors` [n, d], each finite. `queries` [q, d]: such as will be asked, to measure by; the vectors
        themselves where there are none. Lists are probed until `recall` of the nearest is found. Takes seconds for a
        million, most of them without the GIL, on so many `threads`.

        Otherwise shaped, not finite: BadInput."""
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
            raise errors.BadInput(f"vectors are finite float32 [n, d], got {vectors.dtype} {list(vectors.shape)}")
        if metric == "cosine":
            vectors = _unit(vectors)
        if len(vectors) < flat_rows:
            return cls(vectors, Measured(metric))
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(threads)  # of this thread alone
        try:
            lists = _trained(vectors, seed, codes)
            asked = _asked(vectors, queries, metric, seed)
            probes, reached = _probes(lists, vectors, asked, recall, _more(AMONG, codes))
        finally:
            faiss.omp_set_num_threads(before)
        return cls(vectors, Measured(metric, codes, lists.nlist, probes, round(reached, 4), len(asked)), lists)

    def part(self, rows: NDArray[np.bool_]) -> Base:
        """This base with some of its rows alone in the lists, `rows` bool [n]: a search looks into as many lists, each
        shorter, and finds no others. Codes are copied; vectors stay where they are, and are read where they are needed.
        One without lists stays as it is."""
        if self.lists is None:
            return self
        whole, lists = self.lists.invlists, faiss.clone_index(self.lists)
        mine = faiss.ArrayInvertedLists(whole.nlist, whole.code_size)
        for at in range(whole.nlist):
            if size := whole.list_size(at):
                ids = faiss.rev_swig_ptr(whole.get_ids(at), size)
                codes = faiss.rev_swig_ptr(whole.get_codes(at), size * whole.code_size).reshape(size, -1)
                kept = np.flatnonzero(rows[ids])
                ids, codes = ids[kept], np.ascontiguousarray(codes[kept])
                mine.add_entries(at, len(kept), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        lists.replace_invlists(mine, True)
        mine.this.disown()  # the index owns them now
        lists.ntotal = int(np.count_nonzero(rows))
        return Base(self.vectors, self.measured, lists, lists.ntotal / max(len(rows), 1))

    def save(self, folder: Path, name: str) -> None:
        """As NAME.npy, NAME.json and, where it has lists, NAME.faiss. Not synced."""
        np.save(folder / f"{name}.npy", self.vectors)
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(self.measured))
        if self.lists is not None:
            faiss.write_index(self.lists, str(folder / f"{name}.faiss"))

    @classmethod
    def open(cls, folder: Path, name: str) -> Base:
        """What `save` wrote; files are mapped, so processes share them. Damaged or gone: Corrupt."""
        try:
            measured = msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Measured)
            vectors = mapped(folder / f"{name}.npy")
            lists = None
            if measured.lists:
                lists = faiss.read_index(str(folder / f"{name}.faiss"), faiss.IO_FLAG_MMAP_IFC)
        except (OSError, ValueError, EOFError, RuntimeError, msgspec.MsgspecError) as error:
            raise errors.Corrupt(f"{folder}/{name}: {error}; it is built anew with the next index") from None
        if lists is not None and (lists.ntotal, lists.d) != vectors.shape:
            raise errors.Corrupt(f"{folder}/{name}: lists of {lists.ntotal} x {lists.d} for {vectors.shape} vectors")
        return cls(vectors, measured, lists)


class Ann:
    """A base, where its rows stand in this process's catalogue, and what was born since. One thread adds, many search;
    a search beside an `add` of the same item may score it between its old vector and its new one."""

    def __init__(self, base: Base, places: Places | None = None) -> None:
        """`places` None: rows are numbers."""
        self.base = base
        self.width = int(base.vectors.shape[1])
        self.places = Places.same(len(base.vectors)) if places is None else places
        self._adding = threading.Lock()
        self._at: dict[int, int] = {}  # number -> place in the tier
        self._renewed = np.zeros(len(base.vectors), np.bool_)  # rows whose vector in the tier counts
        self._tier: tuple[Numbers, Vectors, int] = (np.empty(0, np.int32), np.empty((0, self.width), np.float32), 0)

    @property
    def born(self) -> int:
        """How many vectors the tier has."""
        return self._tier[2]

    def renewed(self, rows: Rows) -> NDArray[np.bool_]:
        """bool, as many as `rows`: of which of them the vector in the tier counts; False for -1."""
        found = np.zeros(len(rows), np.bool_)
        known = rows >= 0
        found[known] = self._renewed[rows[known]]
        return found

    def add(self, numbers: Numbers, vectors: Vectors) -> int:
        """Search these, too: `vectors` [m, d]; of an item that is known the new one counts. How many there was room
        for: TIER_ROWS between two builds. Another width: BadInput; rows that are not finite are passed over."""
        if vectors.shape != (len(numbers), self.width):
            raise errors.BadInput(f"vectors of {len(numbers)} items are [{len(numbers)}, {self.width}], got "
                                  f"{list(vectors.shape)}")  # fmt: skip
        vectors = _unit(vectors) if self.base.measured.metric == "cosine" else vectors.astype(np.float32)
        taken = 0
        with self._adding:
            for number, vector in zip(numbers.tolist(), vectors, strict=True):
                if number >= 0 and np.isfinite(vector).all():
                    taken += self._add(number, vector)
        return taken

    def search(self, vector: Vectors, k: int, allowed: Bits) -> Found:
        """The `k` allowed items with the greatest inner products with `vector` [d] (cosines, by the metric); fewer only
        where fewer are allowed. Nothing for a vector that is 0 or not finite. Another width: BadInput."""
        if vector.shape != (self.width,):
            raise errors.BadInput(f"a query is float32 [{self.width}], got {list(vector.shape)}")
        query = np.ascontiguousarray(vector, np.float32)
        if not np.isfinite(query).all() or not query.any() or k < 1:
            return Found.nothing()
        if self.base.measured.metric == "cosine":
            query = _unit(query[None])[0]
        fresh, vectors, count = self._tier  # before the rows: whatever is in it is left out of those
        rows = self._rows(query, k, allowed)
        numbers = self.places.numbers[rows]
        scores = np.empty(len(rows), np.float32)
        _products(self.base.vectors, rows, query, scores)
        if count:
            inside = np.flatnonzero(allowed.test(fresh[:count])).astype(np.int32)
            later = np.empty(len(inside), np.float32)
            _products(vectors, inside, query, later)
            numbers, scores = np.concatenate([numbers, fresh[inside]]), np.concatenate([scores, later])
        return best(numbers, scores, k)

    def _rows(self, query: Vectors, k: int, allowed: Bits) -> Rows:
        """Rows of the base that hold the answer, as far as it has it."""
        count = allowed.count()
        share = min(count / max(allowed.n * self.base.share, 1), 1.0)
        if self.base.lists is None:
            rows = np.flatnonzero(allowed.test(self.places.numbers)).astype(np.int32)
        elif count <= max(FLAT_ROWS, self._looked_at(share) // _DEARER):
            rows = self.places.rows(allowed.numbers())
            rows = rows[rows >= 0]
        else:
            rows = self._probed(query, k, share, allowed)
        return rows[~self._renewed[rows]]

    def _looked_at(self, share: float) -> int:
        """Codes that a search by lists looks at, where `share` is allowed."""
        lists, rows = self.base.measured.lists, len(self.base.vectors) * self.base.share
        return int(rows * min(self._probes(share) / lists, 1.0))

    def _probes(self, share: float) -> int:
        return math.ceil(self.base.measured.probes / math.sqrt(max(share, 1e-9)))

    def _probed(self, query: Vectors, k: int, share: float, allowed: Bits) -> Rows:
        """By lists: the more of them, the less is allowed, until there are k or no more lists."""
        lists, probes = self.base.lists, self.base.measured.probes
        rows: Rows
        among = _more(k, self.base.measured.codes) + min(self.born, k)
        wider = math.ceil(among / share * 1.1)
        # To ask of each code whether it is allowed, or first which rows are, costs more than to leave some out later.
        if share >= MOST or wider <= len(self.places.numbers) // _CHEAPER:
            probes = min(probes if share >= MOST else self._probes(share), lists.nlist)
            rows = lists.search(query[None], wider, params=faiss.SearchParametersIVF(nprobe=probes))[1][0]
            rows = rows[rows >= 0].astype(np.int32)
            rows = rows[allowed.test(self.places.numbers[rows])]
            if len(rows) >= among:
                return rows
        bits = np.empty((len(self.places.numbers) + 7) // 8, np.uint8)
        _translate(self.places.numbers, allowed.bytes, bits)
        inside = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        probes = self._probes(share)
        while True:
            probes = min(probes, lists.nlist)
            rows = lists.search(query[None], among, params=faiss.SearchParametersIVF(sel=inside, nprobe=probes))[1][0]
            rows = rows[rows >= 0].astype(np.int32)
            if len(rows) >= k or probes == lists.nlist:
                return rows
            probes *= 4

    def _add(self, number: int, vector: Vectors) -> bool:
        numbers, vectors, count = self._tier
        at = self._at.get(number, count)
        if at == count:
            if count == TIER_ROWS:
                return False
            if count == len(numbers):
                room = min(max(64, 2 * count), TIER_ROWS)
                numbers, vectors = np.resize(numbers, room), np.resize(vectors, (room, self.width))
            self._at[number] = at
        row = int(self.places.rows(np.array([number]))[0])
        if row >= 0:
            self._renewed[row] = True
        numbers[at], vectors[at] = number, vector
        self._tier = (numbers, vectors, max(count, at + 1))
        return True


def mapped(path: Path) -> NDArray[Any]:
    """The array of a npy file, mapped for reading; one without elements is read, as nothing can be mapped."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(np.ndarray) if array.size else np.load(path, allow_pickle=False)


def _trained(vectors: Vectors, seed: int, codes: Coding) -> Any:
    """Lists of `vectors`: twice the square root of how many there are. A vector is put to the nearest centre, and a
    query looks first where the centre's inner product with it is greatest: long vectors, which inner products favour,
    lie about long centres. With centres of length 1, as faiss makes them for inner products, half as much is found."""
    n, width = vectors.shape
    count = 2 * math.isqrt(n)
    some = vectors[np.sort(np.random.default_rng(seed).choice(n, min(n, _TRAIN * count), replace=False))]
    means = faiss.Kmeans(width, count, niter=_ROUNDS, seed=seed, max_points_per_centroid=_TRAIN)
    means.train(some)
    by_distance, centres = faiss.IndexFlatL2(width), faiss.IndexFlatIP(width)
    by_distance.add(means.centroids)
    centres.add(means.centroids)
    if codes == "pq":
        together = next(one for one in _TOGETHER if width % one == 0)
        lists = faiss.IndexIVFPQ(centres, width, count, width // together, 8, faiss.METRIC_INNER_PRODUCT)
        # Of what is left beside the nearest centre: `lists.train` would take the centre with the greatest product.
        lists.pq.train(some - means.centroids[by_distance.search(some, 1)[1][:, 0]])
        lists.is_trained = True
    else:
        lists = faiss.IndexIVFScalarQuantizer(
            centres, width, count, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        lists.train(some)  # the codes alone: the centres are there
    lists.own_fields = True
    centres.this.disown()
    for at in range(0, n, _CHUNK):
        part = vectors[at : at + _CHUNK]
        nearest_centres = np.ascontiguousarray(by_distance.search(part, 1)[1][:, 0])
        lists.add_core(len(part), faiss.swig_ptr(part), None, faiss.swig_ptr(nearest_centres))
    return lists


def _asked(vectors: Vectors, queries: Vectors | None, metric: Metric, seed: int) -> Vectors:
    source = vectors if queries is None or not len(queries) else np.ascontiguousarray(queries, np.float32)
    some = np.random.default_rng(seed).choice(len(source), min(SAMPLE, len(source)), replace=False)
    return _unit(source[some]) if metric == "cosine" else source[some]


def _probes(lists: Any, vectors: Vectors, asked: Vectors, wanted: float, brought: int) -> tuple[int, float]:
    """(lists to look into so that `wanted` of the nearest are among those `brought`, what part is). Fewer where half as
    many lists again bring less than _LITTLE of it: what is missed then, codes put behind others."""
    exact = nearest(vectors, asked, AMONG)
    probes, reached, before = 1, 0.0, (1, -1.0)
    while True:
        found = lists.search(asked, brought, params=faiss.SearchParametersIVF(nprobe=probes))[1]
        hits = [len(np.intersect1d(one, other)) for one, other in zip(found, exact, strict=True)]
        reached = float(np.mean(hits)) / exact.shape[1]
        if reached >= wanted or probes >= lists.nlist // 2:
            return probes, reached
        if reached - before[1] < _LITTLE:
            return before
        before = probes, reached
        probes = math.ceil(probes * 1.5)


def nearest(vectors: Vectors, queries: Vectors, k: int) -> NDArray[np.int64]:
    """Exact: rows [q, k] of the greatest inner products, in no order; the yardstick of what a base finds."""
    k = min(k, len(vectors))
    rows = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for at in range(0, len(vectors), _CHUNK):
        here = queries @ vectors[at : at + _CHUNK].T
        scores = np.concatenate([scores, here], axis=1)
        here_rows = np.broadcast_to(np.arange(at, at + here.shape[1]), here.shape)
        rows = np.concatenate([rows, here_rows], axis=1)
        top = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
        rows, scores = np.take_along_axis(rows, top, 1), np.take_along_axis(scores, top, 1)
    return rows


def _more(k: int, codes: Coding) -> int:
    """So many by codes hold the `k` by the vectors themselves: a code of "sq8" moves a score by a part in some
    hundreds, one of "pq" by a part in ten."""
    return math.ceil(k * _BROUGHT[codes])


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


@kernel(void(given(i32), given(u8), u8[::1]))
def _translate(numbers: Numbers, allowed: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Bits by number become bits by row: a millisecond for a million, and less than to translate each row that is
    looked at, as faiss would."""
    for byte in range(len(out)):
        found = 0
        for bit in range(min(8, len(numbers) - 8 * byte)):
            number = numbers[8 * byte + bit]
            if number >= 0 and (number >> 3) < len(allowed):
                found |= ((allowed[number >> 3] >> (number & 7)) & 1) << bit
        out[byte] = found


@kernel(void(given(f32, 2), given(i32), given(f32), f32[::1]))
def _products(vectors: Vectors, rows: Rows, query: Vectors, out: Vectors) -> None:
    """out[i] = vectors[rows[i]] @ query, by sums side by side: in one, each addition would wait for the last."""
    width = len(query)
    whole = width & ~7
    for at in range(len(rows)):
        one = vectors[rows[at]]
        a = b = c = d = e = f = g = h = np.float32(0)
        for place in range(0, whole, 8):
            a += one[place] * query[place]
            b += one[place + 1] * query[place + 1]
            c += one[place + 2] * query[place + 2]
            d += one[place + 3] * query[place + 3]
            e += one[place + 4] * query[place + 4]
            f += one[place + 5] * query[place + 5]
            g += one[place + 6] * query[place + 6]
            h += one[place + 7] * query[place + 7]
        for place in range(whole, width):
            a += one[place] * query[place]
        out[at] = ((a + b) + (c + d)) + ((e + f) + (g + h))
