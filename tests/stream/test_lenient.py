"""A lenient reader goes on with what can be read, and says once what cannot."""

import pytest

from millstream.clock import FakeClock
from millstream.guard.pii import Redacted
from millstream.meter import Meter
from millstream.stream import LenientReader, Log, LogLimits, encode
from millstream.types import Entity

COUNT = 30


def entity(number: int) -> Redacted:
    return encode(Entity(id=f"u{number}", attributes={"age": number}))


@pytest.fixture
def log(tmp_path):
    with Log(tmp_path, FakeClock(1.0), LogLimits(segment_bytes=600)) as made:
        writer = made.writer("users")
        for number in range(COUNT):
            writer.append(b"", entity(number))
        yield made


def flip(log: Log, segment: int, at: int) -> list[int]:
    """One bit of a segment; the first offsets of all segments."""
    paths = sorted((log.root / "users" / "0").glob("*.seg"))
    content = bytearray(paths[segment].read_bytes())
    content[at] ^= 1
    paths[segment].write_bytes(content)
    return [int(path.stem) for path in paths]


def test_without_damage_it_reads_what_a_reader_reads(log):
    meter = Meter()
    events = list(LenientReader(log.reader("users"), meter).events(0, 3))
    assert [(offset, event.id) for offset, event in events] == [(n, f"u{n}") for n in range(3, COUNT)]
    assert meter.sum("millstream_log_unreadable_total") == 0


def test_damage_costs_the_rest_of_its_segment_and_is_said_once(log, caplog):
    meter = Meter()
    bases = flip(log, 1, 300)
    assert len(bases) >= 4
    reader = LenientReader(log.reader("users"), meter)
    first = [offset for offset, _ in reader.events(0, 0)]
    lost = sorted(set(range(COUNT)) - set(first))
    assert lost and bases[1] < lost[0] and lost == list(range(lost[0], bases[2])), "what comes before it is read"
    assert [offset for offset, _ in reader.events(0, 0)] == first
    assert meter.sum("millstream_log_unreadable_total") == 1 == caplog.text.count("going on without it")


def test_damage_in_the_newest_segment_is_left_behind_when_the_next_begins(log):
    bases = flip(log, -1, 40)
    reader, at = LenientReader(log.reader("users"), Meter()), 0
    for offset, _ in reader.events(0, 0):
        at = offset + 1
    assert at == bases[-1] and list(reader.events(0, at)) == []
    writer = log._writers[0]
    for number in range(COUNT, COUNT + 20):
        writer.append(b"", entity(number))
    assert [offset for offset, _ in reader.events(0, at)][-1] == COUNT + 19


def test_an_event_that_cannot_be_decoded_comes_as_none_alone(tmp_path):
    with Log(tmp_path, FakeClock(1.0)) as log:
        writer, meter = log.writer("users"), Meter()
        for value in (entity(0), Redacted(b"\xc1"), entity(2)):
            writer.append(b"", value)
        events = [event for _, event in LenientReader(log.reader("users"), meter).events(0, 0)]
        assert events[1] is None and [events[0].id, events[2].id] == ["u0", "u2"]
        assert meter.sum("millstream_log_unreadable_total") == 1
