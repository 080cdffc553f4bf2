"""Recall over several processes: each searches its share of the items, and who makes a list asks all of them at once.

    a process that answers ── Asked ──► shard 0, shard 1 ..      a Unix socket each, RUN/recall-NUMBER/socket
                           ◄── Told ───                          of each path, items and scores

Rules of the room:
- An item is searched by one shard, which a hash of its id names: the same one in every process. Numbers mean nothing
  in another process, so names cross.
- A frame is its length, u32 little endian, and MessagePack, FRAME_MAX at most. One frame asks all shards; exclusions
  that do not fit are not told, and hold all the same:
- What a shard tells is tested against the asker's own `allowed`. Items that either does not know are passed over.
- A shard that is away, late or behind costs its items, never an error: it is counted, and the answer names it. While
  a call that was late has no answer that shard is not asked again. A connection that is lost is made anew, with
  RETRY_S_MAX between two tries.
- Scores of one path compare wherever they come from, so a path's answers are merged by them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path as File
from time import perf_counter
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.clock import Clock
from millstream.meter import Meter
from millstream.recall.catalogue import Catalogue
from millstream.recall.filters import Rule
from millstream.recall.scene import Bits, Found, History, Path, Scene, best
from millstream.recall.shelf import Mine
from millstream.recall.union import Answer, Recall, Union, joined

FRAME_MAX: Final = 16 << 20
SLACK_S: Final = 0.02
"""By so much may a shard's answer be later than the longest deadline of its paths."""
RETRY_S_MAX: Final = 0.5
WAITING_MAX: Final = 512  # requests that wait for one shard
_ADDRESS_MAX: Final = 100  # bytes of a socket's path that every system takes
logger = logging.getLogger(__name__)


class Past(msgspec.Struct, array_like=True, frozen=True):
    """A History by names: `kinds` uint8, `times` float64, as bytes."""

    items: list[str]
    kinds: bytes
    times: bytes


class Asked(msgspec.Struct, array_like=True, frozen=True):
    """A scene as it crosses. `of`: how many shards there are; `paths`: (name, quota, deadline in seconds); `gone`: what
    this user must not get; `done` None: as `history`."""

    id: int
    of: int
    tenant: str
    paths: list[tuple[str, int, float]]
    user: str
    now: float
    seed: int
    segment: str
    attributes: dict[str, Any]
    context: dict[str, Any]
    rule: Rule
    gone: list[str]
    history: Past
    done: Past | None


class Told(msgspec.Struct, array_like=True, frozen=True):
    """What each of the paths that were asked found: (items, float32 scores as bytes), "late" or "failed"."""

    id: int
    paths: list[tuple[list[str], bytes] | Literal["late", "failed"]]


_read_told = msgspec.msgpack.Decoder(Told).decode


def share(item: str, of: int) -> int:
    """The shard, of so many, that searches an item."""
    return zlib.crc32(item.encode(errors="surrogatepass")) % of


def share_of(number: int, of: int) -> Mine:
    """Which items are those of one shard."""

    def mine(items: Sequence[str]) -> NDArray[np.bool_]:
        return np.fromiter((share(item, of) == number for item in items), np.bool_, len(items))

    return mine


def socket_of(run: File, number: int) -> File:
    """Where a shard listens."""
    return run / f"recall-{number}" / "socket"


@contextlib.contextmanager
def address(path: File) -> Iterator[str]:
    """The path of a socket as the system takes it, which is short: Linux also takes a long one by its folder."""
    if len(os.fsencode(path)) <= _ADDRESS_MAX or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def framed(message: Asked | Told) -> bytes:
    """A frame; one longer than FRAME_MAX is for the caller to notice."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "little") + body


async def frame(reader: asyncio.StreamReader) -> bytes:
    """The body of the next frame. IncompleteReadError at the end, ValueError for one that is too long."""
    length = int.from_bytes(await reader.readexactly(4), "little")
    if length > FRAME_MAX:
        raise ValueError(f"a frame of {length} bytes, at most {FRAME_MAX}")
    return await reader.readexactly(length)


class Elsewhere:
    """A path that shards search: here it finds nothing itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def recall(self, scene: Scene, k: int) -> Found:
        """Nothing."""
        return Found.nothing()


class Shards:
    """The shards of an installation, for all who make lists in this process. `run`: the folder of their sockets. Start
    it on the event loop; until then, and of one that is not reached, nobody answers."""

    def __init__(self, run: File, count: int, clock: Clock, meter: Meter) -> None:
        self.count, self._last = count, 0
        self._links = [_Link(socket_of(run, number), number, clock, meter) for number in range(count)]
        self._keeping: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Connect, and stay so; again is harmless."""
        if not self._keeping:
            self._keeping = [asyncio.ensure_future(link.keep()) for link in self._links]

    def close(self) -> None:
        """Ask nothing more."""
        for task in self._keeping:
            task.cancel()
        self._keeping = []

    @property
    def there(self) -> list[bool]:
        """Which are connected now."""
        return [link.there for link in self._links]

    def number(self) -> int:
        """Of the next request."""
        self._last += 1
        return self._last

    async def ask(self, asked: Asked, wait_s: float) -> list[Told | None]:
        """What each shard tells within `wait_s`; None of one that does not."""
        told = framed(asked)
        if len(told) > FRAME_MAX:
            told = framed(msgspec.structs.replace(asked, gone=[]))
        calls = [link.call(asked.id, told) if len(told) <= FRAME_MAX else None for link in self._links]
        late = False
        try:
            if waited := [call for call in calls if call is not None]:
                await asyncio.wait(waited, timeout=wait_s)
            late = True  # what has no answer by now; who stops waiting earlier says nothing about a shard
        finally:
            for link in self._links:
                link.leave(asked.id, late)
        return [link.end(call) for link, call in zip(self._links, calls, strict=True)]


class _Link:
    """A shard, as this process reaches it."""

    def __init__(self, path: File, number: int, clock: Clock, meter: Meter) -> None:
        self._path, self._number, self._clock = path, number, clock
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, tuple[asyncio.Future[Told], float]] = {}
        self._overdue: set[int] = set()
        labels = {"shard": str(number)}
        self._late = meter.counter(
            "millstream_recall_shard_late_total", "Requests without a shard that was late or away.", labels
        )
        self._seconds = meter.histogram(
            "millstream_recall_shard_seconds", "From a question to a shard to its answer.", labels
        )

    @property
    def there(self) -> bool:
        """Whether it is connected."""
        return self._writer is not None

    def call(self, number: int, told: bytes) -> asyncio.Future[Told] | None:
        """Ask; None: it cannot be asked now."""
        if self._writer is None or self._overdue or len(self._waiting) >= WAITING_MAX:
            return None
        if self._writer.is_closing():  # its end is known and `keep` has not run yet: uvloop raises at a write
            return None
        if self._writer.transport.get_write_buffer_size() > FRAME_MAX:
            return None
        self._writer.write(told)
        call: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._waiting[number] = call, perf_counter()
        return call

    def leave(self, number: int, late: bool) -> None:
        """Nobody waits for this answer any more."""
        if self._waiting.pop(number, None) is not None and late:
            self._overdue.add(number)

    def end(self, call: asyncio.Future[Told] | None) -> Told | None:
        """What it told; None, and counted, if nothing."""
        if call is not None and call.done() and not call.cancelled():
            return call.result()
        self._late.add()
        return None

    async def keep(self) -> None:
        """Be connected, until cancelled."""
        pause = 0.0
        while True:
            try:
                with address(self._path) as where:
                    reader, writer = await asyncio.open_unix_connection(where)
            except OSError:
                pause = min(RETRY_S_MAX, 2 * pause + 0.02)
                await self._clock.sleep(pause)
                continue
            logger.info("shard %d of recall is there", self._number)
            self._writer, pause = writer, 0.0
            try:
                while True:
                    self._hear(_read_told(await frame(reader)))
            except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
                logger.warning("shard %d of recall is lost (%s); looking for it", self._number, error)
            finally:
                self._lost(writer)
            await self._clock.sleep(0.02)  # one that accepts and hangs up is not asked without a pause

    def _hear(self, told: Told) -> None:
        self._overdue.discard(told.id)
        call, asked_at = self._waiting.pop(told.id, (None, 0.0))
        if call is not None and not call.done():
            self._seconds.observe(perf_counter() - asked_at)
            call.set_result(told)

    def _lost(self, writer: asyncio.StreamWriter) -> None:
        self._writer = None
        self._overdue.clear()
        for call, _ in self._waiting.values():
            call.cancel()
        self._waiting.clear()
        writer.close()


class Scattered:
    """Like Recall, over shards: those of `paths` that are Elsewhere are theirs, the others are asked here. `catalogue`:
    of this process, of one `tenant`. An answer's `late` names shards beside paths, and `PATH of shard N` where one
    shard lacks one path."""

    def __init__(
        self, shards: Shards, catalogue: Catalogue, paths: Sequence[tuple[Path, int, float]], meter: Meter,
        tenant: str = "",
    ) -> None:  # fmt: skip
        self._shards, self._catalogue, self._tenant = shards, catalogue, tenant
        self.names = tuple(path.name for path, _, _ in paths)
        self._quotas = [quota for _, quota, _ in paths]
        self._there = [(path.name, quota, late) for path, quota, late in paths if isinstance(path, Elsewhere)]
        self._here = Recall([one for one in paths if not isinstance(one[0], Elsewhere)], meter)
        self._wait_s = max((late for _, _, late in self._there), default=0.0) + SLACK_S

    async def gather(self, scene: Scene) -> Union:
        """What all paths know for a scene, wherever: within the longest deadline and SLACK_S."""
        here = asyncio.ensure_future(self._here.answers(scene))
        try:
            told = await self._shards.ask(self._asked(scene), self._wait_s) if self._there and scene.rule else []
            answers: dict[str, Answer] = dict(zip(self._here.names, await here, strict=True))
        finally:
            here.cancel()
        missed = [f"shard {number}" for number, one in enumerate(told) if one is None]
        for place, (name, quota, _) in enumerate(self._there):
            parts = [one.paths[place] if one and len(one.paths) == len(self._there) else "late" for one in told]
            answers[name] = answer = self._merged(parts, quota, scene.allowed)
            if isinstance(answer, Found):
                away = [n for n, part in enumerate(parts) if isinstance(part, str) and told[n] is not None]
                missed += [f"{name} of shard {number}" for number in away]
        union = joined(self.names, self._quotas, [answers[name] for name in self.names])
        return union._replace(late=(*union.late, *missed))

    def close(self) -> None:
        """Ask nothing more here; the shards are others' too."""
        self._here.close()

    def _asked(self, scene: Scene) -> Asked:
        assert scene.rule is not None
        gone = scene.gone[scene.gone >= 0]
        return Asked(
            id=self._shards.number(), of=self._shards.count, tenant=self._tenant, paths=self._there, user=scene.user,
            now=scene.now, seed=scene.seed, segment=scene.segment, attributes=dict(scene.attributes),
            context=dict(scene.context), rule=scene.rule, gone=self._catalogue.names(gone),
            history=self._past(scene.history), done=None if scene.done is scene.history else self._past(scene.done),
        )  # fmt: skip

    def _past(self, history: History) -> Past:
        return Past(self._catalogue.names(history.numbers), history.kinds.tobytes(), history.times.tobytes())

    def _merged(
        self, parts: Sequence[tuple[list[str], bytes] | Literal["late", "failed"]], quota: int, allowed: Bits
    ) -> Answer:  # fmt: skip
        found = [part for part in parts if not isinstance(part, str)]
        if not found:
            return "failed" if "failed" in parts else "late"
        names = [name for items, _ in found for name in items]
        numbers, scores = self._catalogue.numbers(names), np.frombuffer(b"".join(one for _, one in found), np.float32)
        if len(numbers) != len(scores):
            return "failed"
        kept = allowed.test(numbers)
        numbers, scores = numbers[kept], scores[kept]
        first = np.unique(numbers, return_index=True)[1]
        return best(numbers[first], scores[first], quota)
