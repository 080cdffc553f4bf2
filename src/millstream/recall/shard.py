"""A shard of recall: what searches a share of the items for who asks at its socket (shards.py).

Rules of the room:
- It knows all items, as liked ones and the statistics of tags are everybody's, and gives only its own: inside the
  search, by a bitmap. Of users it knows nothing but what a request tells.
- Whoever asks is of this machine and this user. What cannot be read ends the connection; what fails costs one answer.
- Requests of one connection are worked on PENDING_MAX at a time; the next ones wait unread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Final, NamedTuple

import msgspec
import numpy as np

from millstream.meter import Meter
from millstream.recall.catalogue import Catalogue
from millstream.recall.filters import Filters
from millstream.recall.scene import Bits, History, Numbers, Path, Scene
from millstream.recall.shards import FRAME_MAX, Asked, Past, Told, address, frame, framed
from millstream.recall.shelf import Mine
from millstream.recall.union import Recall

PENDING_MAX: Final = 64
RECALLS_MAX: Final = 128  # different sets of paths that it is asked, each with threads
_read_asked = msgspec.msgpack.Decoder(Asked).decode
logger = logging.getLogger(__name__)


class Part:
    """The items of a catalogue that are one shard's, as a bitmap; it watches."""

    def __init__(self, catalogue: Catalogue, mine: Mine) -> None:
        self._catalogue, self._mine = catalogue, mine
        self._packed, self._n = np.zeros(128, np.uint8), 0
        catalogue.watch(self)

    def changed(self, number: int) -> None:
        """For the catalogue."""
        if number >= self._n:  # an item's id never changes
            if number >> 3 >= len(self._packed):
                self._packed = np.concatenate((self._packed, np.zeros_like(self._packed)))
            if self._mine([self._catalogue.name(number)])[0]:
                self._packed[number >> 3] |= 1 << (number & 7)
            self._n = number + 1

    def rebuilt(self) -> None:
        """For the catalogue."""
        names = self._catalogue.names(np.arange(self._catalogue.count, dtype=np.int32))
        packed = np.packbits(self._mine(names), bitorder="little")
        self._packed = np.zeros(max(128, len(packed)), np.uint8)
        self._packed[: len(packed)], self._n = packed, len(names)

    def keep(self, allowed: Bits) -> None:
        """Leave of `allowed` what is the shard's."""
        np.bitwise_and(allowed.bytes, self._packed[: len(allowed.bytes)], out=allowed.bytes)


class Searched(NamedTuple):
    """What a shard searches, of one tenant."""

    catalogue: Catalogue
    filters: Filters
    part: Part
    paths: Mapping[str, Path]


class Shard:
    """Answers for shard `number` of `of`. `searched` by tenant, "" without; kept current by whoever has it, on the
    event loop."""

    def __init__(self, number: int, of: int, searched: Mapping[str, Searched], meter: Meter) -> None:
        self._number, self._of, self._searched, self._meter = number, of, searched, meter
        self._recalls: OrderedDict[tuple[str, tuple[tuple[str, int, float], ...]], Recall] = OrderedDict()
        self._server: asyncio.Server | None = None
        self._busy: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._said = False

    async def listen(self, path: File) -> None:
        """Answer at a socket from now on, of this user's processes alone; one that a dead shard left is replaced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with address(path) as where:
            self._server = await asyncio.start_unix_server(self._serve, where)
        path.chmod(0o600)

    def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        for task in self._busy:
            task.cancel()
        for recall in self._recalls.values():
            recall.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        room = asyncio.Semaphore(PENDING_MAX)
        self._writers.add(writer)
        try:
            while True:
                asked = _read_asked(await frame(reader))
                await room.acquire()
                task = asyncio.ensure_future(self._tell(asked, writer))
                self._busy.add(task)
                task.add_done_callback(self._busy.discard)
                task.add_done_callback(lambda _: room.release())
        except (EOFError, asyncio.CancelledError):  # the other end has gone, or this process ends
            pass
        except (OSError, ValueError, msgspec.MsgspecError) as error:  # of another release, say
            logger.warning("a connection to this shard ends: %s", error)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _tell(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        try:
            told = framed(await self._answer(asked))
            if len(told) > FRAME_MAX:
                raise ValueError(f"an answer of {len(told)} bytes, at most {FRAME_MAX}")
        except Exception as error:  # whatever it is costs this answer alone
            if not self._said:
                self._said = True
                logger.exception("this shard of recall could not answer: %s; said once", error)
            told = framed(Told(asked.id, ["failed"] * len(asked.paths)))
        if not writer.is_closing():
            writer.write(told)

    async def _answer(self, asked: Asked) -> Told:
        if asked.of != self._of:
            raise ValueError(f"asked as one of {asked.of} shards, this is one of {self._of}: restart the service")
        searched = self._searched[asked.tenant]
        known = [one for one in asked.paths if one[0] in searched.paths]
        scene = _scene(asked, searched)
        answered = await self._recall(asked.tenant, known).answers(scene)
        found = dict(zip((name for name, _, _ in known), answered, strict=True))
        answers = [found.get(name, "failed") for name, _, _ in asked.paths]
        return Told(
            asked.id,
            [
                one if isinstance(one, str) else (searched.catalogue.names(one.numbers), one.scores.tobytes())
                for one in answers
            ],
        )

    def _recall(self, tenant: str, paths: Sequence[tuple[str, int, float]]) -> Recall:
        key = tenant, tuple(paths)
        if (made := self._recalls.get(key)) is None:
            of = self._searched[tenant].paths
            made = self._recalls[key] = Recall([(of[name], quota, late) for name, quota, late in paths], self._meter)
            if len(self._recalls) > RECALLS_MAX:
                self._recalls.popitem(last=False)[1].close()
        return made


def _scene(asked: Asked, searched: Searched) -> Scene:
    catalogue = searched.catalogue
    allowed = searched.filters.allowed(asked.rule, exclude=catalogue.numbers(asked.gone))
    searched.part.keep(allowed)
    history = _history(asked.history, catalogue)
    return Scene(
        user=asked.user, now=asked.now, history=history, attributes=asked.attributes, context=asked.context,
        allowed=allowed, given=np.empty(0, np.int32), seed=asked.seed, segment=asked.segment,
        done=history if asked.done is None else _history(asked.done, catalogue),
    )  # fmt: skip


def _history(past: Past, catalogue: Catalogue) -> History:
    """Without the items that this shard does not know yet."""
    numbers: Numbers = catalogue.numbers(past.items)
    known = numbers >= 0
    kinds, times = np.frombuffer(past.kinds, np.uint8), np.frombuffer(past.times, np.float64)
    if not len(numbers) == len(kinds) == len(times):
        raise ValueError(f"{len(numbers)} items with {len(kinds)} kinds at {len(times)} times")
    return History(numbers[known], kinds[known], times[known])
