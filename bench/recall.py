"""Recall: what the paths find beside `implicit`, and what a million items cost.

1. MovieLens-100K (the demo's), liked = rating >= 4, split at a moment in time: what was liked before trains, what each
   person with a past liked after it is to be found among all items that they had not liked before. Recall@20 and
   NDCG@20, a mean over people, beside `implicit` 0.7.3's ALS and cosine item-kNN and what is popular. Towers know of
   people and films, too, and need torch; they are left out without it. A second split
   takes each person's last fifth instead, so that more people count; it lets a model see others' future.
   Everyone's settings are chosen from a grid of the same size on the last fifth of the training part.
2. A million items with known structure (clusters of tastes and of vectors): seconds and memory of a build, recall@100
   of the vectors' index against all inner products, and milliseconds a request of each path with filters.

    python bench/recall.py [--data FOLDER_WITH_THE_ARCHIVE] [--items 1000000] [--only movielens|scale] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millstream import config
from millstream.demo.data import movielens
from millstream.features import Column, Definition, Entities
from millstream.learn.towers.rows import Known, Likes
from millstream.learn.towers.settings import TowerSettings
from millstream.recall.ann import Ann, Base, Places, nearest
from millstream.recall.build import build
from millstream.recall.cooccur import ItemCf, Positives, UserCf, windows
from millstream.recall.factors import Factors
from millstream.recall.index import About, Contents, Index, write
from millstream.recall.liked import Gathered
from millstream.recall.scene import Bits, History, Numbers, Scene, best
from millstream.recall.settings import BuildSettings, FactorSettings

TOP = 20
TASTES = 50
ASKED = 100  # candidates of a path in a request
CHUNK = 1 << 18  # vectors made at a time
Lists = dict[int, Numbers]  # of each user, best first
Make = Callable[["Split"], Lists]


class Split:
    """`train`: who liked what before; `wanted`: user -> items liked after, of those with a past."""

    def __init__(self, positives: Positives, after: NDArray[np.bool_], users: int, items: int) -> None:
        order = np.argsort(positives.times, kind="stable")
        whose, what, times = positives.users[order], positives.items[order], positives.times[order]
        after = after[order]
        self.users, self.items = users, items
        self.train = Positives(whose[~after], what[~after], times[~after])
        past = set(zip(self.train.users.tolist(), self.train.items.tolist(), strict=True))
        self.wanted: dict[int, list[int]] = {}
        has = set(self.train.users.tolist())
        for user, item in zip(whose[after].tolist(), what[after].tolist(), strict=True):
            if user in has and (user, item) not in past:
                self.wanted.setdefault(user, []).append(item)
        self.known = windows(self.train, users, 10_000)

    @classmethod
    def at_a_moment(cls, positives: Positives, users: int, items: int, part: float = 0.8) -> Split:
        """What came after the first `part` of all positives."""
        moment = np.sort(positives.times)[int(len(positives.times) * part)]
        return cls(positives, positives.times >= moment, users, items)

    @classmethod
    def of_each(cls, positives: Positives, users: int, items: int, part: float = 0.8) -> Split:
        """Each person's last ones, after the first `part` of their own."""
        after = np.zeros(len(positives.users), np.bool_)
        for user in range(users):
            mine = np.flatnonzero(positives.users == user)
            mine = mine[np.argsort(positives.times[mine], kind="stable")]
            after[mine[int(np.ceil(len(mine) * part)) :]] = True
        return cls(positives, after, users, items)

    def liked(self, user: int) -> Numbers:
        """What a person liked before, oldest first."""
        return self.known.columns[self.known.starts[user] : self.known.starts[user + 1]]

    def scene(self, user: int) -> Scene:
        """A request of this person: everything is allowed that they had not liked before."""
        liked = self.liked(user)
        allowed = Bits.all(self.items)
        allowed.clear(liked)
        history = History(liked, np.zeros(len(liked), np.uint8), np.arange(float(len(liked))))
        return Scene(str(user), 0.0, history, {}, {}, allowed, np.empty(0, np.int32), 0)


def judged(lists: Lists, split: Split) -> tuple[float, float]:
    """(Recall@20, NDCG@20): the part of what is wanted (at most 20 of it) that is found, and how far up."""
    recalls, gains = [], []
    worth = 1 / np.log2(np.arange(2, TOP + 2))
    for user, wanted in split.wanted.items():
        hits = np.isin(lists[user][:TOP], wanted)
        recalls.append(hits.sum() / min(len(wanted), TOP))
        gains.append(worth[: len(hits)][hits].sum() / worth[: min(len(wanted), TOP)].sum())
    return float(np.mean(recalls)), float(np.mean(gains))


def ours(split: Split, settings: BuildSettings, path: Callable[[Contents, Split], Any]) -> Lists:
    """Lists of one path over an index of the training part."""
    names = [str(item) for item in range(split.items)]
    asked = path(build(Gathered(split.train, names, split.users), settings), split)
    return {user: asked.recall(split.scene(user), ASKED).numbers for user in split.wanted}


def item_cf(split: Split, shrink: float, window: int) -> Lists:
    return ours(
        split,
        BuildSettings(shrink=shrink, window=window, factors=CHEAP),
        lambda made, of: ItemCf(made.neighbours, Places.same(of.items)),
    )


def user_cf(split: Split, takers: int, people: int) -> Lists:
    return ours(
        split,
        BuildSettings(takers=takers, factors=CHEAP),
        lambda made, of: UserCf(made.near, Places.same(of.items), people),
    )


def factors(split: Split, unseen: float, penalty: float) -> Lists:
    return ours(
        split,
        BuildSettings(window=1000, factors=FactorSettings(unseen=unseen, penalty=penalty, turns=16)),
        lambda made, _: Factors(made.model, Ann(made.base)),
    )


def blend(*of: Lists) -> Lists:
    """The union of several lists, by the sum of 1 / (60 + place) (G. Cormack et al., SIGIR 2009)."""
    joined: Lists = {}
    for user in of[0]:
        numbers = np.concatenate([lists[user] for lists in of])
        scores = np.concatenate([1 / (60 + np.arange(len(lists[user]))) for lists in of])
        met, at = np.unique(numbers, return_inverse=True)
        joined[user] = best(met, np.bincount(at, weights=scores).astype(np.float32), ASKED).numbers
    return joined


def popular(split: Split) -> Lists:
    counts = np.bincount(split.train.items, minlength=split.items)
    order = np.argsort(-counts, kind="stable").astype(np.int32)
    return {user: order[~np.isin(order, split.liked(user))][:ASKED] for user in split.wanted}


def peer(split: Split, made: Any) -> Lists:
    """Lists of one of implicit's models, over each user's whole past."""
    from scipy.sparse import csr_matrix

    known = split.known
    table = csr_matrix(
        (np.ones(len(known.columns), np.float32), known.columns, known.starts), shape=(split.users, split.items)
    )
    made.fit(table, show_progress=False)
    users = np.array(list(split.wanted))
    ids, _ = made.recommend(users, table[users], N=ASKED, filter_already_liked_items=True)
    return {user: row[row >= 0].astype(np.int32) for user, row in zip(users.tolist(), ids, strict=True)}


def als(split: Split, regularization: float, alpha: float) -> Lists:
    from implicit.cpu.als import AlternatingLeastSquares

    return peer(
        split,
        AlternatingLeastSquares(64, regularization=regularization, alpha=alpha, iterations=16, random_state=0,
                                num_threads=1),
    )  # fmt: skip


def knn(split: Split, neighbours: int) -> Lists:
    from implicit.nearest_neighbours import CosineRecommender

    return peer(split, CosineRecommender(K=neighbours, num_threads=1))


def towers(known: Known, split: Split, passes: int, decay: float) -> Lists:
    """Two towers over what MovieLens says of people (age, gender, occupation) and films (year, genres), by torch."""
    from millstream.learn.towers.fit import fit

    likes = Likes(split.train, known)
    settings = TowerSettings(decay=decay)
    learnt = fit(likes, len(likes), settings, passes, 0, lambda line: None)
    users = np.array(list(split.wanted))
    asked = learnt.users(known.people[users], likes.pasts(users, len(likes), settings.history))
    ann = Ann(Base.build(learnt.items(known.items)))
    return {
        user: ann.search(vector, ASKED, split.scene(user).allowed).numbers
        for user, vector in zip(users.tolist(), asked, strict=True)
    }


def known_films(folder: Path | None) -> Known:
    """Tokens of people and of films, in the order of `liked_films`."""
    data = movielens(folder or config.cache_folder())
    about = Entities(
        Definition(
            user=(Column("id"), Column("age", bucket=10.0), Column("gender"), Column("occupation")),
            item=(Column("id"), Column("year", bucket=5.0), Column("genres", places=6)),
        )
    )
    for kind, rows in (("user", data.users), ("item", data.items)):
        for row in rows:
            about.upsert(kind, row["id"], row)
    liked = [one for one in data.shown if one.like]
    films = about.tokens("item", list(dict.fromkeys(one.item for one in liked)))
    return Known(about.tokens("user", list(dict.fromkeys(one.user for one in liked))), films, films[:, 0])


CHEAP = FactorSettings(width=2, turns=1)
METHODS: dict[str, tuple[Callable[..., Lists], list[tuple[Any, ...]]]] = {
    "popular": (popular, [()]),
    "implicit item-kNN, cosine": (knn, [(k,) for k in (10, 20, 50, 100, 200, 500, 1000, 1682)]),
    "implicit ALS": (als, list(product((1.0, 10.0, 30.0, 100.0), (1.0, 2.0, 5.0)))),
    "Millstream item_cf": (item_cf, list(product((0.0, 2.0, 5.0, 20.0), (30, 50, 100)))),
    "Millstream user_cf": (user_cf, list(product((200, 1000), (25, 50, 100, 200)))),
    "Millstream factors": (factors, list(product((0.05, 0.1, 0.2), (0.2, 0.4, 0.6, 1.2)))),
}


def quality(positives: Positives, users: int, items: int, known: Known) -> Iterator[dict[str, Any]]:
    """A row a method and split."""
    methods = dict(METHODS)
    if find_spec("torch") is not None:
        methods["Millstream towers"] = partial(towers, known), list(product((4, 6, 8), (0.1, 0.5)))
    splits = {"a moment": Split.at_a_moment, "each one's last": Split.of_each}
    for name, cut in splits.items():
        split = cut(positives, users, items)
        inner = cut(split.train, users, items)
        lists: dict[str, Lists] = {}
        for method, (make, grid) in methods.items():
            chosen = max(grid, key=lambda one: judged(make(inner, *one), inner)[1]) if len(grid) > 1 else grid[0]
            lists[method] = make(split, *chosen)
            yield told(name, method, split, lists[method], chosen)
        paths = [lists[method] for method in methods if method.startswith("Millstream")]
        yield told(name, "Millstream, all paths", split, blend(*paths), ())


def told(split_name: str, method: str, split: Split, lists: Lists, chosen: tuple[Any, ...]) -> dict[str, Any]:
    recall, ndcg = judged(lists, split)
    return {
        "split": split_name, "method": method, "people": len(split.wanted), "recall@20": round(recall, 4),
        "ndcg@20": round(ndcg, 4), "settings": list(chosen),
    }  # fmt: skip


def world(items: int, seed: int = 0) -> tuple[Gathered, Numbers]:
    """(people's positives, the catalogue number of each row). An item's taste is its number modulo 50; items are liked
    the more the lower their number, and nine in ten positives of a person are of their own taste. Half as many people
    as items, six positives each."""
    random = np.random.default_rng(seed)
    tastes, users = TASTES, items // 2
    whose = np.sort(random.integers(0, users, 6 * users)).astype(np.int32)
    own = np.where(random.random(len(whose)) < 0.9, whose % tastes, random.integers(0, tastes, len(whose)))
    place = (random.random(len(whose)) ** 3 * (items // tastes)).astype(np.int64)
    liked = (place * tastes + own).astype(np.int32)
    known, rows = np.unique(liked, return_inverse=True)  # an index has those that somebody liked
    gathered = Gathered(
        Positives(whose, rows.astype(np.int32), random.random(len(whose)) * 1e6), [f"{item}" for item in known], users
    )
    return gathered, known


def vectors(
    count: int, width: int, seed: int, lengths: bool, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Vectors about 300 directions, put into `out` where it is given; with `lengths`, of lengths that differ as
    popularity does."""
    random, directions = np.random.default_rng(seed), np.random.default_rng(1).normal(size=(300, width))
    rows = np.empty((count, width), np.float32) if out is None else out
    for at in range(0, count, CHUNK):
        size = min(CHUNK, count - at)
        some = directions[random.integers(0, 300, size)] + 0.8 * random.normal(size=(size, width))
        some /= np.linalg.norm(some, axis=1, keepdims=True)
        rows[at : at + size] = some * (random.lognormal(0, 0.5, (size, 1)) if lengths else 1)
    return rows


def spent(calls: Iterable[Callable[[], Any]]) -> tuple[list[Any], dict[str, float]]:
    """What calls answer, and the milliseconds one takes: by the clock, and of this thread's processor."""
    answers, times, busy = [], [], time.thread_time()
    for call in calls:
        began = time.perf_counter()
        answers.append(call())
        times.append(1e3 * (time.perf_counter() - began))
    took = {f"p{q}_ms": round(float(np.percentile(times, q)), 3) for q in (50, 99)}
    return answers, took | {"cpu_ms": round(1e3 * (time.thread_time() - busy) / max(len(times), 1), 3)}


def searched(items: int, width: int = 64, asked: int = 300) -> Iterator[dict[str, Any]]:
    """The vectors' index by itself: a row a share that is allowed."""
    rows, queries = vectors(items, width, 2, True), vectors(asked, width, 3, False)
    began = time.perf_counter()
    base = Base.build(rows, queries=vectors(1000, width, 4, False))
    built = round(time.perf_counter() - began, 1)
    for row in inside(Ann(base), queries, (1.0, 0.5, 0.1, 0.01)):
        yield {
            "part": f"index of {items} x {width}", "build_s": built, "lists": base.measured.lists,
            "probes": base.measured.probes, **row,
        }  # fmt: skip


def inside(ann: Ann, queries: NDArray[np.float32], shares: Iterable[float]) -> Iterator[dict[str, Any]]:
    """Of a share of all items that is allowed, by chance: what is found of the exact 100, and how fast."""
    rows, random = ann.base.vectors, np.random.default_rng(5)
    for share in shares:
        mask = random.random(len(rows)) < share
        allowed, numbers = Bits.of(mask), np.flatnonzero(mask)
        exact = numbers[nearest(rows if mask.all() else rows[numbers], queries[:100], ASKED)]
        ann.search(queries[0], ASKED, allowed)
        found, times = spent([partial(ann.search, query, ASKED, allowed) for query in queries])
        hits = [len(np.intersect1d(one.numbers, other)) for one, other in zip(found, exact, strict=False)]
        yield {"allowed": share, "recall@100": round(float(np.mean(hits)) / ASKED, 4), **times}


def requests(items: int, asked: int = 300) -> Iterator[dict[str, Any]]:
    """A whole build over a known world, and each path's answers from the files."""
    gathered, known = world(items)
    settings = BuildSettings(factors=FactorSettings(turns=3))
    began, before = time.perf_counter(), rss()
    contents = build(gathered, settings)
    built, grew = time.perf_counter() - began, rss() - before
    held = windows(gathered.positives, gathered.users, 20)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        index = Index.open(write(Path(folder), contents, About()))
        wrote, size = time.perf_counter() - began, index.about.bytes
        yield {"part": f"{len(known)} items liked, {gathered.users} people, {len(gathered.positives.users)} positives",
               "build_s": round(built, 1), "write_and_open_s": round(wrote, 1), "disk_mb": size >> 20,
               "memory_mb": round(grew)}  # fmt: skip
        places, made = Places(len(known)), index.contents
        places.set(np.arange(len(known), dtype=np.int32), known)
        ann = Ann(made.base, places)
        for share in (0.9, 0.1):
            allowed = Bits.of(np.random.default_rng(6).random(items) < share)
            scenes = [
                seen(known[held.columns[held.starts[user] : held.starts[user + 1]]], user, allowed)
                for user in range(asked)
            ]
            for path in (ItemCf(made.neighbours, places), UserCf(made.near, places), Factors(made.model, ann)):
                path.recall(scenes[0], ASKED)
                found, times = spent([partial(path.recall, one, ASKED) for one in scenes])
                own = [
                    np.mean(one.numbers % TASTES == user % TASTES) for user, one in enumerate(found) if len(one.numbers)
                ]
                yield {
                    "part": f"path {path.name}", "allowed": share, **times,
                    "found": round(float(np.mean([len(one.numbers) for one in found])), 1),
                    "of the person's taste": round(float(np.mean(own)), 3),
                }  # fmt: skip


def seen(liked: Numbers, user: int, allowed: Bits) -> Scene:
    """A request of somebody who liked these."""
    mine = allowed.copy()
    mine.clear(liked)
    history = History(liked, np.zeros(len(liked), np.uint8), np.arange(float(len(liked))))
    return Scene(str(user), 0.0, history, {}, {}, mine, np.empty(0, np.int32), 0)


def rss() -> float:
    """The most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


def shown(rows: list[dict[str, Any]]) -> None:
    """A table of rows that have the same columns."""
    texts = [[" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in row.values()]
             for row in rows]  # fmt: skip
    names = list(rows[0])
    widths = [max(len(one[at]) for one in [names, *texts]) for at in range(len(names))]
    for line in [names, *texts]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder in which the demo keeps its archive")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["movielens", "scale"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # implicit's, of conversions it does itself
    tables: list[list[dict[str, Any]]] = []
    if options.only != "scale":
        tables.append(list(quality(*liked_films(options.data), known_films(options.data))))
    if options.only != "movielens":
        made = list(requests(options.items))
        tables += [made[:1], made[1:], list(searched(options.items))]
    for table in () if options.json else tables:
        shown(table)
    if options.json:
        print(json.dumps([row for table in tables for row in table]))


def liked_films(folder: Path | None) -> tuple[Positives, int, int]:
    """(who liked which film when, people, films)."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    rows = [
        (users.setdefault(one.user, len(users)), items.setdefault(one.item, len(items)), one.event_time)
        for one in movielens(folder or config.cache_folder()).shown
        if one.like
    ]
    whose, what, when = (np.array(column) for column in zip(*rows, strict=True))
    return Positives(whose.astype(np.int32), what.astype(np.int32), when), len(users), len(items)


if __name__ == "__main__":
    main()
