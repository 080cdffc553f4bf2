"""What is known follows the log: whoever reads it at once, in pieces, or goes on from a saved state knows the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shelves import QUICK, scene

from millstream.clock import FakeClock
from millstream.guard.pii import Redacted
from millstream.meter import Meter
from millstream.recall import live as reading
from millstream.recall.catalogue import Catalogue, CatalogueSettings
from millstream.recall.filters import Filters, Rule
from millstream.recall.live import Live, LiveSettings
from millstream.recall.paths import Popular
from millstream.stream import Log, LogLimits, encode
from millstream.types import Entity, Merge, Outcome, Served

SETTINGS = LiveSettings(kinds={"click": 1.0, "rating": 4.0}, blocks=("hide",), segment="country")


@dataclass
class Shop:
    """A log, and those who read it."""

    log: Log
    clock: FakeClock
    meter: Meter = field(default_factory=Meter)

    def live(self, settings: LiveSettings = SETTINGS, items_max: int = 1000) -> Live:
        catalogue = Catalogue(CatalogueSettings(items_max=items_max))
        live = Live(self.log, catalogue, settings.histories(), self.meter, settings)
        live.filters = Filters(catalogue)  # type: ignore[attr-defined]
        live.listen(Popular(1000.0))
        return live

    def write(self, topic: str, *events, key: bytes = b"") -> None:
        writer = self.writers.get(topic) or self.writers.setdefault(topic, self.log.writer(topic))
        for event in events:
            writer.append(key, encode(event))

    writers: dict = field(default_factory=dict)

    def item(self, name: str, **attributes) -> None:
        self.write("items", Entity(id=name, attributes=attributes))

    def serve(self, request: str, user: str, *items: str) -> None:
        told = {"request": request, "model": "m", "version": "1", "policy": 0, "arm": "live", "user": user}
        self.write("served", Served(**told, candidates=list(items), event_time=self.clock.now()))

    def say(self, request: str, item: str, kind: str, value: float = 1.0, at: float = 0.0, id: str = "") -> None:
        self.write("outcomes", Outcome(request=request, item=item, kind=kind, value=value, event_time=at, id=id))


@pytest.fixture
def shop(tmp_path):
    clock = FakeClock(1000.0)
    with Log(tmp_path / "log", clock, LogLimits(segment_bytes=4096)) as log:
        yield Shop(log, clock)


def knows(live: Live) -> dict:
    """All of it, to compare."""
    catalogue, histories = live.catalogue, live.histories
    users = [f"u{one}" for one in range(5)] + [f"v{one}" for one in range(3)]
    return {
        "items": catalogue.names(np.arange(catalogue.count, dtype=np.int32)),
        "allowed": live.filters.allowed(Rule(region="de")).mask().tolist(),
        "counts": (catalogue.impressions.tolist(), catalogue.positives.tolist()),
        "done": [[part.tolist() for part in histories.of(user)] for user in users],
        "shown": [[part.tolist() for part in histories.shown(user)] for user in users],
        "blocks": [histories.blocks(user).tolist() for user in users],
        "attributes": [live.attributes(user) for user in users],
        "popular": [
            part.tolist()
            for segment in ("", "de")
            for part in live._listeners[0].recall(scene(live.filters.allowed(Rule()), segment=segment), 50)
        ],
    }


def test_what_is_told_and_done_is_known(shop):
    shop.item("a", title="A", tags=["x"])
    shop.item("b", regions=["de"])
    shop.write("users", Entity(id="u1", attributes={"country": "de", "age": 30}))
    shop.serve("r1", "u1", "a", "b")
    shop.clock.jump(5)
    for item in ("a", "b"):
        shop.say("r1", item, "impression", at=1001.0)
    shop.say("r1", "a", "click", at=1002.0)
    shop.say("r1", "b", "rating", 3.0)
    shop.say("r1", "b", "rating", 4.0, at=9e9, id="again")
    shop.say("r1", "a", "hide")
    shop.say("r1", "a", "dwell", 30.0)
    live = shop.live()
    while live.poll(1):
        pass
    history = live.histories.of("u1")
    assert live.catalogue.names(history.numbers) == ["a", "b"] and history.kinds.tolist() == [0, 1]
    assert history.times.tolist() == [1002.0, 1005.0], "a clock that runs ahead is held to the arrival"
    assert live.catalogue.impressions.tolist() == [1, 1] and live.catalogue.positives.tolist() == [1, 1]
    assert live.histories.blocks("u1").tolist() == [0] and live.histories.shown("u1").times.tolist() == [1001.0] * 2
    assert live.attributes("u1") == {"country": "de", "age": 30} and live.segment("u1") == "de"
    assert live.attributes("nobody") == {} and live.segment("nobody") == ""
    popular = live._listeners[0]
    assert popular.score(0, 1002.0, "de") == 1.0 and popular.score(1, 1005.0) == 1.0
    shop.item("a", deleted=1)
    shop.write("users", Entity(id="u1", attributes={}))
    assert live.poll() == 2 and live.poll() == 0
    assert live.filters.allowed(Rule()).numbers().tolist() == [] and live.attributes("u1") == {}


def test_outcomes_before_their_request_wait_and_those_too_many_are_counted(shop):
    live = shop.live(LiveSettings(kinds={"click": 1.0}, waiting_max=3))
    shop.item("a")
    for request in ("r1", "r2", "r3", "r4"):
        shop.say(request, "a", "click")
    live.poll()
    for request in ("r1", "r2", "r3", "r4"):
        shop.serve(request, f"u{request[1]}", "a")
    live.poll()
    assert [len(live.histories.of(f"u{one}").numbers) for one in range(1, 5)] == [0, 1, 1, 1]
    assert live.catalogue.positives.tolist() == [3] and live._waiting_count == 0
    assert shop.meter.sum("millstream_recall_skipped_total") == 1


def test_an_outcome_told_again_counts_once(shop, tmp_path):
    live = shop.live()
    shop.item("a")
    shop.serve("r1", "u1", "a")
    for _ in range(3):
        shop.say("r1", "a", "click")
        shop.say("r1", "a", "impression")
        live.poll()
    assert live.catalogue.positives.tolist() == [1] and live.catalogue.impressions.tolist() == [1]
    live.save(tmp_path / "state")
    again = shop.live()
    assert again.restore(tmp_path / "state")
    shop.say("r1", "a", "click")
    assert again.poll() == 1 and again.catalogue.positives.tolist() == [1]


def test_a_visitor_who_signs_in_has_one_history(shop):
    live = shop.live()
    for name in ("a", "b", "c"):
        shop.item(name)
    shop.write("users", Entity(id="u1", attributes={"country": "fr"}))
    shop.serve("r1", "v1", "a")
    shop.serve("r2", "u1", "b")
    shop.say("r1", "a", "click", at=10.0)
    shop.say("r2", "b", "click", at=20.0)
    live.poll()
    shop.write("identities", Merge(visitor="v1", user="u1"))
    shop.serve("r3", "v1", "c")
    shop.say("r3", "c", "click", at=30.0)
    live.poll()
    for name in ("v1", "u1"):
        assert live.catalogue.names(live.histories.of(name).numbers) == ["a", "b", "c"]
        assert live.attributes(name) == {"country": "fr"}
    assert live._listeners[0].score(2, 30.0, "fr") == 1.0


def test_what_cannot_be_used_is_skipped_and_counted(shop, caplog):
    live = shop.live(items_max=2)
    shop.item("a", embedding=[1.0, 2.0])
    shop.item("b", embedding=[1.0])
    shop.item("c")
    shop.item("d")
    shop.write("items", Outcome(kind="click"))  # of another topic
    shop.log.writer("users", 1).append(b"", Redacted(b"\xc1 no MessagePack"))
    shop.item("a", title="still read")
    shop.serve("r1", "u1", "a")
    shop.serve("r2", "", "a")
    shop.say("r1", "stranger", "click")
    live.poll()
    assert live.catalogue.title(0) == "still read" and live.catalogue.count == 2
    counted = {
        spec["labels"]["cause"]: shop.meter.counter("millstream_recall_skipped_total", "", spec["labels"]).value
        for spec in shop.meter._series.values()
        if spec["name"] == "millstream_recall_skipped_total"
    }
    assert counted == {"items_max": 2, "attribute": 1, "unknown_request": 0, "unknown_item": 1, "duplicate": 0}
    assert caplog.text.count("said once") == 1 and shop.meter.sum("millstream_log_unreadable_total") == 2


def test_without_a_saved_state_the_last_of_what_was_done_is_read(shop):
    shop.item("a")
    for number in range(50):
        shop.serve(f"r{number}", "u1", "a")
        shop.say(f"r{number}", "a", "click", at=100.0 + number)
    live = shop.live(LiveSettings(kinds={"click": 1.0}, backlog_max=10))
    live.poll()
    assert live.histories.of("u1").times.tolist() == [140.0 + number for number in range(10)]


@settings(QUICK, max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_the_latest_of_an_id_counts_whatever_partitions_it_is_in(tmp_path_factory, seed):
    """Each process writes a partition of its own, and who starts reads one after the other."""
    folder, chance, clock = tmp_path_factory.mktemp("shop"), random.Random(seed), FakeClock(1000.0)
    with Log(folder / "one", clock) as one, Log(folder / "several", clock) as several:
        follows, last = Shop(one, clock).live(), {}
        for at in range(60):
            clock.jump(1.0)
            topic, name = chance.choice(["items", "users"]), f"n{chance.randrange(6)}"
            last[topic, name] = at if topic == "users" or chance.random() < 0.7 else None
            told = {"title": str(at)} if last[topic, name] is not None else {"deleted": 1}
            for log, partition in ((one, 0), (several, chance.randrange(4))):
                kept = next((w for w in log._writers if w.folder == log.root / topic / str(partition)), None)
                writer = kept or log.writer(topic, partition)
                writer.append(b"", encode(Entity(id=name, attributes=told)))
            follows.poll()
        starts = Shop(several, clock).live()
        starts.catch_up()
        for topic, name in last:
            for live in (follows, starts):
                number, at = live.catalogue.number(name), last[topic, name]
                if topic == "users":
                    assert live.attributes(name) == {"title": str(at)}
                else:
                    assert live.catalogue.alive[number] == (at is not None) == live.filters.there(np.array([number]))
                    assert at is None or live.catalogue.title(number) == str(at)
        starts.save(folder / "state")
        again = Shop(several, clock).live()
        assert again.restore(folder / "state")
        assert [again._attributes[user] for user in starts._attributes] == list(starts._attributes.values())


def test_a_start_without_a_saved_state_loses_nothing_of_its_backlog(shop, monkeypatch):
    """However many more items there are than served requests, and of those than outcomes."""
    monkeypatch.setattr(reading, "STEP", 7)
    for number in range(60):
        shop.item(f"i{number}")
        shop.serve(f"r{number}", f"u{number % 5}", f"i{number}")
    for number in range(40, 60):
        shop.say(f"r{number}", f"i{number}", "click")
    bounds = {"waiting_max": 2, "requests_max": 4, "backlog_max": 30}
    live = shop.live(LiveSettings(kinds={"click": 1.0}, **bounds))
    assert live.catch_up() == 60 + 30 + 20
    assert live.catalogue.positives.tolist() == [0] * 40 + [1] * 20
    assert sum(len(live.histories.of(f"u{number}").numbers) for number in range(5)) == 20
    assert len(live._requests) == 4 and shop.meter.sum("millstream_recall_skipped_total") == 0


def test_who_is_behind_reads_what_outcomes_speak_of_first(shop):
    live = shop.live(LiveSettings(kinds={"click": 1.0}, waiting_max=1))
    for number in range(9):
        for _ in range(3):
            shop.item(f"i{number}")
        shop.serve(f"r{number}", "u1", f"i{number}")
        shop.say(f"r{number}", f"i{number}", "click")
    while live.poll(2):
        pass
    assert live.catalogue.positives.tolist() == [1] * 9
    assert shop.meter.sum("millstream_recall_skipped_total") == 0


def test_it_says_when_it_has_read_what_somebody_wants_forgotten(shop):
    live = shop.live()
    shop.item("a")
    for number in range(5):
        shop.serve(f"r{number}", "u1", "a")
    cut = {"items": {0: 1}, "served": {0: 4}, "pages": {0: 100}}
    assert live.reached({}) and live.reached({"pages": {0: 100}}) and not live.reached(cut)
    live.poll(2)
    assert not live.reached(cut)
    live.poll(2)
    assert live.reached(cut) and not live.reached(cut | {"served": {0: 5}})
    live.poll(2)
    assert live.reached(cut | {"served": {0: 99, 3: 7}}), "more than there is cannot be read"


def play(shop: Shop, chance: random.Random, steps: int) -> None:
    for _ in range(steps):
        shop.clock.jump(1.0)
        user = chance.choice(["u0", "u1", "u2", "u3", "v0", "v1"])
        item, request = f"i{chance.randrange(8)}", f"r{chance.randrange(12)}"
        match chance.randrange(7):
            case 0:
                told = {"tags": ["x", f"t{chance.randrange(3)}"], "stock": chance.randrange(3), "created": 5.5}
                shop.item(item, **(told if chance.random() < 0.9 else {"deleted": 1}))
            case 1:
                shop.write("users", Entity(id=user, attributes={"country": chance.choice(["de", "fr"])}))
            case 2:
                shop.serve(request, user, item)
            case 3 if chance.random() < 0.3:
                shop.write("identities", Merge(visitor=chance.choice(["v0", "v1"]), user="u1"))
            case _:
                kind = chance.choice(["impression", "click", "rating", "hide"])
                shop.say(request, item, kind, chance.choice([1.0, 5.0]), id=str(chance.randrange(10**6)))


@settings(QUICK, max_examples=15)
@given(seed=st.integers(0, 10**6), after=st.integers(0, 3))
def test_a_restart_from_a_saved_state_knows_what_one_who_never_stopped_knows(tmp_path_factory, seed, after):
    folder, chance = tmp_path_factory.mktemp("shop"), random.Random(seed)
    clock = FakeClock(1000.0)
    with Log(folder / "log", clock, LogLimits(segment_bytes=4096)) as log:
        shop = Shop(log, clock)
        stays, again = shop.live(), shop.live()
        for turn in range(5):
            play(shop, chance, 25)
            stays.poll()
            again.poll()
            if turn == after:
                again.save(folder / "state")
                again = shop.live()
                assert again.restore(folder / "state")
            assert knows(again) == knows(stays)


def test_catching_up_tells_filters_at_the_end(shop):
    for number in range(30):
        shop.item(f"i{number}", stock=number % 2)
    live = shop.live()
    assert live.catch_up() == 30 and live.filters.allowed(Rule()).count() == 15
    shop.item("i0", stock=5)
    live.poll()
    assert live.filters.allowed(Rule()).count() == 16


def test_a_state_that_is_damaged_or_of_other_settings_is_not_used(shop, tmp_path, caplog):
    play(shop, random.Random(3), 60)
    live = shop.live()
    live.poll()
    path = tmp_path / "recall" / "live.npz"
    assert not live.restore(path), "there is none yet"
    live.save(path)
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        fresh = shop.live()
        if not fresh.restore(path):
            assert fresh.catalogue.count == 0 == fresh.histories.count, "nothing half"
            assert fresh.poll() > 0 and fresh.catalogue.count == live.catalogue.count
        else:
            assert knows(fresh) == knows(live), f"a flip at {at} changed what is known"
    path.write_bytes(whole[: len(whole) // 2])
    assert not shop.live().restore(path) and "is not used" in caplog.text
    path.write_bytes(whole)
    with np.load(path) as file:
        parts = {name: file[name] for name in file.files}
    with path.open("wb") as file:
        np.savez(file, **parts | {"histories.done_times": np.zeros(1)})
    fresh = shop.live()
    assert not fresh.restore(path) and fresh.catalogue.count == 0, "the catalogue was there, the rest was not"
    assert fresh.poll() and knows(fresh) == knows(live)
    path.write_bytes(whole)
    for kinds, blocks in (({"click": 2.0, "rating": 4.0}, ("hide",)), (SETTINGS.kinds, ("hide", "block"))):
        caplog.clear()
        other = shop.live(LiveSettings(kinds=kinds, blocks=blocks, segment="country"))
        assert not other.restore(path) and "of other settings" in caplog.text
    assert shop.live().restore(path)


def test_forgotten_users_are_gone_from_memory_and_the_next_state(shop, tmp_path):
    shop.item("a")
    shop.write("users", Entity(id="u1", attributes={"country": "atlantis"}))
    shop.serve("r1", "u1", "a")
    shop.say("r1", "a", "click")
    live = shop.live()
    live.poll()
    assert live.forget(lambda user: user == "u1") == 1 and live.forget(lambda user: user == "u1") == 0
    assert live.attributes("u1") == {} and not len(live.histories.of("u1").numbers)
    live.save(tmp_path / "state")
    with np.load(tmp_path / "state") as file:
        assert not any(b"u1" in file[name].tobytes() for name in ("about", "histories.names"))
    shop.say("r1", "a", "impression")
    live.poll()
    assert live.histories.count == 0, "their request is nobody's"


def test_a_state_whose_half_is_taken_away_as_it_is_written_is_not_there(shop, tmp_path, monkeypatch):
    live, path, real = shop.live(), tmp_path / "live.npz", np.savez

    def taken_away(file, **arrays):
        real(file, **arrays)
        (part,) = tmp_path.glob(".*.npz.part")
        part.unlink()

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", taken_away)
        live.save(path)
    assert not path.exists()
    live.save(path)
    assert shop.live().restore(path)


def test_users_and_requests_remembered_are_bounded(shop):
    live = shop.live(LiveSettings(kinds={"click": 1.0}, users_max=5, requests_max=4, outcomes_max=3))
    shop.item("a")
    for number in range(20):
        shop.write("users", Entity(id=f"u{number}", attributes={"n": number}))
        shop.serve(f"r{number}", f"u{number}", "a")
        shop.say(f"r{number}", "a", "click")
        live.poll()
    assert (len(live._attributes), len(live._requests), len(live._lately)) == (5, 4, 3)
    assert live.histories.count == 5 and live.attributes("u19") == {"n": 19}
