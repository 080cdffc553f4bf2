"""Records found by key: a search finds what reading everything finds, wherever segments end and whatever broke."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_broker import Broker, limits
from millstream.clock import FakeClock
from millstream.guard.pii import Redacted
from millstream.stream import Log, LogLimits, keyed
from millstream.stream.keyed import Keyed
from millstream.stream.log import open_log

KEYS = [b"", b"a", b"b", b"ab", b"a-longer-key"]


def written(log, clock, seed, partitions=3, count=200):
    """Frames of one record, of many, with a meta and of none, over some partitions."""
    dice = random.Random(seed)
    writers = [log.writer("t", number) for number in range(partitions)]
    for _ in range(count):
        writer = dice.choice(writers)
        clock.advance(dice.choice([0.0, 0.5, 30.0]))
        records = [
            (dice.choice(KEYS), Redacted(dice.randbytes(dice.choice([0, 3, 90]))))
            for _ in range(dice.choice([1, 1, 5]))
        ]
        if len(records) == 1:
            writer.append(*records[0])
        else:
            writer.append_frame(records[: dice.choice([0, 5])], meta=b"meta" * dice.choice([0, 3]))
    return log.reader("t")


def everything(reader):
    return [record for partition in reader.partitions() for record in reader.records(partition)]


def place(record):
    return record.partition, record.offset


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sets(st.sampled_from(KEYS), min_size=1), st.floats(0, 2000), st.floats(0, 2000))
def test_it_finds_what_reading_everything_finds(tmp_path_factory, seed, keys, since_s, span_s):
    clock = FakeClock(1000.0)
    with Log(tmp_path_factory.mktemp("log"), clock, LogLimits(segment_bytes=900)) as log:
        reader = written(log, clock, seed)
        since, until = 1000.0 + since_s, 1000.0 + since_s + span_s
        all_of_it = everything(reader)
        wanted = [one for one in all_of_it if one.key in keys and since <= one.arrival <= until]
        newest = [*Keyed(reader).newest(keys, since, until)]
        assert sorted(newest, key=place) == wanted
        for partition in reader.partitions():
            mine = [one for one in newest if one.partition == partition]
            assert mine == sorted(mine, key=place, reverse=True), "newest first within a partition"
        oldest = [*Keyed(reader).oldest(keys, since, until)]
        assert sorted(oldest, key=place) == wanted and oldest == sorted(oldest, key=lambda one: one.arrival)
        assert sorted(Keyed(reader).oldest(None), key=place) == all_of_it


def test_what_is_newer_is_found_without_passing_what_is_older(tmp_path):
    clock = FakeClock(0.0)
    with Log(tmp_path, clock, LogLimits(segment_bytes=2000)) as log:
        writer = log.writer("t", 0)
        for number in range(1000):
            clock.advance(1.0)
            writer.append(b"%d" % number, Redacted(b"x" * 20))
        look = Keyed(log.reader("t"))
        assert next(look.newest({b"990"})).offset == 990 and look.passed < 50
        look = Keyed(log.reader("t"))
        assert next(look.newest({b"10"}, until=20.0)).offset == 10 and look.passed < 100
        look = Keyed(log.reader("t"))
        assert [*look.newest({b"10"}, since=900.0)] == [] and look.passed < 150
        said = []
        keyed_ = Keyed(log.reader("t"), said.append)
        keyed_._said = -keyed._MARK  # as if so many were passed already
        assert [*keyed_.newest({b"nobody"})] == [] and said, "it says how far it is"


def test_a_topic_that_nobody_has_written_has_nothing(tmp_path):
    with Log(tmp_path, FakeClock(0.0)) as log:
        assert [*Keyed(log.reader("t")).newest({b"a"})] == [*Keyed(log.reader("t")).oldest(None)] == []


def test_damage_ends_its_segment_and_is_told(tmp_path):
    clock = FakeClock(0.0)
    with Log(tmp_path, clock, LogLimits(segment_bytes=400)) as log:
        writer = log.writer("t", 0)
        for number in range(60):
            clock.advance(1.0)
            writer.append(b"k%d" % (number % 2), Redacted(b"%d" % number))
    paths = sorted((tmp_path / "t" / "0").glob("*.seg"))
    assert len(paths) > 4
    with Log(tmp_path, clock) as log:
        whole = {one.offset for one in Keyed(log.reader("t")).newest({b"k1"})}
        first, last = int(paths[2].stem), int(paths[3].stem)
        raw = bytearray(paths[2].read_bytes())
        raw[16 + 32 + 8] ^= 0x40  # in the first record's key or value
        paths[2].write_bytes(raw)
        look = Keyed(log.reader("t"))
        found = {one.offset for one in look.newest({b"k1"})}
        flipped = bytes([ord("k") ^ 0x40])
        assert flipped != b"k" and found <= whole and whole - found <= set(range(first, last))
        raw[16] = 0xFF  # the length of the first frame
        paths[2].write_bytes(raw)
        look = Keyed(log.reader("t"))
        found = {one.offset for one in look.newest({b"k1"})}
        assert whole - found == {one for one in whole if first <= one < last}
        assert len(look.damaged) == 1 and paths[2].name in look.damaged[0]
        paths[1].write_bytes(b"nonsense")
        look = Keyed(log.reader("t"))
        assert {one.offset for one in look.oldest({b"k1"})} == found - set(range(int(paths[1].stem), first))
        assert len(look.damaged) == 2


def test_what_is_found_has_its_checksum_looked_at(tmp_path):
    clock = FakeClock(0.0)
    with Log(tmp_path, clock) as log:
        log.writer("t", 0).append(b"key", Redacted(b"value"))
    (path,) = (tmp_path / "t" / "0").glob("*.seg")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"value", b"vAlue"))
    with Log(tmp_path, clock) as log:
        look = Keyed(log.reader("t"))
        assert [*look.newest({b"key"})] == [] and "checksum" in look.damaged[0]


def test_segments_that_retention_takes_meanwhile_are_passed_over(tmp_path):
    clock = FakeClock(0.0)
    with Log(tmp_path, clock, LogLimits(segment_bytes=300)) as log:
        writer = log.writer("t", 0)
        for _ in range(30):
            clock.advance(1.0)
            writer.append(b"k", Redacted(b"x"))
        look = Keyed(log.reader("t")).oldest({b"k"})
        next(look)
        for path in sorted((tmp_path / "t" / "0").glob("*.seg"))[1:3]:
            path.unlink()
        left = [one.offset for one in look]
        assert left and left == sorted(left) and len(left) < 29


@pytest.mark.slow
def test_a_log_on_a_cluster_is_searched_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(keyed, "PIECE", 7)
    broker, clock = Broker(), FakeClock(1000.0)
    with Log(tmp_path, FakeClock(1000.0)) as before:  # what was logged before stays in the folder, and is nobody's
        before.writer("t", 0).append(b"a", Redacted(b"in the folder"))
    try:
        with open_log(tmp_path, clock, limits(broker)) as log:
            reader = written(log, clock, 5, partitions=2, count=60)
            all_of_it = everything(reader)
            for keys in ({b"a"}, {b"ab", b""}):
                for since, until in ((-math.inf, math.inf), (1100.0, 1400.0)):
                    wanted = [one for one in all_of_it if one.key in keys and since <= one.arrival <= until]
                    assert wanted
                    assert sorted(Keyed(reader).newest(keys, since, until), key=place) == wanted
                    assert sorted(Keyed(reader).oldest(keys, since, until), key=place) == wanted
            look = Keyed(reader)
            next(look.newest({all_of_it[-1].key}))
            assert look.passed < 20
    finally:
        broker.close()
