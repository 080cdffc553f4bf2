"""What waits to be told, and what is told once more."""

import asyncio

import pytest

from millstream import errors
from millstream.flows.speech.outbox import RING_BYTES, WAITING_MAX, Outbox
from millstream.spoken import Metrics, Segment, SpeakerTold, Word


def segment(box, ident="1", state="partial", text="hello"):
    return Segment(
        seq=box.number(), id=ident, rev=1, state=state, start=0, end=1, words=[Word(text=text, start=0, end=1)]
    )


def metrics(box):
    return Metrics(seq=box.number(), rtf=0, queue_ms=0, first_token_ms=0)


def waiting(box):
    async def run():
        box.close()
        return [told async for told in box.messages()]

    return asyncio.run(run())


def test_a_partial_gives_way_to_what_its_segment_reads_next_and_to_nothing_else():
    box = Outbox()
    box.put([segment(box, text="a"), segment(box, "2"), metrics(box)])
    box.put([segment(box, text="b"), metrics(box)])
    box.put([segment(box, state="final", text="c"), SpeakerTold(seq=box.number(), op="new", id="S1")])
    found = waiting(box)
    assert [getattr(one, "text", type(one).__name__) for one in found] == ["hello", "Metrics", "c", "SpeakerTold"]
    assert [one.seq for one in found] == sorted(one.seq for one in found)
    assert box.dropped == 3


def test_what_was_not_acknowledged_is_told_once_more_and_partials_are_not():
    box = Outbox()
    told = [segment(box, str(n), state) for n in range(3) for state in ("partial", "final")]
    box.keep(told)
    box.acknowledged(told[1].seq)
    again = Outbox(box.next, box.lost, box.ring)
    again.replay(told[3].seq)
    assert waiting(again) == [told[5]]


def test_what_is_remembered_is_bounded_and_who_missed_it_is_told_so():
    box, text = Outbox(), "x" * 10_000
    for n in range(2 * RING_BYTES // 10_000):
        box.keep([segment(box, str(n), "final", text)])
    assert sum(len(message) for _, message in box.ring) <= RING_BYTES
    assert box.lost == box.ring[0][0] - 1
    with pytest.raises(errors.Conflict):
        box.replay(box.lost - 1)
    box.replay(box.lost)


def test_before_too_much_waits_the_session_does():
    async def run():
        box = Outbox()
        box.put(SpeakerTold(seq=box.number(), op="new", id="S1") for _ in range(WAITING_MAX))
        room = asyncio.ensure_future(box.room())
        await asyncio.sleep(0)
        stood = not room.done()
        await anext(box.messages())
        await asyncio.wait_for(room, 1)
        return stood

    assert asyncio.run(run())
