"""Hand-made books: the audit finds what is lost and doubled, and calls nothing lost that is only on its way."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.clock import FakeClock
from millstream.errors import BadInput
from millstream.stream import Join, JoinSettings, Log, Operation, Task, encode
from millstream.stream.audit import Acknowledged, audit, read_ledger
from millstream.stream.operator import Step
from millstream.types import Example, Outcome, Served, SetAside

WINDOW = 30.0


def key(number: int, kind: str = "impression") -> str:
    return f"r{number}/i/{kind}"


def outcome(number: int, kind: str = "impression", event_time: float = 0.0, **fields) -> Outcome:
    return Outcome(request=f"r{number}", item="i", kind=kind, event_time=event_time, **fields)


def example(number: int, *keys: str) -> Example:
    return Example(
        request=f"r{number}", item="i", model="m", version="1", tokens=b"", score=0.0, label=1.0, weight=1.0,
        event_time=0.0, arrival=0.0, wait_s=0.0, outcomes=list(keys or (key(number),)),
    )  # fmt: skip


def aside(number: int, cause: str, kind: str = "impression") -> SetAside:
    return SetAside(outcome=key(number, kind), cause=cause, request=f"r{number}", item="i", event_time=0.0)


class Books:
    """Topics as a join would have left them; `read`: how many outcomes it has read (all, unless said)."""

    def __init__(self, folder):
        self.log = Log(folder, FakeClock())
        self.outcomes, self.examples = self.log.writer("outcomes"), self.log.writer("examples")
        self.ledger = []

    def told(self, *outcomes):
        for one in outcomes:
            self.outcomes.append(b"", encode(one))

    def acknowledged(self, *outcomes):
        self.told(*outcomes)
        self.ledger += [Acknowledged(one.key(), one.event_time) for one in outcomes]

    def made(self, *events, read=None):
        step = Step(1, 0.0, 0.0, {"served": {}, "outcomes": {0: self.outcomes.end if read is None else read}})
        self.examples.append_frame([(b"", encode(e)) for e in events], meta=msgspec.msgpack.encode(step))

    def balance(self):
        return audit(self.log, self.ledger, WINDOW)


@pytest.fixture
def books(tmp_path):
    made = Books(tmp_path)
    yield made
    made.log.close()


def late(event_time=1000.0) -> Outcome:
    """Moves time on, past every window of these books."""
    return Outcome(kind="watermark", event_time=event_time)


def test_books_that_balance(books):
    books.acknowledged(outcome(1), outcome(1, "like"), outcome(2), outcome(3))
    books.told(late())
    books.made(example(1, key(1), key(1, "like")), example(2), aside(3, "unknown_request"))
    found = books.balance()
    assert found.balanced
    assert (found.acknowledged, found.learnt, found.set_aside, found.waiting, found.examples) == (4, 3, 1, 0, 2)
    assert found.causes == {"unknown_request": 1} and found.lost_first == []


def test_what_has_no_place_after_its_window_is_lost(books):
    books.acknowledged(outcome(1), outcome(2))
    books.told(late())
    books.made(example(1))
    found = books.balance()
    assert (found.lost, found.lost_first, found.not_logged, found.balanced) == (1, [key(2)], 0, False)


def test_what_never_reached_the_log_is_lost_and_said(books):
    books.ledger.append(Acknowledged(key(1), 0.0))
    found = books.balance()
    assert (found.lost, found.not_logged) == (1, 1)


def test_an_open_window_waits(books):
    books.acknowledged(outcome(1, event_time=100.0), outcome(2, event_time=129.0))
    books.made(read=2)
    assert (books.balance().waiting, books.balance().lost) == (2, 0)
    books.told(late(130.0))
    books.made()
    assert (books.balance().waiting, books.balance().lost_first) == (1, [key(1)])


def test_a_click_waits_as_long_as_its_later_impression(books):
    books.acknowledged(outcome(1, "click", 0.0), outcome(1, "impression", 20.0))
    books.told(late(40.0))
    books.made()
    assert (books.balance().waiting, books.balance().lost) == (2, 0)
    books.told(late(50.0))
    books.made()
    assert books.balance().lost == 2


def test_what_comes_after_its_window_waits_until_time_moves(books):
    books.acknowledged(outcome(1, event_time=500.0), outcome(2, event_time=5.0))
    books.made(read=2)
    assert (books.balance().waiting, books.balance().lost) == (2, 0)
    books.told(late(501.0))
    books.made()
    assert (books.balance().waiting, books.balance().lost_first) == (1, [key(2)])


def test_what_the_join_has_not_read_yet_is_waiting_and_moves_no_time(books):
    books.acknowledged(outcome(1, event_time=0.0))
    books.made(example(1))
    books.acknowledged(outcome(2, event_time=1.0), outcome(3, event_time=5000.0))
    books.made(read=1)
    found = books.balance()
    assert (found.learnt, found.waiting, found.lost) == (1, 2, 0)
    books.made(read=2)
    found = books.balance()
    assert (found.waiting, found.lost) == (2, 0), "time moves with what was read alone"
    books.made(read=3)
    found = books.balance()
    assert (found.waiting, found.lost_first) == (1, [key(2)])


def test_before_the_first_step_everything_waits(books):
    books.acknowledged(outcome(1), outcome(2, event_time=500.0))
    assert (books.balance().waiting, books.balance().lost) == (2, 0)


def test_one_item_learnt_twice_is_duplicated(books):
    books.acknowledged(outcome(1))
    books.made(example(1), example(1, "another"))
    assert books.balance().duplicated == 1


def test_one_outcome_in_two_examples_is_duplicated(books):
    books.acknowledged(outcome(1), outcome(2))
    books.made(example(1), example(2, key(2), key(1)))
    assert books.balance().duplicated == 1


def test_learnt_and_set_aside_is_duplicated(books):
    books.acknowledged(outcome(1))
    books.made(example(1), aside(1, "late"))
    found = books.balance()
    assert (found.duplicated, found.learnt, found.set_aside) == (1, 1, 0)


def test_set_aside_twice_is_duplicated(books):
    books.acknowledged(outcome(1))
    books.made(aside(1, "late"), aside(1, "late"))
    assert books.balance().duplicated == 1


@pytest.mark.parametrize("cause", ["duplicate", "unknown_request"])
def test_a_retry_is_set_aside_beside_the_first_and_is_no_duplicate(books, cause):
    books.acknowledged(outcome(1))
    books.told(outcome(1), late())
    books.made(example(1), aside(1, cause))
    found = books.balance()
    assert found.balanced and (found.learnt, found.set_aside, found.causes) == (1, 0, {})


def test_a_retry_of_one_that_waits_leaves_it_waiting_and_may_not_hide_its_loss(books):
    books.acknowledged(outcome(1, event_time=5.0))
    books.told(outcome(1, event_time=5.0))
    books.made(aside(1, "duplicate"))
    assert (books.balance().waiting, books.balance().lost) == (1, 0)
    books.told(late())
    books.made()
    assert books.balance().lost_first == [key(1)]


def test_a_second_impression_with_an_id_of_its_own_is_set_aside_once(books):
    books.acknowledged(outcome(1), outcome(1, id="again"))
    again = SetAside(outcome="again", cause="duplicate", request="r1", item="i", event_time=0.0)
    books.told(late())
    books.made(example(1), again)
    found = books.balance()
    assert found.balanced and (found.learnt, found.set_aside, found.causes) == (1, 1, {"duplicate": 1})


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["impression", "like", "click"]), st.integers(0, 120)), max_size=25
    ),
    st.integers(1, 7),
    st.integers(0, 4),
)
def test_the_join_never_makes_the_books_look_wrong(tmp_path_factory, told, batch, steps):
    """Whatever clients send and wherever the join stands, each acknowledged outcome is in one place."""
    folder = tmp_path_factory.mktemp("join")
    with Log(folder, FakeClock(10_000.0)) as log:
        served, outcomes = log.writer("served"), log.writer("outcomes")
        for number in range(4):
            event = Served(
                request=f"r{number}", model="m", version="1", policy=0, arm="live", user="u", candidates=["i"],
                event_time=0.0, tokens=bytes(4),
            )  # fmt: skip
            served.append(b"", encode(event))
        ledger = {}
        for number, kind, time in told:
            one = outcome(number, kind, float(time))
            outcomes.append(b"", encode(one))
            ledger.setdefault(one.key(), Acknowledged(one.key(), one.event_time))
        join = Join(JoinSettings(tasks={"like": Task(window_s=WINDOW)}, keep_s=60.0, idle_s=3600.0))
        joining = Operation(join, log, Join.inputs, "examples", folder / "s", FakeClock(10_000.0), records_max=batch)
        for _ in range(steps):
            joining.step()
        found = audit(log, ledger.values(), WINDOW)
        assert found.balanced, found
        assert found.learnt + found.set_aside + found.waiting == found.acknowledged == len(ledger)


def test_a_torn_last_line_is_what_a_killed_client_leaves(tmp_path):
    line = msgspec.json.encode(Acknowledged("a", 1.0))
    for torn in (b"", line[:7], line[:-1]):
        (tmp_path / "ledger").write_bytes(line + b"\n" + torn)
        assert list(read_ledger(tmp_path / "ledger")) == [Acknowledged("a", 1.0)]


@pytest.mark.parametrize("bad", [b"not json", b"{}", b'{"outcome": 3, "event_time": 1}', b'{"outcome": "a"'])
def test_a_broken_line_within_is_named(tmp_path, bad):
    line = msgspec.json.encode(Acknowledged("a", 1.0))
    (tmp_path / "ledger").write_bytes(line + b"\n" + bad + b"\n" + line + b"\n")
    with pytest.raises(BadInput, match=r"ledger line 2: .*event_time"):
        list(read_ledger(tmp_path / "ledger"))
