"""The union: what all paths found, once each and with its sources; a path that is late, stuck or broken costs itself
alone."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import wraps
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from shelves import QUICK, RULES, SOME, STEPS, scene, tell

from millstream.errors import Misconfigured
from millstream.meter import Meter
from millstream.recall.catalogue import Catalogue
from millstream.recall.filters import Filters
from millstream.recall.paths import Given, Newest, Popular, SimilarToLast, Tags
from millstream.recall.scene import Bits, Found
from millstream.recall.union import Recall

EVERYTHING = Bits.all(100)
SOON_S, LONG_S = 0.05, 30.0


def on_a_loop(test):
    """An async test, run to its end."""

    @wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


class Fixed:
    """Finds these, whatever is asked."""

    def __init__(self, name: str, *numbers: int) -> None:
        self.name, self.found = name, np.array(numbers, np.int32)

    def recall(self, scene, k):
        return Found(self.found, -np.arange(len(self.found), dtype=np.float32))


class Held(Fixed):
    """Answers when it is let go, at the latest when its test ends. `begun` counts its calls."""

    all_of: ClassVar[list[threading.Event]] = []

    def __init__(self, name: str, *numbers: int) -> None:
        super().__init__(name, *numbers)
        self.go, self.begun = threading.Event(), threading.Semaphore(0)
        self.calls = 0
        self.all_of.append(self.go)

    def recall(self, scene, k):
        self.calls += 1
        self.begun.release()
        assert self.go.wait(60)
        return super().recall(scene, k)


class Broken(Fixed):
    """Raises."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.error = error

    def recall(self, scene, k):
        raise self.error


@pytest.fixture
def recall():
    made = []

    def make(*paths, meter=None, threads=2):
        made.append(Recall(paths, meter or Meter(), threads))
        return made[-1]

    yield make
    for one in made:
        one.close()
    for go in Held.all_of:
        go.set()


@on_a_loop
async def test_each_item_comes_once_with_its_sources_and_best_place(recall):
    asked = recall((Fixed("a", 5, 7, 9), 4, LONG_S), (Fixed("b", 7, 8), 2, LONG_S), (Fixed("c"), 2, LONG_S))
    union = await asked.gather(scene(EVERYTHING))
    assert union.numbers.tolist() == [5, 7, 8, 9] and union.numbers.dtype == np.int32
    assert union.sources.tolist() == [1, 3, 2, 1] and union.sources.dtype == np.uint32
    assert union.scores.tolist() == [1.0, 1.0, 0.5, 0.5] and union.scores.dtype == np.float32
    assert union.ranks.tolist() == [[0, 1, -1, 2], [-1, 0, 1, -1], [-1] * 4]
    assert (union.late, union.failed, asked.names) == ((), (), ("a", "b", "c"))


@on_a_loop
async def test_a_path_that_breaks_its_word_is_held_to_it(recall):
    allowed = Bits.all(10)
    allowed.clear(np.array([2], np.int32))
    union = await recall((Fixed("a", 2, 3, 3, 99, -1, 4, 5, 6), 6, LONG_S)).gather(scene(allowed))
    assert union.numbers.tolist() == [3, 4], "allowed ones of its quota, once"


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("of its own"), KeyError(1), MemoryError()])
@on_a_loop
async def test_a_path_that_raises_is_counted_and_said_once_and_the_others_answer(recall, error, caplog):
    meter = Meter()
    asked = recall((Broken("bad", error), 5, LONG_S), (Fixed("good", 1), 5, LONG_S), meter=meter)
    for _ in range(3):
        union = await asked.gather(scene(EVERYTHING))
        assert union.numbers.tolist() == [1] and union.failed == ("bad",) and union.late == ()
        assert union.sources.tolist() == [2]
    assert meter.sum("millstream_recall_failed_total") == 3 and meter.sum("millstream_recall_late_total") == 0
    assert meter.sum("millstream_recall_found_total") == 3 == meter.sum("millstream_recall_seconds")
    assert caplog.text.count("recall path bad failed") == 1


@on_a_loop
async def test_a_path_that_is_late_is_left_out_and_not_asked_again_while_it_runs(recall):
    meter, slow = Meter(), Held("slow", 8)
    asked = recall((slow, 5, SOON_S), (Fixed("good", 1), 5, LONG_S), meter=meter)
    for _ in range(20):
        union = await asked.gather(scene(EVERYTHING))
        assert union.numbers.tolist() == [1] and union.late == ("slow",) and union.failed == ()
    assert slow.calls == 1 and meter.sum("millstream_recall_late_total") == 20
    slow.go.set()
    while asked._asked[0].crew.overdue:
        await asyncio.sleep(0.001)
    union = await asked.gather(scene(EVERYTHING))
    assert union.late == () and set(union.numbers.tolist()) == {1, 8}


@on_a_loop
async def test_a_stuck_path_takes_no_thread_of_others_whatever_comes_at_once(recall):
    slow = Held("slow", 8)
    asked = recall((slow, 5, SOON_S), (Fixed("good", 1), 5, LONG_S), threads=2)
    begun = time.monotonic()
    unions = await asyncio.gather(*(asked.gather(scene(EVERYTHING)) for _ in range(200)))
    assert all(union.numbers.tolist() == [1] and union.late == ("slow",) for union in unions)
    assert slow.calls <= 2 and time.monotonic() - begun < LONG_S / 2
    slow.go.set()


@on_a_loop
async def test_who_goes_away_leaves_no_path_to_be_asked_again(recall):
    slow = Held("slow", 8)
    asked = recall((slow, 5, LONG_S))
    task = asyncio.ensure_future(asked.gather(scene(EVERYTHING)))
    await asyncio.to_thread(slow.begun.acquire)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await asked.gather(scene(EVERYTHING))).late == ("slow",) and slow.calls == 1
    slow.go.set()


@on_a_loop
async def test_however_many_ask_a_path_it_has_one_set_of_threads(recall):
    slow, fast = Held("slow", 8), Fixed("fast", 1)
    first, second = (recall((slow, 5, SOON_S), (fast, 5, LONG_S), threads=1) for _ in range(2))
    assert (await first.gather(scene(EVERYTHING))).late == ("slow",)
    union = await second.gather(scene(EVERYTHING))
    assert union.late == ("slow",) and slow.calls == 1, "a call that was late is nobody's to ask again"
    slow.go.set()
    assert first._asked[1].crew is second._asked[1].crew is not first._asked[0].crew
    first.close()
    first.close()
    assert (await second.gather(scene(EVERYTHING))).sources.tolist()[:1] == [2], "the other one still asks"
    second.close()
    with pytest.raises(RuntimeError):
        second._asked[1].crew.pool.submit(print)
    third = recall((fast, 5, LONG_S))
    assert (await third.gather(scene(EVERYTHING))).numbers.tolist() == [1], "who comes later has new ones"


@on_a_loop
async def test_no_paths_and_empty_paths_are_an_empty_union(recall):
    for asked in (recall(), recall((Fixed("a"), 5, LONG_S))):
        union = await asked.gather(scene(Bits.none(0)))
        assert not len(union.numbers) and union.sources.dtype == np.uint32


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(Misconfigured, match="twice"):
        Recall([(Fixed("a"), 1, 1.0), (Fixed("a"), 1, 1.0)], Meter())
    with pytest.raises(Misconfigured, match="at most 32"):
        Recall([(Fixed(f"p{at}"), 1, 1.0) for at in range(33)], Meter())
    for quota, deadline_s in ((0, 1.0), (1, 0.0)):
        with pytest.raises(Misconfigured, match="above 0"):
            Recall([(Fixed("a"), quota, deadline_s)], Meter())


@QUICK
@given(
    STEPS,
    RULES,
    SOME,
    SOME,
    SOME,
)
def test_nothing_forbidden_comes_out_of_the_union(steps, rule, liked, past, given_):
    catalogue, popular = Catalogue(), Popular(100.0)
    filters = Filters(catalogue)
    tell(catalogue, steps)
    for at, number in enumerate(liked):
        popular.on_positive("u", number, float(at), "")
    paths = (popular, Newest(catalogue), Given(), Tags(catalogue), SimilarToLast(catalogue), Fixed("mad", *range(50)))
    recall = Recall([(path, 10, LONG_S) for path in paths], Meter(), 1)
    allowed = filters.allowed(rule)
    try:
        union = asyncio.run(recall.gather(scene(allowed, past, given_)))
    finally:
        recall.close()
    assert allowed.test(union.numbers).all() and len(set(union.numbers.tolist())) == len(union.numbers)
    assert union.failed == union.late == () and (union.sources > 0).all()
    assert (np.diff(union.scores) <= 0).all() and (union.scores > 0).all()
    for path in range(len(paths)):
        found = union.sources >> path & 1 == 1
        assert sorted(union.ranks[path][found].tolist()) == list(range(found.sum()))
