"""Outcomes: acknowledged when they are on the disk, in order, all of a call or none; refused with words."""

import asyncio
import threading

import pytest
from flow_house import NOW, bytes_of, full_disk, records

from millstream.clock import FakeClock
from millstream.errors import BadInput, Busy, Full
from millstream.flows.collect import Collect, CollectLimits
from millstream.meter import Meter
from millstream.stream import Log, LogLimits, segment
from millstream.types import Outcome


class Desk:
    def __init__(self, folder, **limits):
        self.meter, self.log = Meter(), Log(folder, FakeClock(NOW), LogLimits(**limits))
        self.collect = Collect(self.log.writer("outcomes"), FakeClock(NOW), self.meter, CollectLimits())

    def logged(self):
        return records(self.log, "outcomes")


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    yield made
    made.log.close()


def outcome(number=0, **fields) -> Outcome:
    return Outcome(**{"request": f"r{number}", "item": "i", "kind": "like", "event_time": NOW} | fields)


def test_nothing_is_acknowledged_before_it_is_durable(desk, monkeypatch):
    disk, syncing, real = threading.Event(), threading.Event(), segment.sync

    def slow(fd):
        syncing.set()
        assert disk.wait(60)
        real(fd)

    async def run():
        monkeypatch.setattr(segment, "sync", slow)
        accepted = desk.collect.call([outcome(1), outcome(2)])
        assert await asyncio.to_thread(syncing.wait, 10)
        await asyncio.sleep(0.05)
        assert not accepted.done() and desk.meter.sum("millstream_outcomes_total") == 0
        disk.set()
        assert await accepted == 2

    asyncio.run(run())
    assert desk.meter.sum("millstream_outcomes_total") == 2


def test_outcomes_stand_in_the_order_in_which_they_were_sent(desk):
    async def run():
        calls = [desk.collect.call([outcome(3 * n + k) for k in range(3)]) for n in range(100)]
        assert await asyncio.gather(*calls) == [3] * 100

    asyncio.run(run())
    assert [one.request for one in desk.logged()] == [f"r{n}" for n in range(300)]


def test_an_omitted_event_time_is_now_and_a_given_one_stays(desk):
    asyncio.run(_sent(desk, [outcome(event_time=0.0), outcome(event_time=5.0), outcome(event_time=NOW + 86_400)]))
    assert [one.event_time for one in desk.logged()] == [NOW, 5.0, NOW + 86_400]


async def _sent(desk, outcomes):
    return await desk.collect.call(outcomes)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"event_time": float("nan")}, "finite"),
        ({"event_time": float("inf")}, "finite"),
        ({"value": float("-inf")}, "finite"),
        ({"event_time": NOW + 86_402}, "ahead"),
        ({"event_time": NOW * 1000}, "unix seconds"),
        ({"event_time": -5.0}, "before 1970; send unix seconds"),
        ({"kind": ""}, "kind is empty"),
        ({"request": ""}, "request and item"),
        ({"item": ""}, "request and item"),
        ({"request": "x" * 513}, "request has 513 bytes"),
        ({"item": "é" * 257}, "item has 514 bytes"),
        ({"kind": "k" * 513}, "kind has 513"),
        ({"id": "k" * 513}, "id has 513"),
        ({"text": "x" * 4097}, "4097 characters"),
        ({"text": "\ud800"}, "UTF-8"),
        ({"item": "\ud800"}, "UTF-8"),
    ],
)
def test_what_cannot_be_used_is_refused_with_words_and_nothing_of_its_call_is_kept(desk, bad, words):
    with pytest.raises(BadInput, match=words):
        asyncio.run(_sent(desk, [outcome(1), outcome(2, **bad)]))
    assert desk.logged() == []


def test_the_longest_allowed_are_taken(desk):
    asyncio.run(_sent(desk, [outcome(item="x" * 512, text="x" * 4096, id="é" * 256)]))
    assert len(desk.logged()) == 1


def test_a_watermark_needs_no_item(desk):
    assert asyncio.run(_sent(desk, [Outcome(kind="watermark", event_time=NOW)])) == 1


def test_a_full_disk_refuses_outcomes_and_takes_them_again_when_there_is_room(desk, monkeypatch, caplog):
    async def run():
        with full_disk(monkeypatch, desk.log.root / "outcomes"):
            results = await asyncio.gather(
                desk.collect.call([outcome(1), outcome(2)]), desk.collect.call([outcome(3)]), return_exceptions=True
            )
            assert [type(one) for one in results] == [Full, Full]
        assert await desk.collect.call([outcome(4)]) == 1

    asyncio.run(run())
    assert [one.request for one in desk.logged()] == ["r4"]
    assert desk.meter.sum("millstream_outcomes_total") == 1
    assert "never retrieved" not in caplog.text


def test_more_than_may_wait_is_told_to_come_again(tmp_path):
    desk = Desk(tmp_path, frame_bytes_max=400)

    async def run():
        with pytest.raises(Busy):
            for number in range(100):
                desk.collect.call([outcome(number)])
        await asyncio.sleep(0.1)
        assert await desk.collect.call([outcome(1)]) == 1

    asyncio.run(run())
    desk.log.close()


def test_what_a_person_writes_is_redacted_before_it_reaches_a_file(desk, tmp_path):
    asyncio.run(_sent(desk, [outcome(text="write to jane.doe@example.org please")]))
    assert desk.logged()[0].text == "write to [EMAIL] please"
    desk.log.close()
    assert b"jane.doe" not in bytes_of(tmp_path)
