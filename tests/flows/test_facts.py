"""Facts: durable before they are accepted, all of a call or none, and refused with words where features could not take
them."""

import asyncio
import threading

import pytest
from flow_house import NOW, bytes_of, full_disk, records

from millstream.clock import FakeClock
from millstream.errors import BadInput, Full, NotFound, TooLarge
from millstream.features import Source
from millstream.features.registry import Registry
from millstream.flows.facts import FactLimits, Facts
from millstream.meter import Meter
from millstream.stream import Log, LogLimits, segment
from millstream.types import Fact

SOURCES = {
    one.name: one
    for one in (
        Source(name="prices", columns={"item": "text", "user": "text", "price": "number", "note": "text"}),
        Source(name="stock", topic="warehouse", columns={"item": "text", "left": "number"}),
        Source(name="outcomes", columns={"user": "text", "item": "text", "kind": "text"}),
        Source(name="people", topic="users", columns={"user": "text", "age": "text"}),
        Source(name="lately", topic="deltas", columns={"item": "text"}),
    )
}
GOOD = {"item": "i1", "price": 9.5, "event_time": NOW}


class Desk:
    def __init__(self, folder, limits=None):
        self.meter, self.log = Meter(), Log(folder, FakeClock(NOW), LogLimits())
        limits = limits or FactLimits(rows_max=3, text_bytes_max=64)
        self.facts = Facts(Registry({}, SOURCES), self.log.writer, FakeClock(NOW), self.meter, limits, 4096)

    def write(self, source, *rows):
        async def run():
            return await self.facts.call(source, rows)

        return asyncio.run(run())

    def logged(self, topic="prices"):
        return records(self.log, topic)


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    yield made
    made.log.close()


def test_nothing_is_accepted_before_it_is_durable(desk, monkeypatch):
    disk, syncing, real = threading.Event(), threading.Event(), segment.sync

    def slow(fd):
        syncing.set()
        assert disk.wait(60)
        real(fd)

    async def run():
        monkeypatch.setattr(segment, "sync", slow)
        accepted = desk.facts.call("prices", [GOOD, GOOD])
        assert await asyncio.to_thread(syncing.wait, 10)
        assert not accepted.done() and desk.meter.sum("millstream_facts_total") == 0
        disk.set()
        assert await accepted == 2

    asyncio.run(run())
    assert desk.meter.sum("millstream_facts_total") == 2


def test_rows_stand_in_the_topic_of_their_source_in_the_order_in_which_they_were_sent(desk):
    async def run():
        calls = [desk.facts.call("stock", [{"item": "i", "left": 3 * n + k} for k in range(3)]) for n in range(50)]
        assert await asyncio.gather(*calls) == [3] * 50

    asyncio.run(run())
    assert [one.values["left"] for one in desk.logged("warehouse")] == list(range(150))
    assert desk.logged() == []


def test_a_time_that_is_left_out_is_now_and_what_is_null_stays_missing(desk):
    rows = [{"item": "i", "price": None}, {"item": "i", "event_time": 0}, {"item": "i", "event_time": 5.0}]
    assert desk.write("prices", *rows) == 3
    assert desk.logged() == [
        Fact(event_time=NOW, values={"item": "i", "price": None}),
        Fact(event_time=NOW, values={"item": "i"}),
        Fact(event_time=5.0, values={"item": "i"}),
    ]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"item": "i", "prize": 1.0}, r"no column 'prize'; it has item, user, price, note, and event_time"),
        ({"item": "i", "prize": None}, "no column 'prize'"),
        ({"item": "i", "arrival": 5.0}, "arrival is stamped here"),
        ({"item": 5.0}, r"rows\[1\].item is a column of text, got '5.0'"),
        ({"item": "i", "price": "9.5"}, r"rows\[1\].price is a column of numbers, got '9.5'"),
        ({"item": "i", "price": True}, "a column of numbers, got 'True'"),
        ({"item": "i", "price": float("nan")}, "no finite number"),
        ({"item": "i", "price": float("-inf")}, "no finite number"),
        ({"item": "é" * 33}, "66 bytes of text, 64 are allowed"),
        ({"item": "\ud800"}, "UTF-8"),
        ({"item": "i", "event_time": NOW + 86_402}, "ahead of this server's clock"),
        ({"item": "i", "event_time": NOW * 1000}, "send unix seconds"),
        ({"item": "i", "event_time": float("nan")}, "is no time"),
        ({"item": "i", "event_time": float("inf")}, "is no time"),
        ({"item": "i", "event_time": -1.0}, "is no time"),
        ({"item": "i", "event_time": "today"}, "'today' is no time"),
        ({"item": "i", "event_time": ""}, "'' is no time"),
        ({"item": "i", "event_time": True}, "True is no time"),
        ({"event_time": NOW}, "says nothing; send some of item"),
        ({"item": "", "price": None}, "says nothing"),
    ],
)
def test_what_features_cannot_take_is_refused_with_words_and_nothing_of_its_call_is_kept(desk, bad, words):
    with pytest.raises(BadInput, match=words):
        desk.write("prices", GOOD, bad)
    assert desk.logged() == []


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("none", NotFound, "no source 'none'; those that are written here: prices, stock"),
        ("warehouse", NotFound, "no source 'warehouse'"),  # a topic is no name
        ("outcomes", BadInput, "POST /v1/outcomes writes it"),
        ("people", BadInput, "source people reads topic users, which is not written here"),
        ("lately", BadInput, "this service writes it itself"),
    ],
)
def test_sources_that_are_not_written_here_are_refused(desk, source, error, words):
    with pytest.raises(error, match=words):
        desk.write(source, {"item": "i"})
    assert desk.log.topics() == ["prices", "warehouse"]


def test_too_much_for_one_request_is_told_to_split(desk):
    with pytest.raises(TooLarge, match="4 rows in one request, at most 3"):
        desk.write("prices", *[GOOD] * 4)
    wide = Desk(desk.log.root.parent / "wide", FactLimits(text_bytes_max=5000))
    with pytest.raises(TooLarge, match="at most 4096 are taken at once"):
        wide.write("prices", GOOD, {"item": "i", "note": "x" * 4097})
    assert wide.logged() == []
    wide.log.close()


def test_a_full_disk_refuses_facts_and_takes_them_again_when_there_is_room(desk, monkeypatch):
    with full_disk(monkeypatch, desk.log.root / "prices"), pytest.raises(Full):
        desk.write("prices", GOOD, GOOD)
    assert desk.write("prices", GOOD) == 1
    assert len(desk.logged()) == desk.meter.sum("millstream_facts_total") == 1


def test_what_is_personal_does_not_reach_a_file(desk, tmp_path):
    desk.write("prices", {"user": "jane.doe@example.org", "note": "call jane.doe@example.org"})
    values = desk.logged()[0].values
    assert values["note"] == "call [EMAIL]" and values["user"].startswith("[EMAIL#")
    desk.log.close()
    assert b"jane.doe" not in bytes_of(tmp_path)
