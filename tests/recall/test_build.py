"""The builder: from the log to indexes, again after a crash, and without whom it must forget."""

import numpy as np
import pytest

from millstream import errors
from millstream.clock import FakeClock
from millstream.guard.pii import Redacted
from millstream.meter import Meter
from millstream.recall import build as building
from millstream.recall import liked as reading
from millstream.recall.build import Builder, build
from millstream.recall.cooccur import Positives
from millstream.recall.index import Index, Indexes
from millstream.recall.liked import Gathered, Liked
from millstream.recall.settings import BuildSettings, FactorSettings
from millstream.stream.event import encode
from millstream.stream.log import Log
from millstream.stream.writer import Writer
from millstream.types import Merge, Outcome, Served

KINDS = {"like": 4.0}
SETTINGS = BuildSettings(every_s=60.0, least_events=10, factors=FactorSettings(width=4, turns=5))


class Traffic:
    """Requests and what came of them, as serving writes them."""

    def __init__(self, folder, clock: FakeClock) -> None:
        self.log = Log(folder, clock)
        self.clock, self.count = clock, 0
        self.writers: dict[tuple[str, int], Writer] = {}

    def write(self, topic: str, value: Redacted, partition: int = 0) -> None:
        if (topic, partition) not in self.writers:
            self.writers[topic, partition] = self.log.writer(topic, partition)
        self.writers[topic, partition].append(b"key", value)

    def serve(self, user: str, items: list[str], partition: int = 0) -> str:
        self.count += 1
        request = f"r{self.count}"
        event = Served(
            request=request, model="m", version="1", policy=1, arm="live", user=user, candidates=items,
            event_time=self.clock.now(), tokens=b"x" * 40,
        )  # fmt: skip
        self.write("served", encode(event), partition)
        return request

    def say(self, request: str, item: str, kind: str = "like", value: float = 5.0) -> None:
        event = Outcome(request=request, item=item, kind=kind, value=value, event_time=self.clock.now())
        self.write("outcomes", encode(event))

    def like(self, user: str, item: str) -> None:
        self.say(self.serve(user, [item]), item)

    def merge(self, visitor: str, user: str) -> None:
        self.write("identities", encode(Merge(visitor=visitor, user=user)))


@pytest.fixture
def traffic(tmp_path):
    made = Traffic(tmp_path / "log", FakeClock())
    yield made
    made.log.close()


def follow(traffic: Traffic, **bounds: int) -> Liked:
    limits = {"positives_max": 1000, "requests_max": 1000} | bounds
    return Liked(traffic.log, Meter(), KINDS, **limits)


def pairs(gathered: Gathered) -> list[tuple[int, str]]:
    users, items, _ = gathered.positives
    return [(user, gathered.items[item]) for user, item in zip(users.tolist(), items.tolist(), strict=True)]


def drain(liked: Liked) -> None:
    while liked.step():
        pass


def test_what_counts_is_what_the_kinds_say(traffic):
    request = traffic.serve("ann", ["a", "b"])
    traffic.say(request, "a", "impression", 1.0)
    traffic.say(request, "a", value=3.0)
    traffic.say(request, "b", value=4.0)
    traffic.say("nobody asked", "b")
    traffic.write("outcomes", Redacted(b"no event"))
    liked = follow(traffic)
    drain(liked)
    assert pairs(liked.gathered()) == [(0, "b")]
    assert (liked.total, liked.lost) == (1, 1)
    assert liked.offsets["outcomes"] == {"0": 5}


def test_no_outcome_is_lost_however_the_topics_are_cut(traffic, monkeypatch):
    """Steps of a few events: outcomes are far ahead of the requests that they belong to."""
    monkeypatch.setattr(reading, "STEP", 7)
    wanted = []
    for at in range(200):
        traffic.clock.advance(1000.0)
        request = traffic.serve(f"u{at % 9}", [f"i{at}"], partition=at % 3)
        for _ in range(at % 3):
            traffic.serve("idle", ["x"], partition=at % 2)
        traffic.say(request, f"i{at}")
        wanted.append(f"i{at}")
    liked = follow(traffic, requests_max=100)
    drain(liked)
    assert [item for _, item in pairs(liked.gathered())] == wanted and not liked.lost
    assert len(liked._requests) == 100
    traffic.like("late", "z")
    drain(liked)
    assert len(pairs(liked.gathered())) == 201


def test_memory_stays_within_its_bounds(traffic):
    for at in range(100):
        traffic.like(f"u{at}", f"i{at}")
    liked = follow(traffic, positives_max=20, requests_max=1000)
    drain(liked)
    gathered = liked.gathered()
    kept = [item for _, item in pairs(gathered)]
    assert kept == [f"i{at}" for at in range(100 - len(kept), 100)] and 20 <= len(kept) < 25
    assert gathered.users == len(kept) and len(liked._users) == len(liked._items) == len(kept)


def test_a_visitor_is_the_user_they_turned_out_to_be(traffic):
    for user, item in (("v1", "a"), ("ann", "b"), ("v2", "c"), ("bob", "d")):
        traffic.like(user, item)
    traffic.merge("v1", "v2")
    traffic.merge("v2", "ann")
    liked = follow(traffic)
    drain(liked)
    found = {item: user for user, item in pairs(liked.gathered())}
    assert len(found) == 4 and liked.gathered().users == 2
    assert found["a"] == found["b"] == found["c"] != found["d"]


def test_a_ring_of_merges_crashes_nobody(traffic):
    for user, item in (("v1", "a"), ("v2", "c"), ("bob", "d")):
        traffic.like(user, item)
    traffic.merge("v1", "v2")
    traffic.merge("v2", "v1")
    liked = follow(traffic)
    drain(liked)
    assert len(pairs(liked.gathered())) == 3 and liked.gathered().users == 2, "they are one, as in histories"


def test_what_nobody_liked_is_of_no_person(traffic):
    for user, item in (("", "a"), ("", "b"), ("ann", "c")):
        traffic.like(user, item)
    liked = follow(traffic)
    drain(liked)
    assert pairs(liked.gathered()) == [(0, "c")] and (liked.total, liked.lost) == (1, 2)


def test_it_says_when_it_has_read_what_somebody_wants_forgotten(traffic, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "STEP", 7)
    crowd(traffic)
    one = builder(traffic, tmp_path / "recall")
    cut = {"served": {0: 40}, "outcomes": {0: 40}, "users": {0: 9}}
    assert one.reached({"users": {0: 9}}) and not one.reached(cut)
    one.step()
    assert not one.reached(cut)
    settle(one)
    assert one.reached(cut) and one.reached({"served": {0: 50, 2: 1}}), "more than there is cannot be read"
    one.close()


def test_the_forgotten_are_left_out(traffic):
    for user, item in (("ann", "a"), ("bob", "b"), ("ann", "c"), ("eve", "b")):
        traffic.like(user, item)
    liked = follow(traffic)
    drain(liked)
    assert liked.forget(lambda user: user == "ann") == 1 and liked.forget(lambda user: user == "ann") == 0
    assert pairs(liked.gathered()) == [(0, "b"), (1, "b")] and liked.gathered().items == ["b"]
    traffic.like("cid", "c")
    drain(liked)
    assert len(pairs(liked.gathered())) == 3


def test_a_build_is_a_function_of_what_it_is_given():
    random = np.random.default_rng(0)
    positives = Positives(
        random.integers(0, 50, 2000).astype(np.int32), random.integers(0, 80, 2000).astype(np.int32),
        np.sort(random.random(2000)),
    )  # fmt: skip
    gathered = Gathered(positives, [str(row) for row in range(80)], 50)
    one, other = build(gathered, SETTINGS), build(gathered, SETTINGS)
    np.testing.assert_array_equal(one.model.items, other.model.items)
    np.testing.assert_array_equal(one.neighbours.scores, other.neighbours.scores)
    nothing = build(Gathered(Positives(*(np.empty(0, kind) for kind in ("i4", "i4", "f8"))), [], 0), SETTINGS)
    assert nothing.items == [] and not len(nothing.neighbours.scores)


def crowd(traffic: Traffic, first: int = 0) -> None:
    for at in range(first, first + 40):
        traffic.like(f"u{at % 8}", f"i{2 * (at % 7) + at % 2}")


def builder(traffic: Traffic, folder, settings: BuildSettings = SETTINGS) -> Builder:
    return Builder(traffic.log, settings, traffic.clock, Meter(), folder, KINDS)


def settle(one: Builder) -> None:
    while one.step():
        pass
    one.wait()


def test_an_index_is_built_when_it_is_due_and_there_is_something_new(traffic, tmp_path):
    root = tmp_path / "recall"
    crowd(traffic)
    one = builder(traffic, root)
    settle(one)
    first = Indexes(root).newest()
    assert (first.number, first.about.positives, first.about.users) == (1, 40, 8)
    assert first.about.offsets["outcomes"] == {"0": 40} and first.about.newest == traffic.clock.now()
    crowd(traffic)
    settle(one)
    assert Indexes(root).newest().number == 1  # not due
    traffic.clock.advance(61.0)
    settle(one)
    assert Indexes(root).newest().about.positives == 80
    traffic.clock.advance(61.0)
    traffic.like("u1", "i1")
    settle(one)
    assert Indexes(root).newest().number == 2  # one positive is not worth it
    one.close()


def test_the_first_index_waits_until_the_log_is_read(traffic, tmp_path, monkeypatch):
    for room in (reading, building):
        monkeypatch.setattr(room, "STEP", 7)
    crowd(traffic)
    one = builder(traffic, tmp_path / "recall")
    settle(one)
    assert Index.open(tmp_path / "recall" / "1").about.positives == 40
    one.close()


def test_who_comes_after_a_crash_builds_anew_and_begins_from_the_factors_before(traffic, tmp_path):
    root = tmp_path / "recall"
    crowd(traffic)
    one = builder(traffic, root)
    settle(one)
    one.close()
    (root / ".2.part").mkdir()
    (root / ".2.part" / "names.npy").write_bytes(b"half")
    traffic.like("new", "born since")
    still = BuildSettings(
        every_s=60.0, least_events=10, turns_again=1, factors=FactorSettings(width=4, turns=5, steps=1)
    )
    two = builder(traffic, root, still)
    settle(two)
    two.close()
    was, found = Index.open(root / "1"), Indexes(root).newest()
    assert found.number == 2 and found.about.positives == 41 and not (root / ".2.part").exists()
    rows = {name: at for _, names in found.names() for at, name in enumerate(names)}
    mine = np.array([rows[name] for _, names in was.names() for name in names])
    a, b = was.contents.model.items, found.contents.model.items[mine]
    alike = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert alike.min() > 0.9  # a start from chance would turn them anywhere


@pytest.mark.parametrize("error", [errors.Full("no room"), ValueError("no room, by a bug")])
def test_a_build_that_fails_is_counted_and_tried_again(traffic, tmp_path, monkeypatch, caplog, error):
    root = tmp_path / "recall"
    crowd(traffic)
    one = builder(traffic, root)

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(building, "write", full)
        settle(one)
    assert "no room" in caplog.text and Indexes(root).newest() is None and one._failed.value == 1
    traffic.clock.advance(61.0)
    settle(one)
    assert Indexes(root).newest().about.positives == 40 and one._made.value == 1
    one.close()


def test_whoever_is_forgotten_is_in_no_index_that_comes(traffic, tmp_path):
    root = tmp_path / "recall"
    crowd(traffic)
    traffic.like("only me", "mine alone")
    one = builder(traffic, root)
    settle(one)
    assert "mine alone" in [name for _, names in Indexes(root).newest().names() for name in names]
    assert one.forget(lambda user: user == "only me") == 1
    settle(one)
    found = Indexes(root).newest()
    assert found.number == 2 and found.about.users == 8
    assert "mine alone" not in [name for _, names in found.names() for name in names]
    one.close()
