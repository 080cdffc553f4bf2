"""Rows in a real server: the contract, one round trip a request, and what ranking gets when the server is gone."""

import itertools
import threading
import time

import numpy as np
import pytest
from check_rows import CHECKS, SECOND, T, keys, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_server import Server

from millstream import errors
from millstream.clock import FakeClock
from millstream.store import away
from millstream.store import redis as redis_rows
from millstream.store.away import PAUSE_S, PAUSE_S_MAX, SETTLED_S, Steady
from millstream.store.redis import RedisRows
from millstream.store.rows import Found, RowFile, RowStore

WIDTH = 12
ALL = keys(*range(1, 41))
SLACK_S = 0.4  # of a machine that does other things too; a client that is waited for takes a second or more
_numbers = itertools.count()


def values(*numbers):
    return rows(*numbers, width=WIDTH)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


@pytest.fixture
def server(tmp_path):
    """One that a test may kill."""
    server = Server(tmp_path).start()
    yield server
    server.kill()


@pytest.fixture
def kept():
    """Closes what a test made."""
    made = []
    yield lambda one: made.append(one) or one
    for one in made:
        one.close()


@pytest.fixture
def rowed(kept, server):
    """Rows 1 to 40 are in the server, as of T. The store that put them."""
    store = kept(RedisRows(server.url, "ranker:user", WIDTH))
    fill(store, 1)
    return store


def fill(store, value):
    store.put(ALL, values(*[value] * len(ALL)), T + value * SECOND)
    store.vouch(T + value * SECOND)


def steady(kept, server, clock, **more):
    return kept(Steady(kept(RedisRows(server.url, "ranker:user", WIDTH)), clock=clock, **{"timeout_s": 5.0} | more))


def is_all(found, value):
    return found.rows.tolist() == values(*[value] * len(found.rows)).tolist() and (
        found.written.tolist() == [T + value * SECOND] * len(found.rows)
    )


def is_missing(found):
    return not found.rows.any() and not found.written.any()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["redis", "steady redis", "file", "steady file"])
def test_it_is_a_row_store(check, kind, lasting, kept, tmp_path):
    def make(width):
        name = f"{next(_numbers)}"
        if "file" in kind:
            store = kept(RowFile.create(tmp_path / name, width, "x"))
        else:
            store = kept(RedisRows(lasting.url, f"{name}:user", width))
        return kept(Steady(store, timeout_s=30.0)) if "steady" in kind else store

    check(make)


def test_types_say_so(rowed, server, kept):
    held: list[RowStore] = [rowed, steady(kept, server, FakeClock())]
    assert [one.width for one in held] == [WIDTH] * 2


def test_a_get_is_one_command_with_what_was_vouched_for(rowed, server, kept):
    other = kept(RedisRows(server.url, "ranker:user", WIDTH))
    other.get(ALL)
    asked = server.client()
    asked.config_resetstat()
    assert is_all(other.get(ALL), 1) and other.vouched() == T + SECOND
    told = asked.info("commandstats")
    assert told["cmdstat_mget"]["calls"] == 1 and not [name for name in told if name in ("cmdstat_get", "cmdstat_ping")]


def test_the_vouched_time_is_asked_for_before_the_first_get(rowed, server, kept):
    other = kept(RedisRows(server.url, "ranker:user", WIDTH))
    assert other.vouched() == T + SECOND
    rowed.vouch(T + 5 * SECOND)
    assert other.vouched() == T + SECOND, "known until the next get"
    other.get(keys())
    assert other.vouched() == T + 5 * SECOND


def test_more_keys_than_a_command_takes_are_one_round_trip(rowed, monkeypatch):
    monkeypatch.setattr(redis_rows, "ASK_MAX", 7)
    rowed.vouch(T + 9)
    assert is_all(rowed.get(ALL), 1) and rowed.vouched() == T + 9


def test_keys_and_bytes_are_as_written_down(rowed, server):
    value = server.client().get("millstream:ranker:user:0000000000000028")
    assert value == (T + SECOND).to_bytes(8, "little") + values(1).tobytes()
    assert server.client().get("millstream:ranker:user:vouched") == (T + SECOND).to_bytes(8, "little")
    assert server.client().dbsize() == len(ALL) + 1


def test_rows_expire_in_the_server_and_what_was_vouched_for_does_not(server, kept):
    store = kept(RedisRows(server.url, "ranker:user", WIDTH, ttl_s=3600))
    fill(store, 1)
    client = server.client()
    assert 3590 < client.ttl("millstream:ranker:user:0000000000000001") <= 3600
    assert client.ttl("millstream:ranker:user:vouched") == -1
    client.pexpire("millstream:ranker:user:0000000000000001", 0)
    assert store.get(keys(1, 2)).written.tolist() == [0, T + SECOND]


def test_a_value_of_another_layout_is_missing_counted_and_said_once(rowed, server, caplog):
    client = server.client()
    client.set("millstream:ranker:user:0000000000000001", b"x" * (8 + WIDTH + 1))
    client.set("millstream:ranker:user:0000000000000002", b"")
    client.delete("millstream:ranker:user:0000000000000003")
    client.rpush("millstream:ranker:user:0000000000000003", "a list")
    for _ in "ab":
        found = rowed.get(keys(1, 2, 3, 4))
        assert is_missing(type(found)(found.rows[:3], found.written[:3])) and found.written[3] == T + SECOND
    assert rowed.odd == 4
    assert [record.message for record in caplog.records] == [
        f"{server.url} ranker:user: 2 values are no rows of 12 bytes; they are missing"
    ]


def test_a_store_that_is_gone_is_busy_and_says_what_is_lost(rowed, server):
    server.kill()
    with pytest.raises(errors.Busy, match=r"127.0.0.1:\d+ ranker:user does not answer .*have to be written again"):
        fill(rowed, 2)
    with pytest.raises(errors.Busy, match="what was vouched for was not written"):
        rowed.vouch(T)
    with pytest.raises(errors.Busy, match="not all rows were removed"):
        rowed.forget(ALL)
    with pytest.raises(errors.Busy, match="its rows were not read"):
        rowed.get(ALL)


def test_a_server_without_room_is_busy(rowed, server):
    server.client().config_set("maxmemory", "1")
    with pytest.raises(errors.Busy, match="maxmemory"):
        fill(rowed, 2)


def test_a_connection_that_the_server_closed_costs_nothing(rowed, server):
    server.kill()
    server.start()
    fill(rowed, 2)
    server.client().client_kill_filter(_type="normal")
    assert is_all(rowed.get(ALL), 2)


def test_a_server_that_refuses_us_is_misconfigured_and_ranking_goes_on(server, kept, caplog):
    server.client().config_set("requirepass", "secret")
    for url in (server.url, server.url.replace("//", "//:wrong@")):
        store = kept(RedisRows(url, "ranker:user", WIDTH))
        with pytest.raises(errors.Misconfigured, match="refuses us") as raised:
            fill(store, 1)
        assert "wrong@" not in str(raised.value)
        reading = kept(Steady(store, timeout_s=5.0))
        assert is_missing(reading.get(ALL)) and reading.failures == 1
    assert "refuses us" in caplog.text and "wrong@" not in caplog.text
    fill(kept(RedisRows(server.url.replace("//", "//:secret@"), "ranker:user", WIDTH)), 1)


@pytest.mark.parametrize(
    "url, label, width", [("http://x", "a", 8), ("redis://x", "", 8), ("redis://x", "a\n", 8), ("redis://x", "a", 0)]
)
def test_what_cannot_be_a_store_is_refused_when_it_is_made(url, label, width):
    with pytest.raises(errors.Misconfigured):
        RedisRows(url, label, width)


@pytest.mark.parametrize("package", ["redis", "hiredis"])
def test_a_package_that_is_missing_is_named_with_its_install_line(monkeypatch, package):
    real = redis_rows.importlib.import_module

    def without(name):
        if name == package:
            raise ImportError(f"no {name}")
        return real(name)

    monkeypatch.setattr(redis_rows.importlib, "import_module", without)
    with pytest.raises(errors.Missing, match=r"pip install 'millstream\[redis\]'"):
        RedisRows("redis://x", "a", 8)


def test_what_was_read_lately_is_served_while_the_server_is_gone(rowed, server, kept, caplog):
    clock = FakeClock()
    store = steady(kept, server, clock, stale_s_max=60.0)
    assert is_all(store.get(ALL), 1)
    server.kill()
    assert is_all(store.get(ALL[:20]), 1), "read a moment ago"
    assert (store.failures, store.stale, store.lost, store.down) == (1, 20, 0, True)
    assert is_missing(store.get(keys(77, 0))) and store.lost == 2, "never read"
    assert store.vouched() == T + SECOND
    clock.advance(60.0)
    assert is_all(store.get(ALL), 1) and store.failures == 2
    clock.advance(0.1)
    found = store.get(ALL)
    assert is_missing(found) and found.rows.shape == (40, WIDTH) and store.lost == 42
    assert store.vouched() == T + SECOND, "the age of features grows; it is not forgotten"
    server.start()
    fill(rowed, 2)
    clock.advance(PAUSE_S_MAX)
    assert is_all(store.get(ALL), 2) and store.vouched() == T + 2 * SECOND and not store.down
    clock.advance(SETTLED_S)
    store.get(ALL)
    said = [record.message for record in caplog.records if record.name == away.__name__]
    assert len(said) == 2, said
    assert "does not answer: redis://127.0.0.1" in said[0] and "answers again" in said[1]


def test_nobody_asks_during_a_pause_which_grows(rowed, server, kept):
    clock, asked = FakeClock(), []
    store = steady(kept, server, clock)
    server.kill()
    for _ in range(2000):
        before = store.failures
        store.get(ALL)
        if store.failures != before:
            asked.append(clock.monotonic())
        clock.advance(0.01)
    pauses = np.diff(asked)
    assert pauses[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2], abs=0.011)
    assert pauses[6:] == pytest.approx([PAUSE_S_MAX] * len(pauses[6:]), abs=0.011) and len(pauses) >= 8
    server.start()
    fill(rowed, 2)
    clock.advance(PAUSE_S_MAX)
    assert is_all(store.get(ALL), 2)
    server.kill()
    store.get(ALL)
    failures = store.failures
    clock.advance(PAUSE_S + 0.01)
    store.get(ALL)
    assert store.failures == failures + 1, "after an answer the pause is short again"


def test_a_server_that_comes_and_goes_is_told_of_once(rowed, server, kept, caplog):
    clock = FakeClock()
    store = steady(kept, server, clock)
    for _ in range(4):
        server.kill()
        store.get(ALL)
        server.start()
        clock.advance(PAUSE_S_MAX / 10)
        store.get(ALL)
        assert not store.down
    assert [record.message for record in caplog.records if "answer" in record.message] == [caplog.records[0].message]


def test_a_server_that_answers_nothing_takes_no_longer_than_the_timeout(rowed, server, kept):
    clock = FakeClock()
    store = steady(kept, server, clock, timeout_s=0.05)
    while store.down or not is_all(store.get(ALL), 1):  # the first may be slow on a busy machine
        clock.advance(PAUSE_S_MAX)
    server.freeze()
    took, failures = [], store.failures
    for _ in range(30):
        began = time.perf_counter()
        assert is_all(store.get(ALL), 1)
        took.append(time.perf_counter() - began)
        clock.advance(0.05)
    assert max(took) < 0.05 + SLACK_S
    assert 2 <= store.failures - failures <= 6 and np.median(took) < 0.02, "most do not ask"
    server.freeze(False)
    fill(rowed, 2)
    while store.down:
        clock.advance(PAUSE_S_MAX)
        store.get(ALL)
    assert is_all(store.get(ALL), 2)


def test_an_address_that_is_never_found_takes_no_longer_than_the_timeout(rowed, kept, monkeypatch):
    """No client bounds the resolving of names; here it hangs until the test is over."""
    over = threading.Event()
    store = kept(Steady(rowed, timeout_s=0.05, clock=FakeClock()))
    rowed.close()
    monkeypatch.setattr(redis_rows.importlib.import_module("socket"), "getaddrinfo", lambda *_, **__: over.wait(20))
    began = time.perf_counter()
    try:
        assert is_missing(store.get(ALL)) and store.failures == 1
        assert time.perf_counter() - began < 0.05 + SLACK_S
    finally:
        over.set()


def test_an_answer_that_comes_too_late_is_kept_for_the_next(rowed, kept):
    class Slow:
        width, come, gone = WIDTH, threading.Event(), threading.Event()

        def get(self, which):
            self.come.wait(20)
            return rowed.get(which)

        def vouched(self):
            self.gone.set()
            return rowed.vouched()

    slow, clock = Slow(), FakeClock()
    store = kept(Steady(slow, timeout_s=0.05, clock=clock))
    assert is_missing(store.get(ALL))
    slow.come.set()
    assert slow.gone.wait(20)
    store.close()  # nothing is asked any more, and what was asked is over when its thread is
    store._threads.shutdown(wait=True)
    assert is_all(store.get(ALL), 1) and store.failures == 1 and store.stale == len(ALL)


def test_one_asks_after_a_pause_and_the_others_go_on(kept):
    class Gone:
        width, asked, entered, over = WIDTH, 0, threading.Event(), threading.Event()

        def get(self, which):
            self.asked += 1
            self.entered.set()
            self.over.wait(20)
            raise errors.Busy("gone")

    gone, clock = Gone(), FakeClock()
    store = kept(Steady(gone, timeout_s=20.0, clock=clock))
    gone.over.set()
    store.get(ALL)
    gone.over.clear()
    gone.entered.clear()
    clock.advance(PAUSE_S)
    asking = threading.Thread(target=store.get, args=(ALL,))
    asking.start()
    assert gone.entered.wait(20)
    began = time.perf_counter()
    for _ in range(3):
        store.get(ALL)
    assert gone.asked == 2 and time.perf_counter() - began < SLACK_S
    gone.over.set()
    asking.join()
    assert store.failures == 2


def test_readers_go_on_while_the_server_is_killed_and_comes_back(rowed, server, kept):
    clock, stop, wrong, took = FakeClock(), threading.Event(), [], []
    store = steady(kept, server, clock, timeout_s=0.05)

    def read():
        while not stop.is_set():
            began = time.perf_counter()
            found = store.get(ALL)
            took.append(time.perf_counter() - began)
            for value in (1, 2):
                there = found.written == T + value * SECOND
                if (found.rows[there] != values(value)).any() or (found.rows[found.written == 0]).any():
                    wrong.append(found)
            clock.advance(0.02)

    def until(true):
        while not true():
            assert readers[0].is_alive()

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        until(lambda: is_all(store.get(ALL), 1))
        server.kill()
        until(lambda: store.down)
        before = clock.monotonic()
        until(lambda: clock.monotonic() > before + 61)
        until(lambda: store.lost > 0)
        server.start()
        fill(rowed, 2)
        until(lambda: is_all(store.get(ALL), 2))
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not wrong and max(took) < 0.05 + SLACK_S


def test_what_is_kept_has_a_bound_and_the_one_read_longest_ago_goes(rowed, server, kept):
    store = steady(kept, server, FakeClock(), rows_max=10)
    store.get(ALL[:10])
    store.get(ALL[:3])
    store.get(ALL[20:24])
    assert len(store._lately._slots) == 10
    server.kill()
    served = store.get(ALL).written != 0
    assert (np.flatnonzero(served) + 1).tolist() == [1, 2, 3, 8, 9, 10, 21, 22, 23, 24]
    assert is_all(store.get(ALL[[0, 21]]), 1)


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=15), max_size=15),
)
def test_what_is_kept_is_what_was_read_last_of_each_key(limit, window, turns):
    lately, held = away._Lately(limit, 1), {}
    lately._window = min(window, limit)
    for turn, read in enumerate(turns, 1):
        there = dict(read)  # whether the store has a row of it
        which = keys(*(key for key, _ in read))
        written = np.array([turn * there[key] for key, _ in read], np.int64)
        row = np.full((len(read), 1), turn, np.uint8) * (written != 0)[:, None]
        lately.note(which, Found(row, written), float(turn), turn)
        held |= {key: turn * here for key, here in there.items()}
        every = keys(*range(1, 21))
        found, vouched = lately.read(every, 0.0)
        served = np.flatnonzero(found.written)
        assert len(served) <= limit and vouched == min([found.written[at] for at in served], default=vouched)
        assert all(found.written[at] == found.rows[at, 0] == held[at + 1] for at in served)
        assert len(lately._free) + len(lately._slots) == limit
        if len(read) <= limit:
            assert (found.written == turn).sum() == sum(there.values()), "what was read just now is kept"


def test_more_rows_at_once_than_are_kept(rowed, server, kept):
    store = steady(kept, server, FakeClock(), rows_max=7)
    rowed.put(ALL, values(*ALL.tolist()), T)
    store.get(np.concatenate([ALL, ALL[:2]]))
    server.kill()
    found = store.get(ALL)
    there = np.flatnonzero(found.written)
    assert len(there) == 7 and found.rows[there].tolist() == values(*ALL[there].tolist()).tolist()


def test_what_is_gone_or_put_is_not_served_as_it_was(rowed, server, kept):
    store = steady(kept, server, FakeClock())
    store.get(ALL)
    rowed.forget(ALL[:5])
    store.get(ALL[:6])
    store.put(ALL[10:12], values(9, 9), T)
    store.get(ALL[20:30])
    server.kill()
    assert (store.get(ALL).written == 0).tolist() == [at in (*range(5), 10, 11) for at in range(40)]


def test_rows_are_as_old_as_what_was_vouched_for_when_they_were_read(rowed, server, kept):
    clock = FakeClock()
    store = steady(kept, server, clock)
    store.get(ALL[:5])
    clock.advance(1.0)
    rowed.vouch(T + 9 * SECOND)
    store.get(ALL[5:])
    assert store.vouched() == T + 9 * SECOND
    server.kill()
    store.get(ALL[5:9])
    assert store.vouched() == T + 9 * SECOND
    store.get(ALL)
    assert store.vouched() == T + SECOND


def test_one_that_never_answered_vouches_for_nothing(rowed, server, kept):
    server.kill()
    store = steady(kept, server, FakeClock())
    assert store.vouched() == 0 and store.failures == 1
    with pytest.raises(errors.Busy):
        store.put(ALL, values(*range(40)), T)
    with pytest.raises(errors.Busy):
        store.vouch(T)


def test_bounds_that_are_none_are_refused(rowed):
    for more in ({"timeout_s": 0}, {"rows_max": 0}, {"threads": 0}, {"stale_s_max": -1}):
        with pytest.raises(errors.Misconfigured, match="take more than 0"):
            Steady(rowed, **more)
