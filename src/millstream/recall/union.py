"""All paths at once, and one list of candidates that says which path found each.

Rules of the room:
- A path has a deadline and threads of its own, one set of them however many ask it. Late, it is left out of this answer
  and counted; while a call of it that was late still runs nobody asks it again, so a path that is stuck costs no other
  path anything.
- A path that raises is counted, and said once; it never becomes an error of the request.
- Whatever a path says, nothing leaves that `scene.allowed` does not have, and no item twice.
- Scores of two paths do not compare: an item's score is that of its place, 1 for a path's best down to almost 0 for the
  last of its quota, the best of those that found it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import ClassVar, Final, Literal, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from millstream.errors import Failed, Misconfigured
from millstream.meter import Meter
from millstream.recall.scene import Found, Numbers, Path, Scene

PATHS_MAX: Final = 32
"""As many as a mask of sources has bits."""
THREADS: Final = 2
Answer = Found | Literal["late", "failed"]
"""Of a path."""
Call = Future[tuple[Found, float]]
"""What a path found, and how long it took, seconds."""
logger = logging.getLogger(__name__)


class Union(NamedTuple):
    """What was found: `numbers` [m], each once, best first; `sources` uint32 [m]: bit i for `Recall.names[i]`; `scores`
    float32 [m] in (0, 1]. `late`, `failed`: paths that are not in it. `ranks` int32 [paths, m]: the place of each in
    what path i found, from 0; -1 where it was not."""

    numbers: Numbers
    sources: NDArray[np.uint32]
    scores: NDArray[np.float32]
    late: tuple[str, ...]
    failed: tuple[str, ...]
    ranks: NDArray[np.int32]


class Recall:
    """Asks paths; each is given as (path, quota, deadline in seconds). Close it at the end. `threads`: of each path;
    who asks a path that others ask already shares theirs."""

    def __init__(self, paths: Sequence[tuple[Path, int, float]], meter: Meter, threads: int = THREADS) -> None:
        names = [path.name for path, _, _ in paths]
        if len(names) > PATHS_MAX or len(set(names)) < len(names):
            raise Misconfigured(f"recall: at most {PATHS_MAX} paths, none twice; got {', '.join(names)}")
        self.names = tuple(names)
        self._asked = [_Asked(path, quota, deadline_s, meter, threads) for path, quota, deadline_s in paths]
        self._closed = False

    async def gather(self, scene: Scene) -> Union:
        """What all paths know for a scene: within the longest deadline, whatever happens."""
        return joined(self.names, [one.quota for one in self._asked], await self.answers(scene))

    async def answers(self, scene: Scene) -> list[Answer]:
        """What each path knows, in the order of `names`: as `gather`, each by itself."""
        asking = _Asking([(one.deadline_s, one.begin(scene)) for one in self._asked])
        try:
            await asking.over()
        except asyncio.CancelledError:
            for one, (_, call) in zip(self._asked, asking.calls, strict=True):
                one.leave(call)
            raise
        return [one.end(call) for one, (_, call) in zip(self._asked, asking.calls, strict=True)]

    def close(self) -> None:
        """Ask nothing more. Does not wait for what is late."""
        if not self._closed:
            for one in self._asked:
                one.crew.leave()
        self._closed = True


class _Crew:
    """The threads of a path, for all in this process who ask it: as long as one of them is open, or until nobody has
    them any more. `overdue`: calls that nobody waits for any more."""

    _by_path: ClassVar[WeakValueDictionary[int, _Crew]] = WeakValueDictionary()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path  # while it is held its id is nobody else's
        self._open = 0
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=f"recall-{path.name}")
        self.overdue: set[Call] = set()

    @classmethod
    def join(cls, path: Path, threads: int) -> _Crew:
        """Those of a path, for one more who asks it."""
        with cls._lock:
            crew = cls._by_path.get(id(path))
            if crew is None or not crew._open:
                crew = cls._by_path[id(path)] = cls(path, threads)
            crew._open += 1
            return crew

    def leave(self) -> None:
        """One of those who ask is closed; the last one sends the threads home."""
        with self._lock:
            self._open -= 1
            if not self._open:
                self.pool.shutdown(wait=False, cancel_futures=True)


class _Asking:
    """Calls of one request, each with its deadline in seconds. They end in threads; the event loop is woken once, by
    the last of them, and not by each."""

    def __init__(self, calls: Sequence[tuple[float, Call | None]]) -> None:
        self.calls = calls
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._lock = threading.Lock()
        self._open = {call for _, call in calls if call is not None}

    async def over(self) -> None:
        """Until each is done, or its deadline has passed."""
        if not self._open:
            return
        timers = [
            self._loop.call_later(deadline_s, self._give_up, deadline_s)
            for deadline_s in {deadline_s for deadline_s, call in self.calls if call is not None}
        ]
        for call in list(self._open):
            call.add_done_callback(self._ended)
        try:
            await self._over
        finally:
            for timer in timers:
                timer.cancel()

    def _ended(self, call: Call) -> None:
        with self._lock:
            last = call in self._open and len(self._open) == 1
            self._open.discard(call)
        if last:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._wake)

    def _give_up(self, deadline_s: float) -> None:
        with self._lock:
            self._open -= {call for own_s, call in self.calls if own_s == deadline_s}
            last = not self._open
        if last:
            self._wake()

    def _wake(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


class _Asked:
    """A path with its threads and counters. Its counters are written by the event loop's thread alone."""

    def __init__(self, path: Path, quota: int, deadline_s: float, meter: Meter, threads: int) -> None:
        if quota < 1 or deadline_s <= 0:
            raise Misconfigured(f"recall path {path.name}: quota {quota}, deadline {deadline_s} s; both are above 0")
        self.path, self.quota, self.deadline_s = path, quota, deadline_s
        self.crew = _Crew.join(path, threads)
        self._said = False
        labels = {"path": path.name}
        self._seconds = meter.histogram("millstream_recall_seconds", "From a call of a path to its answer.", labels)
        self._found = meter.counter("millstream_recall_found_total", "Candidates that a path found.", labels)
        self._late = meter.counter("millstream_recall_late_total", "Requests without a path that was late.", labels)
        self._failed = meter.counter("millstream_recall_failed_total", "Requests without a path that failed.", labels)

    def begin(self, scene: Scene) -> Call | None:
        """Let the path look; None while one that was late still runs."""
        return self.crew.pool.submit(self._call, scene) if not self.crew.overdue else None

    def end(self, call: Call | None) -> Answer:
        """What the path found; "late" or "failed"."""
        if call is None or not call.done():
            self.leave(call)
            self._late.add()
            return "late"
        if (error := call.exception()) is not None:
            self._failed.add()
            if not self._said:
                self._said = True
                logger.error(
                    "recall path %s failed: %s; going on without it, said once", self.path.name, error, exc_info=error
                )
            return "failed"
        found, seconds = call.result()
        self._seconds.observe(seconds)
        self._found.add(len(found.numbers))
        return found

    def leave(self, call: Call | None) -> None:
        """Nobody waits for it any more."""
        if call is not None and not call.done():
            self.crew.overdue.add(call)
            call.add_done_callback(self.crew.overdue.discard)  # at once, if it has ended meanwhile

    def _call(self, scene: Scene) -> tuple[Found, float]:
        begun = perf_counter()
        try:
            numbers, scores = self.path.recall(scene, self.quota)
        except TimeoutError as error:  # of its own: it is not late
            raise Failed(f"{self.path.name}: {error}") from error
        if len(numbers) != len(scores):
            raise Failed(f"{self.path.name}: {len(numbers)} items with {len(scores)} scores")
        numbers, scores = numbers[: self.quota].astype(np.int32, copy=False), scores[: self.quota]
        kept = np.zeros(len(numbers), np.bool_)
        kept[np.unique(numbers, return_index=True)[1]] = True
        kept &= scene.allowed.test(numbers)
        if not kept.all():
            numbers, scores = numbers[kept], scores[kept]
        return Found(numbers, scores), perf_counter() - begun


def joined(names: Sequence[str], quotas: Sequence[int], answers: Sequence[Answer]) -> Union:
    """One list of what paths with these names and quotas answered."""
    late = tuple(name for name, answer in zip(names, answers, strict=True) if answer == "late")
    failed = tuple(name for name, answer in zip(names, answers, strict=True) if answer == "failed")
    found = [answer if isinstance(answer, Found) else Found.nothing() for answer in answers]
    all_of = np.concatenate([np.empty(0, np.int32), *(one.numbers for one in found)])
    numbers, place = np.unique(all_of, return_inverse=True)
    ranks = np.full((len(found), len(numbers)), -1, np.int32)
    sources = np.zeros(len(numbers), np.uint32)
    scores = np.zeros(len(numbers), np.float32)
    at = 0
    for path, one in enumerate(found):
        mine = place[at : at + len(one.numbers)]
        at += len(one.numbers)
        ranks[path, mine] = rank = np.arange(len(mine), dtype=np.int32)
        sources[mine] |= np.uint32(1 << path)
        scores[mine] = np.maximum(scores[mine], 1 - rank.astype(np.float32) / quotas[path])
    order = np.lexsort((numbers, -scores))
    return Union(numbers[order], sources[order], scores[order], late, failed, ranks[:, order])
