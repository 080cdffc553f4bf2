"""Histories: the newest of what each user did, in order of time, whatever came when; bounded; merged; forgotten."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shelves import QUICK, many

from millstream.recall.histories import Histories

KINDS = ("click", "buy")
USERS = ["a", "b", "c", "d"]


def event(chance: random.Random) -> tuple:
    drawn, user = chance.random(), chance.choice(USERS)
    if drawn < 0.05:
        return "merge", user, chance.choice(USERS)
    if drawn < 0.08:
        return "forget", user
    what = chance.choice(["add", "show", "block"])
    return what, user, chance.randrange(8), chance.choice(KINDS), chance.randrange(20)


EVENTS = many(event, 150)


class Plain:
    """The same in lists that are sorted again each time."""

    def __init__(self, most: int) -> None:
        self.most, self.lists, self.same = most, {}, {}

    def name(self, user):
        while user in self.same:
            user = self.same[user]
        return user

    def put(self, what, user, number, kind, time):
        kept = self.lists.setdefault((what, self.name(user)), [])
        again = any(n == number if what == "block" else (t, n, k) == (time, number, kind) for t, n, k in kept)
        if not again:
            kept.append((time, number, kind))
            kept.sort(key=lambda one: one[0])
            del kept[: -self.most]

    def merge(self, visitor, user):
        user = self.name(user)
        if visitor != user and self.same.get(visitor) != user:
            for what in ("add", "show", "block"):
                for time, number, kind in self.lists.pop((what, visitor), []):
                    self.put(what, user, number, kind, time)
            self.same[visitor] = user

    def forget(self, user):
        self.lists = {key: kept for key, kept in self.lists.items() if key[1] != user}
        self.same = {one: other for one, other in self.same.items() if user not in (one, other)}


def play(histories, plain, events):
    for event in events:
        match event:
            case ("add", user, number, kind, time):
                histories.add(user, number, kind, float(time))
                plain.put("add", user, number, kind, time)
            case ("show", user, number, _, time):
                histories.show(user, number, float(time))
                plain.put("show", user, number, "", time)
            case ("block", user, number, _, time):
                histories.block(user, number, float(time))
                plain.put("block", user, number, "", time)
            case ("merge", visitor, user):
                histories.merge(visitor, user)
                plain.merge(visitor, user)
            case ("forget", user):
                histories.forget(lambda one, user=user: one == user)
                plain.forget(user)


def check(histories, plain, kinds=KINDS):
    for user in USERS:
        name = plain.name(user)
        assert histories.name(user) == name
        done, shown = histories.of(user), histories.shown(user)
        said = [
            (time, number, kinds[kind])
            for time, number, kind in zip(done.times.tolist(), done.numbers.tolist(), done.kinds.tolist(), strict=True)
        ]
        assert said == plain.lists.get(("add", name), [])
        assert [
            (time, number, "") for time, number in zip(shown.times.tolist(), shown.numbers.tolist(), strict=True)
        ] == plain.lists.get(("show", name), [])
        assert histories.blocks(user).tolist() == [number for _, number, _ in plain.lists.get(("block", name), [])]


@QUICK
@given(EVENTS, st.sampled_from([1, 3, 4, 5, 9]))
def test_histories_are_the_newest_of_what_came_in_order_of_time(events, most):
    histories, plain = Histories(KINDS, most, 100, most, most), Plain(most)
    play(histories, plain, events)
    check(histories, plain)


@QUICK
@given(EVENTS, EVENTS)
def test_a_state_restored_goes_on_alike_also_when_kinds_change_places(events, more):
    histories, plain = Histories(KINDS, 5, 100, 5, 5), Plain(5)
    play(histories, plain, events)
    other = Histories(KINDS[::-1], 5, 100, 5, 5)
    other.add("somebody else", 1, "click", 1.0)
    other.restore(histories.state())
    check(other, plain, KINDS[::-1])
    play(other, plain, more)
    check(other, plain, KINDS[::-1])


def test_a_smaller_one_restores_the_newest_and_kinds_that_are_gone_go():
    histories = Histories(KINDS)
    for number in range(10):
        histories.add("a", number, KINDS[number % 2], float(number))
    histories.add("b", 1, "buy", 1.0)
    small = Histories(("buy",), history_max=2, users_max=1)
    small.restore(histories.state())
    assert small.count == 1 and small.of("b").numbers.tolist() == [1]
    small = Histories(("buy",), history_max=2)
    small.restore(histories.state())
    assert small.of("a").numbers.tolist() == [7, 9] and small.of("a").kinds.tolist() == [0, 0]
    with pytest.raises(KeyError):
        small.restore({})


def test_who_was_heard_of_longest_ago_goes_and_readers_keep_users():
    histories = Histories(KINDS, users_max=100)
    for number in range(100):
        histories.add(f"u{number}", number, "click", float(number))
    histories.of("u0")
    for number in range(100, 150):
        histories.add(f"u{number}", number, "click", float(number))
        assert histories.count <= 100
    assert histories.of("u0").numbers.tolist() == [0], "asked of since"
    assert not len(histories.of("u1").numbers) and histories.of("u149").numbers.tolist() == [149]
    assert all(histories.of(f"u{number}").numbers.tolist() == [number] for number in range(60, 150))


def test_memory_is_that_of_short_lists_for_short_lists():
    histories = Histories(KINDS, history_max=1000)
    for number in range(3000):
        histories.add(f"u{number}", number, "click", 1.0)
    taken = sum(one.times.nbytes for one in histories._done._classes)
    assert taken <= 2 * 3000 * 4 * 8
    for user in range(0, 3000, 2):
        histories.forget(lambda name, user=user: name == f"u{user}") if user < 20 else None
    histories.forget(lambda name: int(name[1:]) % 2 == 0)
    for number in range(1500):
        histories.add(f"v{number}", number, "click", 1.0)
    assert sum(one.times.nbytes for one in histories._done._classes) == taken, "rows are used again"


def test_a_forgotten_user_leaves_no_numbers_in_memory():
    histories = Histories(KINDS)
    histories.add("a", 4711, "click", 123.5)
    histories.merge("visitor", "a")
    assert histories.forget(lambda name: name == "a") == 1 and histories.name("visitor") == "visitor"
    assert not any((one.numbers == 4711).any() or (one.times == 123.5).any() for one in histories._done._classes)
    assert "a" not in histories._names and not histories._places and not histories._same


def test_merges_in_a_circle_end():
    histories = Histories(KINDS)
    for one, other in (("a", "b"), ("b", "a"), ("b", "c"), ("c", "a"), ("a", "a"), ("a", "c")):
        histories.merge(one, other)
    assert len({histories.name(user) for user in "abc"}) == 1
    histories.add("a", 5, "click", 1.0)
    assert [histories.of(user).numbers.tolist() for user in "abc"] == [[5]] * 3


def test_visitors_remembered_are_bounded():
    histories = Histories(KINDS, users_max=10)
    for number in range(50):
        histories.merge(f"v{number}", "u")
    assert histories.name("v49") == "u" and histories.name("v0") == "v0" and len(histories._same) == 10


def test_what_does_not_belong_is_refused():
    with pytest.raises(KeyError):
        Histories(KINDS).add("a", 1, "impression", 1.0)
    with pytest.raises(ValueError, match="twice"):
        Histories(("a", "a"))
    with pytest.raises(ValueError, match="at least 1"):
        Histories(KINDS, history_max=0)


def test_a_reader_sees_a_whole_history_while_it_moves(often):
    """Item and time of an event are one number here: a torn read would mix those of two."""
    histories, stop, torn = Histories(KINDS, history_max=20), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            for user in ("a", "b"):
                found = histories.of(user)
                if not np.array_equal(found.numbers, found.times) or (np.diff(found.times) <= 0).any():
                    torn.append(found)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(8000):
        histories.add("ab"[number % 2], number, "click", float(number))
    stop.set()
    reader.join()
    assert not torn
