"""What somebody's records say leaves the log, and nothing else does: offsets, bytes and arrivals of others stay."""

import contextlib
import os
import random

import pytest

from millstream.clock import FakeClock
from millstream.guard.pii import pseudonym
from millstream.store import blob
from millstream.stream import Log, LogLimits, encode, forget, segment
from millstream.stream.event import decode
from millstream.types import (
    Entity,
    Example,
    Fact,
    FeaturesRead,
    Forgotten,
    Outcome,
    Served,
    SetAside,
    Shadow,
)

MAIL = "ann.secret@example.org"
PEOPLE = [MAIL, "u1", "u11", "bob"]  # u11 holds the letters of u1


class World:
    """A log of random events of some people, in small segments, and whose each record is."""

    def __init__(self, folder, seed):
        self.random, self.clock = random.Random(seed), FakeClock(1000.0)
        self.log = Log(folder, self.clock, LogLimits(segment_bytes=2000))
        self.writers = {}
        self.whose = {}  # (topic, partition, offset) -> person
        self.asked = {}

    def append(self, topic, event, whose, key=b"", meta=b""):
        partition = self.random.randrange(2) if topic == "served" else 0
        writer = self.writers.setdefault((topic, partition), None) or self.log.writer(topic, partition)
        self.writers[topic, partition] = writer
        offset = writer.append_frame([(key, encode(event))], meta=meta)
        self.whose[topic, partition, offset] = whose

    def live(self, n):
        for _ in range(n):
            self.clock.advance(self.random.random())
            person = self.random.choice(PEOPLE)
            getattr(self, self.random.choice(("served", "outcome", "outcome", "example", "fact", "read", "user")))(
                person
            )

    def served(self, person):
        request = f"secret-{person}-{len(self.asked)}" if person == MAIL else f"r{len(self.asked)}"
        self.asked[request] = person
        event = Served(
            request=request, model="m", version="1", policy=1, arm="live", user=person, event_time=1.0,
            candidates=["i1", f"thing{self.random.randrange(1000)}"], tokens=os.urandom(8),
        )  # fmt: skip
        self.append("served", event, person, request.encode())

    def _request(self, person):
        mine = [request for request, who in self.asked.items() if who == person]
        return self.random.choice(mine) if mine else None

    def outcome(self, person):
        if request := self._request(person):
            text = "my secret words" if person == MAIL else "words"
            event = Outcome(request=request, item="i1", kind="comment", text=text, event_time=1.0)
            self.append("outcomes", event, person, request.encode())

    def example(self, person):
        if request := self._request(person):
            common = {"request": request, "item": "i1", "event_time": 1.0}
            if self.random.random() < 0.5:
                event = SetAside(outcome=f"{request}/i1/like", cause="late", **common)
            else:
                event = Example(
                    model="m", version="1", tokens=b"12345678", score=0.5, label=1.0, weight=1.0, arrival=1.0,
                    wait_s=0.0, outcomes=[f"{request}/i1/like"], **common,
                )  # fmt: skip
            self.append("examples", event, person, request.encode(), meta=b"step")
            self.append("shadow", Shadow(request=request, model="m", version="2", scores=b"1234"), person)

    def fact(self, person):
        values = {"user": person, "page": "secret page" if person == MAIL else "page", "seconds": 1.0}
        self.append("pages", Fact(event_time=1.0, values=values), person)
        self.append("prices", Fact(event_time=1.0, values={"item": "u1", "price": 2.0}), None)

    def read(self, person):
        keys = {"user": [person], "item": ["i1", "u1"]}
        event = FeaturesRead(features="s", hash="h", at=1, as_of=1, keys=keys, values=b"12345678")
        self.append("features_read", event, person)

    def user(self, person):
        attributes = {"age": 30, "city": "secret city" if person == MAIL else "city"}
        self.append("users", Entity(id=pseudonym(person), attributes=attributes), person)

    def roll(self):
        self.log.roll()

    def records(self):
        """Every record by its place, read anew."""
        found = {}
        for topic in self.log.topics():
            reader = self.log.reader(topic)
            for partition in reader.partitions():
                for one in reader.records(partition):
                    found[topic, partition, one.offset] = one
        return found

    def metas(self):
        return [
            (topic, f.first, f.count, f.meta, f.arrival) for topic in self.log.topics()
            for p in self.log.reader(topic).partitions() for f in self.log.reader(topic).frames(p)
        ]  # fmt: skip


def forget_now(log, *people):
    found = forget.find(log, forget.spellings(people))
    forget.clear(found)
    return found


@pytest.fixture(params=range(6))
def world(tmp_path, request):
    world = World(tmp_path, request.param)
    world.live(150)
    world.served(MAIL), world.outcome(MAIL), world.example(MAIL), world.fact(MAIL), world.read(MAIL), world.user(MAIL)
    world.roll()
    yield world
    world.log.close()


def everything(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("gone", [MAIL, "u1"])
def test_their_records_go_and_those_of_others_stay_bit_for_bit(world, gone, tmp_path):
    before, metas, sizes = world.records(), world.metas(), _sizes(tmp_path)
    assert set(before) == set(world.whose)
    found = forget_now(world.log, gone)
    after = world.records()
    assert set(after) == set(before)
    for place, record in before.items():
        now = after[place]
        assert now.arrival == record.arrival
        if world.whose[place] == gone:
            assert isinstance(decode(now.value), Forgotten) and not now.key
            assert not now.value.strip(b"\0")[len(forget._HEAD) + 4 :]
        else:
            assert now == record, place
    assert sum(found.records.values()) == sum(who == gone for who in world.whose.values())
    assert world.metas() == metas and _sizes(tmp_path) == sizes
    assert not any(world.log.verify(topic).corrupt for topic in world.log.topics())
    if gone == MAIL:
        left = everything(tmp_path)
        assert b"secret" not in left and pseudonym(MAIL).encode() not in left
    assert not forget_now(world.log, gone).records  # again: nothing is found


def _sizes(folder):
    return {path: path.stat().st_size for path in folder.rglob("*.seg")}


def test_the_name_in_the_log_is_a_name_too(world, tmp_path):
    forget_now(world.log, pseudonym(MAIL))
    assert b"secret" not in everything(tmp_path)


class Killed(BaseException):
    """kill -9."""


@pytest.mark.parametrize("after", [0, 1, 2, 3, 7, 15])
def test_killed_anywhere_and_run_again_it_ends_the_same(world, after, tmp_path, monkeypatch):
    """Dies at a rename, before or behind it, with what it was writing left on the disk."""
    before, calls = world.records(), []
    replace = os.replace

    def dying(self, target):
        calls.append(target)
        if len(calls) > after:
            if after % 2:
                replace(self, target)
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", dying)
        patch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)  # who is killed tidies nothing up
        with contextlib.suppress(Killed):
            forget_now(world.log, MAIL)
    forget.tidy(world.log)
    forget_now(world.log, MAIL)
    after_all = world.records()
    assert all(after_all[place] == one for place, one in before.items() if world.whose[place] != MAIL)
    assert b"secret" not in everything(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_a_reader_that_stands_in_the_old_segment_goes_on(world):
    old = {topic: world.log.reader(topic) for topic in world.log.topics()}
    standing = {topic: reader.read(0, 0, 3)[-1].offset + 1 for topic, reader in old.items()}
    expected = {topic: [(r.offset, r.arrival) for r in old[topic].records(0)] for topic in old}
    for reader in old.values():
        reader.read(0, 0, 3)
    forget_now(world.log, MAIL, "bob")
    for topic, reader in old.items():
        rest = [(r.offset, r.arrival) for r in reader.records(0, standing[topic])]
        assert rest == [one for one in expected[topic] if one[0] >= standing[topic]]
        # and back: its index of places still holds in the new files
        assert [(r.offset, r.arrival) for r in reader.records(0)] == expected[topic]


def test_the_segment_being_written_is_left_alone_until_it_rolls(world, tmp_path):
    world.served(MAIL)
    forget_now(world.log, MAIL)
    assert b"secret" in everything(tmp_path)
    world.roll()
    assert forget_now(world.log, MAIL).records == {"served": 1}
    assert b"secret" not in everything(tmp_path)


def test_a_segment_that_retention_took_meanwhile_does_not_come_back(world, monkeypatch):
    found = forget.find(world.log, forget.spellings([MAIL]))
    taken = next(path for path in sorted(found.segments) if path.name == f"{0:020d}.seg")
    locked, took = blob.locked, []

    def lock_and_see(path, *more):
        if path == taken.parent and not took:
            took.append(taken.unlink())  # as retention does, holding the lock just before
        return locked(path, *more)

    monkeypatch.setattr(forget, "locked", lock_and_see)
    forget.clear(found)
    assert took and not taken.exists()
    assert segment.segments(taken.parent)


def test_a_request_that_somebody_else_was_served_under_too_is_theirs(tmp_path):
    world = World(tmp_path, 0)
    common = {"model": "m", "version": "1", "policy": 1, "arm": "live", "candidates": ["i"], "event_time": 1.0}
    for user in ("ann", "bob"):
        world.append("served", Served(request="same", user=user, **common), user)
    world.append("outcomes", Outcome(request="same", item="i", kind="like", event_time=1.0), "bob")
    world.append("served", Served(request="", user="ann", **common), "ann")
    world.append("outcomes", Outcome(request="", item="", kind="watermark", event_time=1.0), None)
    world.roll()
    found = forget_now(world.log, "ann")
    assert found.records == {"served": 2} and found.shared == 1
    assert isinstance(decode(world.log.reader("outcomes").read(0, 0)[0].value), Outcome)
    world.log.close()


def test_damage_is_said_and_the_rest_is_cleared(world, tmp_path):
    path = sorted((tmp_path / "pages" / "0").glob("*.seg"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = forget_now(world.log, MAIL)
    assert len(found.damaged) == 1 and path.name in found.damaged[0]
    rest = [one for one in tmp_path.rglob("*.seg") if one != path]
    assert b"secret" not in b"".join(one.read_bytes() for one in rest)


def test_a_writer_takes_up_what_was_cleared(world, tmp_path):
    forget_now(world.log, MAIL)
    before = world.records()
    world.log.close()
    (tmp_path / "served" / "0" / "committed").unlink()  # as after a copy: everything is checked
    with Log(tmp_path, world.clock, LogLimits(segment_bytes=2000)) as again:
        again.writer("served", 0)
        found = list(again.reader("served").records(0))
        assert found == [one for (topic, partition, _), one in before.items() if (topic, partition) == ("served", 0)]


def test_what_a_power_loss_may_still_mend_is_left_alone(world, tmp_path):
    """A segment that no sync has covered belongs to its writer, which may cut it or write it again."""
    folder = tmp_path / "served" / "0"
    bases = segment.segments(folder)
    assert len(bases) > 2
    world.log.close()
    mark = segment.Mark(folder / "committed", write=True)
    mark.numbers[1] = bases[1]
    found = forget.find(world.log, forget.spellings(PEOPLE))
    assert [path for path in found.segments if path.parent == folder] == [segment.segment_path(folder, bases[0])]
