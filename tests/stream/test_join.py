"""The join against an oracle written from its docstring, over random streams; steps and crashes change nothing."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise, product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.clock import FakeClock
from millstream.errors import Corrupt, Full
from millstream.stream import Join, JoinSettings, Log, Operation, Task, decode, encode
from millstream.stream.reader import Reader
from millstream.stream.tasks import Replayed
from millstream.types import Example, Outcome, Served, SetAside

WINDOW, KEEP = 30.0, 200.0
SETTINGS = JoinSettings(tasks={"like": Task(window_s=WINDOW)}, keep_s=KEEP, idle_s=1000.0)
LONG = JoinSettings(keep_s=1e5)
KINDS = ("impression", "like", "click", "nonsense")


def served(number: int, event_time: float, items: int = 3) -> Served:
    names = [f"i{n}" for n in range(items)]
    return Served(
        request=f"r{number}",
        model="ranker",
        version="1@0",
        policy=0,
        arm="live",
        user="u",
        candidates=names,
        event_time=event_time,
        tokens=np.arange(items * 2, dtype=np.uint32).tobytes(),
        scores=np.arange(items, dtype=np.float32).tobytes(),
    )


@st.composite
def histories(draw):
    """Requests at growing times, and outcomes for them: late, early, out of order, repeated, misdirected."""
    count = draw(st.integers(1, 6))
    times = sorted(draw(st.lists(st.integers(0, 300), min_size=count, max_size=count)))
    requests = [served(n, float(t)) for n, t in enumerate(times)]
    outcome = st.builds(
        lambda request, item, kind, value, time, id: Outcome(
            request=request, item=item, kind=kind, value=value, event_time=float(time), id=id
        ),
        st.sampled_from([r.request for r in requests] + ["stranger"]),
        st.sampled_from(["i0", "i1", "i9"]),
        st.sampled_from(KINDS),
        st.sampled_from([0.0, 1.0]),
        st.integers(0, 500),
        st.sampled_from(["", "", "", "a", "b"]),
    )
    return requests, draw(st.lists(outcome, max_size=25))


@dataclass
class Item:
    keys: list = field(default_factory=list)
    deadline: float = 0.0
    since: int = 0
    shown: bool = False
    positive: bool = False
    made: bool = False


def oracle(requests: list[Served], outcomes: list[Outcome]) -> dict[str, tuple[str, object]]:
    """Where each outcome key must end: ("example", (request, item, label)) or ("aside", cause). Brute force, all
    outcomes of one pair at a time, from the rules in the module's docstring."""
    marks = []
    for outcome in outcomes:
        marks.append(max(outcome.event_time, marks[-1] if marks else float("-inf")))

    def first(threshold: float, since: int) -> int:
        """The first outcome at or after `since` whose arrival moves time to `threshold` or beyond; len when none."""
        for n in range(max(since, bisect_left(marks, threshold)), len(marks)):
            if n == 0 or marks[n] > marks[n - 1]:
                return n
        return len(marks)

    ends: dict[str, tuple[str, object]] = {}
    known = {r.request: r for r in requests}
    gone = {r.request: first(r.event_time + KEEP, 0) for r in requests}
    # the oldest remembered request shields younger ones: they are forgotten in order of arrival
    for earlier, later in pairwise(requests):
        gone[later.request] = max(gone[later.request], gone[earlier.request])
    items: dict[tuple[str, str], Item] = {}
    seen: dict[str, set[str]] = {}

    def settle(pair: tuple[str, str], at: int) -> None:
        item = items.get(pair)
        if item is None or item.made or not item.keys:
            return
        closes, leaves = first(item.deadline, item.since), gone[pair[0]]
        if closes < at and closes <= leaves:
            for key in item.keys:
                ends[key] = ("example", (*pair, 0.0)) if item.shown else ("aside", "no_impression")
            items[pair] = Item(made=item.shown)
        elif leaves < at:
            for key in item.keys:
                ends[key] = ("aside", "expired")
            items[pair] = Item()

    for n, outcome in enumerate(outcomes):
        key, pair = f"{n}:{outcome.key()}", (outcome.request, outcome.item)
        if outcome.request not in known or gone[outcome.request] < n:
            for other in [p for p in items if p[0] == outcome.request]:
                settle(other, n)
            before = marks[n - 1] if n else float("-inf")
            ends[key] = ("aside", "expired" if outcome.event_time < before - KEEP else "unknown_request")
            continue
        settle(pair, n)
        item = items.setdefault(pair, Item())
        if outcome.key() in seen.setdefault(outcome.request, set()):
            ends[key] = ("aside", "duplicate")
        elif outcome.item not in known[outcome.request].candidates:
            ends[key] = ("aside", "not_a_candidate")
        elif outcome.kind == "nonsense":
            ends[key] = ("aside", "unknown_kind")
        elif item.made:
            ends[key] = ("aside", "late")
        elif outcome.kind == "impression" and item.shown:
            ends[key] = ("aside", "duplicate")
        else:
            seen[outcome.request].add(outcome.key())
            if not item.keys or outcome.kind == "impression":
                item.deadline, item.since = outcome.event_time + WINDOW, n
            item.shown |= outcome.kind == "impression"
            item.positive |= outcome.kind == "like" and outcome.value >= 1
            item.keys.append(key)
            if item.shown and item.positive:
                for one in item.keys:
                    ends[one] = ("example", (*pair, 1.0))
                items[pair] = Item(made=True)
    for pair in list(items):
        settle(pair, len(outcomes))
    return ends


def run(folder, requests, outcomes, steps=(), crash_after=(), finish=1):
    """The real thing on a real log. `steps`: how many outcomes are there at each step; after the steps numbered in
    `crash_after` the operation is dropped without a word and recovered."""
    clock = FakeClock(1e10)
    log = Log(folder, clock)
    to_served, to_outcomes = log.writer("served"), log.writer("outcomes")

    def operation():
        return Operation(Join(SETTINGS), log, Join.inputs, "examples", folder / "snapshot", clock, snapshot_steps=3)

    for one in requests:
        to_served.append(b"", encode(one))
    joining, at = operation(), 0
    for number, upto in enumerate([*sorted(steps), len(outcomes)]):
        for outcome in outcomes[at:upto]:
            to_outcomes.append(b"", encode(outcome))
        at = max(at, upto)
        joining.step()
        if number in crash_after:
            joining.abandon()
            joining = operation()
    for _ in range(finish):
        joining.step()
    reader = log.reader("examples")
    events = [decode(record.value) for record in reader.read(0, 0, 10_000)] if reader.end(0) else []
    log.close()
    return events


def where(events) -> list:
    """Every outcome key with the place it ended in, as a sorted list."""
    found = []
    for event in events:
        if isinstance(event, Example):
            found += [(key, "example", (event.request, event.item, event.label)) for key in event.outcomes]
        elif isinstance(event, SetAside):
            found.append((event.outcome, "aside", event.cause))
    return sorted(found, key=repr)


@settings(max_examples=150, deadline=None)
@given(histories())
def test_every_outcome_ends_where_the_rules_say(tmp_path_factory, history):
    requests, outcomes = history
    events = run(tmp_path_factory.mktemp("join"), requests, outcomes)
    expected = [(key.split(":", 1)[1], *end) for key, end in oracle(requests, outcomes).items()]
    assert where(events) == sorted(expected, key=repr)


@settings(max_examples=60, deadline=None)
@given(histories(), st.lists(st.integers(0, 25), max_size=6), st.sets(st.integers(0, 6)))
def test_neither_steps_nor_crashes_change_the_outputs(tmp_path_factory, history, steps, crashes):
    requests, outcomes = history
    steps = [min(step, len(outcomes)) for step in steps]
    whole = run(tmp_path_factory.mktemp("whole"), requests, outcomes)
    pieces = run(tmp_path_factory.mktemp("pieces"), requests, outcomes, steps, crashes)
    assert timeless(pieces) == timeless(whole)


def timeless(events):
    return [(type(e).__name__, e.request, e.item, getattr(e, "label", None), getattr(e, "cause", None)) for e in events]


@settings(max_examples=60, deadline=None)
@given(histories())
def test_after_the_last_watermark_each_key_is_in_exactly_one_place(tmp_path_factory, history):
    requests, outcomes = history
    end = Outcome(kind="watermark", event_time=1e6)
    events = run(tmp_path_factory.mktemp("end"), requests, [*outcomes, end])
    places = Counter((key, request) for key, request in _keys(events))
    sent = Counter((outcome.key(), outcome.request) for outcome in outcomes)
    assert places == sent
    pairs = Counter((e.request, e.item) for e in events if isinstance(e, Example))
    assert all(count == 1 for count in pairs.values())


def _keys(events):
    for event in events:
        if isinstance(event, Example):
            yield from ((key, event.request) for key in event.outcomes)
        else:
            yield event.outcome, event.request


def one(folder, *outcomes, requests=None):
    return run(folder, requests or [served(0, 0.0)], list(outcomes))


def test_a_positive_is_emitted_on_arrival_with_the_logged_row_and_score(tmp_path):
    (example,) = one(
        tmp_path,
        Outcome(request="r0", item="i1", kind="impression", event_time=1.0),
        Outcome(request="r0", item="i1", kind="like", event_time=2.0),
    )
    assert (example.label, example.score, example.wait_s) == (1.0, 1.0, 0.0)
    assert np.frombuffer(example.tokens, np.uint32).tolist() == [2, 3]
    assert example.outcomes == ["r0/i1/impression", "r0/i1/like"]


def test_a_person_may_change_their_mind_within_the_window(tmp_path):
    (example,) = one(
        tmp_path,
        Outcome(request="r0", item="i1", kind="impression", event_time=1.0),
        Outcome(request="r0", item="i1", kind="like", value=0.0, event_time=2.0),
        Outcome(request="r0", item="i1", kind="like", value=1.0, event_time=20.0, id="again"),
    )
    assert example.label == 1.0


def test_a_candidate_that_was_never_shown_never_becomes_an_example(tmp_path):
    events = one(
        tmp_path,
        Outcome(request="r0", item="i1", kind="impression", event_time=1.0),
        Outcome(kind="watermark", event_time=1e9),
    )
    assert [(event.item, event.label) for event in events] == [("i1", 0.0)]


def test_the_last_window_before_a_quiet_night_closes_too(tmp_path):
    clock = FakeClock(10_000.0)
    log = Log(tmp_path, clock)
    log.writer("served").append(b"", encode(served(0, 0.0)))
    log.writer("outcomes").append(b"", encode(Outcome(request="r0", item="i0", kind="impression", event_time=1.0)))
    settings = JoinSettings(idle_s=5.0)
    joining = Operation(Join(settings), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
    joining.step()
    clock.advance(34.9)
    joining.step()
    assert log.reader("examples").end(0) == 0
    clock.advance(0.2)
    joining.step()
    assert log.reader("examples").end(0) == 1


def test_what_is_remembered_is_bounded(tmp_path):
    join = Join(JoinSettings(requests_max=2))
    log = Log(tmp_path, FakeClock())
    writer = log.writer("served")
    for number in range(3):
        writer.append(b"", encode(served(number, float(number))))
    joining = Operation(join, log, Join.inputs, "examples", tmp_path / "snapshot", FakeClock())
    joining.step()
    assert join.needed("served") == {0: 1}


def backlog(folder, count, every, burst=1, items=("i1",), settings=LONG, **limits):
    """`count` served events, an impression and a like of `items` for `burst` in `every` of them, all there before the
    join runs."""
    clock = FakeClock(1e9)
    log = Log(folder, clock)
    to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
    for number in range(count):
        clock.advance(0.5)
        now = clock.now()
        to_served.append(b"", encode(served(number, now)))
        if number % every < burst:
            for kind, item in product(("impression", "like"), items):
                outcome = Outcome(request=f"r{number}", item=item, kind=kind, event_time=now)
                to_outcomes.append(b"", encode(outcome))
    joining = Operation(Join(settings), log, Join.inputs, "examples", folder / "snapshot", clock, **limits)
    while joining.step():
        pass
    return log, joining, clock


def test_no_outcome_overtakes_its_request_when_there_is_a_backlog(tmp_path):
    log, _, _ = backlog(tmp_path, 2000, every=10, records_max=50)
    events = [decode(record.value) for record in log.reader("examples").records(0)]
    assert [(type(event), event.label) for event in events] == [(Example, 1.0)] * 200


@pytest.mark.parametrize(("every", "burst"), [(1, 1), (1000, 100)], ids=["many", "after-pauses"])
def test_no_request_is_pushed_out_by_those_behind_it_in_a_backlog(tmp_path, every, burst):
    """Outcomes are several to a request, so their topic takes longer to read: to remember 800 of 4,000 must do."""
    few = JoinSettings(keep_s=60.0, requests_max=800)
    log, _, _ = backlog(tmp_path, 4000, every, burst, ("i0", "i1", "i2"), few, records_max=50)
    events = [decode(record.value) for record in log.reader("examples").records(0)]
    assert [(type(event), event.label) for event in events] == [(Example, 1.0)] * (3 * 4000 * burst // every)


def test_a_client_whose_clock_runs_ahead_does_not_close_the_windows_of_others(tmp_path):
    clock = FakeClock(1e6)
    log = Log(tmp_path, clock)
    requests = [served(number, 1e6) for number in range(2)]
    for request in requests:
        log.writer("served", int(request.request[1:])).append(b"", encode(request))
    to_outcomes = log.writer("outcomes")
    joining = Operation(Join(JoinSettings()), log, Join.inputs, "examples", tmp_path / "snapshot", clock)

    def tell(request, kind, event_time):
        to_outcomes.append(b"", encode(Outcome(request=request, item="i1", kind=kind, event_time=event_time)))
        joining.step()

    tell("r0", "impression", 1e6)
    tell("r1", "impression", 1e6 + 86_000)
    clock.advance(10.0)
    tell("r0", "like", 1e6 + 10)
    events = [decode(record.value) for record in log.reader("examples").records(0)]
    assert [(event.request, event.label) for event in events] == [("r0", 1.0)]


def test_a_wall_clock_that_jumps_closes_no_window(tmp_path):
    log, joining, clock = backlog(tmp_path, 1, every=1)
    joining.abandon()
    to_served, to_outcomes = log.writer("served", 1), log.writer("outcomes", 1)
    to_served.append(b"", encode(served(7, clock.now())))
    to_outcomes.append(b"", encode(Outcome(request="r7", item="i1", kind="impression", event_time=clock.now())))
    joining = Operation(Join(JoinSettings(keep_s=1e5)), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
    joining.step()
    clock.jump(3600.0)
    joining.step()
    to_outcomes.append(b"", encode(Outcome(request="r7", item="i1", kind="like", event_time=clock.now() - 3590.0)))
    joining.step()
    labels = [decode(record.value).label for record in log.reader("examples").records(0)]
    assert labels == [1.0, 1.0]


def test_a_thousand_windows_that_close_at_once_do_not_make_one_frame(tmp_path, monkeypatch):
    monkeypatch.setattr("millstream.stream.join.CLOSED_MAX", 10)
    requests = [served(number, 0.0) for number in range(100)]
    shown = [Outcome(request=r.request, item="i1", kind="impression", event_time=1.0) for r in requests]
    end = Outcome(kind="watermark", event_time=100.0)
    whole = run(tmp_path / "whole", requests, [*shown, end], finish=20)
    assert [event.label for event in whole] == [0.0] * 100
    frames = list(Log(tmp_path / "whole", FakeClock()).reader("examples").frames(0))
    assert max(frame.count for frame in frames) == 10
    again = run(tmp_path / "again", requests, [*shown, end], steps=[100, 101], crash_after=[0, 1], finish=20)
    assert timeless(again) == timeless(whole)


def test_a_changed_window_applies_from_the_next_step_also_after_a_crash(tmp_path):
    log, joining, clock = backlog(tmp_path, 1, every=1)
    to_outcomes, to_served = log.writer("outcomes", 1), log.writer("served", 1)
    start = clock.now()
    for number in (5, 6):
        to_served.append(b"", encode(served(number, start)))
        to_outcomes.append(b"", encode(Outcome(request=f"r{number}", item="i1", kind="impression", event_time=start)))
    clock.advance(31.0)
    to_outcomes.append(b"", encode(Outcome(kind="watermark", event_time=start + 31.0)))
    joining.step()
    joining.abandon()
    longer = JoinSettings(keep_s=1e5, tasks={"like": Task(window_s=100.0)})
    joining = Operation(Join(longer), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
    to_served.append(b"", encode(served(8, clock.now())))
    to_outcomes.append(b"", encode(Outcome(request="r8", item="i1", kind="impression", event_time=clock.now())))
    clock.advance(50.0)
    to_outcomes.append(b"", encode(Outcome(kind="watermark", event_time=clock.now())))
    joining.step()
    made = [decode(record.value).request for record in log.reader("examples").records(0)]
    assert made == ["r0", "r5", "r6"]


@pytest.fixture
def lived(tmp_path, monkeypatch):
    """A life without a snapshot, begun by replaying all lives before: six impressions, one each 20 s. Of which requests
    there are examples then. `told`: whether frames say the settings."""
    clock, numbers = FakeClock(1e9), iter(range(100))
    monkeypatch.setattr(Operation, "save", lambda self: None)

    def life(window_s, told=True):
        how = JoinSettings(tasks={"like": Task(window_s=window_s)}, idle_s=1000.0)
        with Log(tmp_path, clock) as log:
            to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
            joining = Operation(Join(how), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
            joining._told = not told
            for number in [next(numbers) for _ in range(6)]:
                now = clock.now()
                to_served.append(b"", encode(served(number, now)))
                seen = Outcome(request=f"r{number}", item="i1", kind="impression", event_time=now)
                to_outcomes.append(b"", encode(seen))
                joining.step()
                clock.advance(20.0)
            return [decode(record.value).request for record in log.reader("examples").records(0)]

    return life


def test_a_lost_snapshot_and_changed_settings_go_together(lived):
    assert lived(30.0) == ["r0", "r1", "r2", "r3"]
    assert lived(100.0) == ["r0", "r1", "r2", "r3", "r4", "r5", "r6"]
    assert lived(10.0) == [f"r{number}" for number in range(17)]


def test_steps_that_do_not_say_their_settings_are_replayed_under_todays(lived):
    """As an earlier release wrote them. Where those were others, the error says what helps, and it does."""
    assert lived(30.0, told=False) == ["r0", "r1", "r2", "r3"]
    with pytest.raises(Corrupt, match="start once with those of that time"):
        lived(100.0)
    assert lived(30.0) == [f"r{number}" for number in range(10)]


def test_a_replay_reads_what_its_steps_read_and_says_that_it_takes_long(tmp_path, monkeypatch, caplog):
    class Slow(FakeClock):
        def monotonic(self):
            self._mono += 0.3
            return super().monotonic()

    clock, read = FakeClock(1e9), []
    log = Log(tmp_path, clock)
    to_served, to_outcomes = log.writer("served"), log.writer("outcomes")
    joining = Operation(Join(SETTINGS), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
    for number in range(50):
        to_served.append(b"", encode(served(number, clock.now())))
        seen = Outcome(request=f"r{number}", item="i1", kind="like", event_time=clock.now())
        to_outcomes.append(b"", encode(seen))
        joining.step()
    joining.abandon()

    def counted(self, *where):
        found = real(self, *where)
        read.append(len(found))
        return found

    real = Reader.read
    monkeypatch.setattr(Reader, "read", counted)
    with caplog.at_level("INFO", logger="millstream.stream"):
        Operation(Join(SETTINGS), log, Join.inputs, "examples", tmp_path / "snapshot", Slow(1e9)).abandon()
    assert sum(read) == 100, "each served event and each outcome once"
    assert [record.message for record in caplog.records] == ["examples: replaying 50 steps after the snapshot"]


def test_a_state_under_settings_that_are_refused_today_is_taken_up(tmp_path):
    """They were let in once: a window that outlives its request. Its steps are replayed as they were made."""
    log, joining, clock = backlog(tmp_path, 1, every=1)
    joining.close()
    then = msgspec.convert({"tasks": {"like": {"window_s": 100.0}}, "keep_s": 50.0}, Replayed)
    joining = Operation(Join(then), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
    start = clock.now()
    log.writer("served", 1).append(b"", encode(served(5, start)))
    to_outcomes = log.writer("outcomes", 1)
    to_outcomes.append(b"", encode(Outcome(request="r5", item="i1", kind="impression", event_time=start)))
    clock.advance(60.0)
    to_outcomes.append(b"", encode(Outcome(kind="watermark", event_time=start + 60.0)))
    joining.step()
    joining.abandon()
    joining = Operation(Join(SETTINGS), log, Join.inputs, "examples", tmp_path / "snapshot", clock)
    joining.step()
    events = [decode(record.value) for record in log.reader("examples").records(0)]
    assert [getattr(event, "cause", "learnt") for event in events] == ["learnt", "expired"]


def test_retention_keeps_what_the_snapshot_refers_to(tmp_path):
    log, joining, _ = backlog(tmp_path, 20, every=100)
    joining.save()
    assert log.committed("examples.operation", "served") == {0: 0}
    assert joining.operator.needed("served") == {0: 0}


def test_plain_inference_takes_no_place(tmp_path):
    join = Join(JoinSettings(requests_max=2))
    log = Log(tmp_path, FakeClock())
    writer = log.writer("served")
    writer.append(b"", encode(served(0, 0.0)))
    for number in range(1, 5):
        writer.append(b"", encode(served(number, 0.0, items=0)))
    Operation(join, log, Join.inputs, "examples", tmp_path / "snapshot", FakeClock()).step()
    assert join.needed("served") == {0: 0}


def test_a_start_on_a_full_disk_joins_all_the_same_when_there_is_room(tmp_path, monkeypatch):
    def no_room(path, data):
        raise Full("no space left on the disk (as the test wants it)")

    log = Log(tmp_path, FakeClock(1e6))
    with monkeypatch.context() as patch:
        patch.setattr("millstream.stream.operator.write_atomic", no_room)
        joining = Operation(Join(SETTINGS), log, Join.inputs, "examples", tmp_path / "snapshot", FakeClock(1e6))
    log.writer("served").append(b"", encode(served(0, 1.0)))
    assert joining.step() == 1
