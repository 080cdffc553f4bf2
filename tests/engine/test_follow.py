"""Deltas reach every loaded version, and a version that is gone costs nothing more."""

import asyncio
import zlib

import numpy as np

from millstream.clock import FakeClock, SystemClock
from millstream.engine import Engine
from millstream.engine.follow import Follow
from millstream.engine.lane import DELTAS_HELD_MAX
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl, Settings
from millstream.models.repository import Repository
from millstream.models.traffic import promote
from millstream.stream import Log, encode, lenient
from millstream.types import Delta, Request

SLOTS = np.arange(1 << 10, dtype=np.uint32)
TOKENS = np.ones((1, 2), np.uint32)


def delta(base: str, sequence: int, arrivals=()) -> Delta:
    weights = np.full(len(SLOTS), sequence / 10, np.float32).tobytes()
    return Delta(
        model="ranker", base=base, sequence=sequence, upto=0, slots=SLOTS.tobytes(), weights=weights,
        arrivals=np.array(arrivals, np.float64).tobytes(), checksum=zlib.crc32(weights, zlib.crc32(SLOTS.tobytes())),
    )  # fmt: skip


class House:
    def __init__(self, folder):
        self.log, self.meter, self.now = Log(folder / "log", FakeClock(100.0)), Meter(), FakeClock(100.0)
        self.deltas = self.log.writer("deltas")
        self.repository = Repository(folder / "models")
        self.follow = Follow(self.repository, self.log, self.now, self.meter)
        self.engine = Engine(
            self.repository, SystemClock(), self.meter,
            on_load=self.follow.on_load, on_first_answer=self.follow.on_first_answer,
        )  # fmt: skip
        self.follow.attach(self.engine)

    async def put(self) -> str:
        """A new base goes live."""
        lineage = {"deltas_from": self.deltas.end}
        manifest = Manifest(format="ftrl", file="model.ftrl", lineage=lineage)
        version = self.repository.put("ranker", manifest, {"model.ftrl": Ftrl(Settings(bits=10), 2).dump()})
        await self.promote(version)
        return version

    async def promote(self, version: str) -> None:
        self.repository.change_policy("ranker", promote(version), who="test", why="base")
        await self.engine.refresh()

    def push(self, *args, **fields) -> None:
        self.deltas.append(b"", encode(delta(*args, **fields)))
        self.follow.poll()

    async def answer(self) -> str:
        output = await self.engine.submit(Request("ranker", {"tokens": TOKENS}, 1, id="q"))
        await asyncio.sleep(0)
        sequence = int(output.version.split("@")[1])
        assert np.allclose(output.outputs["probability"], 1 / (1 + np.exp(-2 * sequence / 10)), atol=1e-6)
        return output.version


def play(folder, scene):
    async def run():
        house = House(folder)
        house.repository.put("ranker", Manifest(format="ftrl", file="f"), {"f": Ftrl(Settings(bits=10), 2).dump()})
        await house.engine.start()
        await scene(house)
        await house.engine.stop()
        house.log.close()

    asyncio.run(run())


def test_a_version_gets_its_deltas_while_it_is_served_and_those_it_missed_when_it_comes(tmp_path):
    async def scene(house):
        base = await house.put()
        house.push(base, 1)
        house.push(base, 2)
        assert await house.answer() == f"{base}@2"
        other = await house.put()
        house.push(other, 1)
        house.push(base, 3)
        assert await house.answer() == f"{other}@1"
        await house.promote(base)
        assert await house.answer() == f"{base}@3"

    play(tmp_path, scene)


def test_a_version_that_is_no_longer_loaded_costs_nothing(tmp_path, monkeypatch):
    decoded = []
    real = lenient.decode
    monkeypatch.setattr(lenient, "decode", lambda value: decoded.append(1) or real(value))

    async def scene(house):
        for _ in range(8):
            base = await house.put()
            house.push(base, 1)
        decoded.clear()
        house.push(base, 2)
        assert len(decoded) == 1, "every base that was ever served reads each delta"
        assert await house.answer() == f"{base}@2"

    play(tmp_path, scene)


def test_staleness_is_counted_once_an_example_from_its_arrival_to_its_first_answer(tmp_path):
    async def scene(house):
        base = await house.put()
        house.push(base, 1, arrivals=[99.0, 98.0])
        assert house.meter.sum("millstream_staleness_seconds") == 0, "nobody has got an answer with it"
        house.now.advance(1.0)
        await house.answer()
        await house.answer()
        assert house.meter.sum("millstream_staleness_seconds") == 2
        assert 2.0 <= house.meter.quantile("millstream_staleness_seconds", 1.0) <= 5.0
        house.push(base, 2, arrivals=[100.0])
        await house.put()
        await house.promote(base)
        await house.answer()
        assert house.meter.sum("millstream_staleness_seconds") == 3, "a version that was loaded again counts it twice"
        house.follow.note()
        next_life = Follow(house.repository, house.log, house.now, house.meter)
        next_life.attach(house.engine)
        next_life.on_load("ranker", base)
        next_life.on_first_answer("ranker", base, 2)
        assert house.meter.sum("millstream_staleness_seconds") == 3, "the next process counts it twice"

    play(tmp_path, scene)


def test_more_deltas_than_may_wait_for_a_long_batch_come_when_it_ends(tmp_path):
    async def scene(house):
        base = await house.put()
        lane = house.engine._served["ranker"].lanes[base]
        lane.running += 1  # a batch under way
        many = DELTAS_HELD_MAX + 10
        for number in range(1, many + 1):
            house.push(base, number)
        assert len(lane.held) == DELTAS_HELD_MAX
        lane.running -= 1
        house.engine._left(lane)
        house.follow.poll()
        assert await house.answer() == f"{base}@{many}"
        house.push(base, many + 1)
        assert await house.answer() == f"{base}@{many + 1}"
        assert house.meter.sum("millstream_deltas_refused_total") == 0

    play(tmp_path, scene)


def test_a_damaged_delta_leaves_its_version_as_it_is(tmp_path, caplog):
    async def scene(house):
        base = await house.put()
        for number in (1, 2, 3):
            house.deltas.append(b"", encode(delta(base, number)))
        (segment,) = house.deltas.folder.glob("*.seg")
        content = bytearray(segment.read_bytes())
        content[len(content) // 2] ^= 1  # in the second of three
        segment.write_bytes(content)
        for _ in range(5):
            house.follow.poll()
        assert await house.answer() == f"{base}@1"
        assert house.meter.sum("millstream_log_unreadable_total") == 1 == caplog.text.count("going on without it")

    play(tmp_path, scene)
