"""Drift of features, from reads of serving under a fake time: what is planted is found, and nothing else is."""

import numpy as np
import pytest

from millstream.types import FeaturesRead
from millstream.watch.monitor import Logged
from millstream.watch.monitors.drift import TOLD, WINDOW_S, Columns, Drift
from millstream.watch.monitors.reference import CELLS_MAX, Hour, rows_max
from millstream.watch.reading import Key

DAY, HOUR = 86400.0, 3600.0
MORNING = 1_700_006_400.0 // DAY * DAY + 9 * HOUR
NAMES = ("steady", "skewed", "rare", "gappy", "word", "flat")
COLUMNS = Columns("h1", NAMES, frozenset({"word"}))


def read(values, at, hash="h1", name="users"):
    return Logged(
        "features_read",
        at,
        FeaturesRead(
            features=name, hash=hash, at=int(at * 1e6), as_of=int(at * 1e6),
            keys={"user": [f"u{n}" for n in range(len(values))]}, values=np.asarray(values, "<f8").tobytes(),
        ),
    )  # fmt: skip


class World:
    """Reads two a second; looks every 20 s."""

    def __init__(self, monitor, seed=0):
        self.monitor, self.random, self.at = monitor, np.random.default_rng(seed), MORNING
        self.most = {}

    def rows(self, n):
        random = self.random
        tide = 0.3 * np.sin(2 * np.pi * self.at / DAY)
        gappy = np.where(random.random(n) < 0.1, np.nan, random.normal(size=n))
        word = random.choice(np.arange(1.0, 31.0), n, p=np.arange(30, 0, -1) / 465)
        columns = (random.normal(tide, 1.0, n), random.lognormal(0, 1, n), random.random(n) < 0.003, gappy, word)
        return np.column_stack([*columns, np.full(n, 7.0)])

    def go(self, seconds, fault=lambda rows, random: None, until=lambda read: False, hash="h1"):
        """Seconds until a reading is as wanted, None: never."""
        begun = self.at
        while self.at < begun + seconds:
            for _ in range(40):
                self.at += 0.5
                rows = self.rows(1)
                fault(rows, self.random)
                self.monitor.observe(read(rows, self.at, hash))
            found = self.monitor.readings(self.at)
            for key, value in found.items():
                self.most[key] = max(value, self.most.get(key, 0.0))
            if until(found):
                return self.at - begun
        return None


def key(quantity, feature, against=""):
    return Key.of(quantity, {"set": "users", "feature": feature, "against": against})


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The file with what two hours of a morning looked like."""
    folder = tmp_path_factory.mktemp("drift")
    world = World(Drift({"users": COLUMNS}, folder))
    world.go(2 * HOUR + 620)
    return (folder / "drift").read_bytes()


@pytest.fixture
def known(seen, tmp_path):
    """A folder with that file."""
    (tmp_path / "drift").write_bytes(seen)
    return tmp_path


def next_day(known, seed=1, minutes=21):
    world = World(Drift({"users": COLUMNS}, known), seed)
    world.at += DAY + HOUR
    world.go(60 * minutes)
    return world


def test_a_day_like_the_day_before_reads_nothing(known):
    world = next_day(known, minutes=50)
    assert world.most[key("feature_shift", "steady", "day")] == 0.0
    assert len(world.most) > 15 and max(world.most.values()) < 0.05
    assert world.most[key("feature_dead", "flat")] == world.most[key("feature_dead", "rare")] == 0.0


def planted(column, value):
    def fault(rows, random):
        rows[:, NAMES.index(column)] = value

    return fault


def moved(rows, random):
    rows[:, 0] += 0.2


def news(rows, random):
    rows[:, 4] = np.where(random.random(len(rows)) < 0.5, random.integers(100, 120, len(rows)), rows[:, 4])


@pytest.mark.parametrize(
    ("fault", "wanted", "above", "minutes"),
    [
        (planted("skewed", 0.0), key("feature_dead", "skewed"), 0.5, 4),
        (planted("gappy", np.nan), key("feature_dead", "gappy"), 0.5, 4),
        (planted("word", 0.0), key("feature_dead", "word"), 0.5, 4),  # a token of 0 is a text that is missing
        (planted("gappy", np.nan), key("feature_nulls_more", "gappy", "day"), 0.1, 4),
        (moved, key("feature_shift", "steady", "day"), 0.08, 25),
        (planted("skewed", 1.0), key("feature_psi", "skewed", "day"), 0.2, 25),
        (news, key("feature_new_values", "word", "day"), 0.2, 25),
    ],
)
def test_what_is_planted_is_found_in_time(known, fault, wanted, above, minutes):
    world = next_day(known, minutes=4)
    took = world.go(60 * minutes, fault, lambda found: found.get(wanted, 0.0) > above)
    assert took is not None
    others = {one: value for one, value in world.most.items() if one.get("feature") != wanted.get("feature")}
    assert max(others.values()) < 0.05


def test_without_the_file_it_knows_nothing_of_yesterday_and_goes_on_from_the_hours_it_saw(known):
    world = World(Drift({"users": COLUMNS}))
    world.at += DAY + HOUR
    world.go(600)
    assert world.most == {}
    world.go(HOUR)
    world.go(300, planted("skewed", 0.0))
    assert world.most[key("feature_dead", "skewed")] == 1.0
    assert key("feature_nulls_more", "gappy", "hours") in world.most


@pytest.mark.parametrize("damage", [b"", b"\x81", None])
def test_a_file_that_cannot_be_read_is_said_and_left(seen, tmp_path, caplog, damage):
    (tmp_path / "drift").write_bytes(seen[: len(seen) // 2] if damage is None else damage)
    monitor = Drift({"users": COLUMNS}, tmp_path)
    assert "not known" in caplog.text and monitor.readings(MORNING) == {}


def test_a_set_that_is_defined_anew_begins_anew_and_stragglers_do_not_count(known):
    renamed = Columns("h2", ("other", "names"))
    monitor = Drift({"users": renamed}, known)
    at = MORNING + DAY + HOUR
    for number in range(200):
        monitor.observe(read([[1.0, 2.0]], at + number, "h2"))
        monitor.observe(read(np.ones((1, 6)), at + number, "h1"))  # a server not yet replaced
    assert not any(one.get("feature") in NAMES for one in monitor.readings(at + 200))
    monitor.observe(read([[1.0, 2.0]], at + 201, "h2"))
    with pytest.raises(ValueError, match="6 values, and 1 rows of 2"):
        monitor.observe(read(np.ones((1, 6)), at + 202, "h2"))


def test_an_empty_read_and_one_of_nothing_but_missing_values_are_no_harm():
    world = World(Drift({"users": COLUMNS}))
    world.go(HOUR + 700, planted("gappy", np.nan))
    world.monitor.observe(read(np.zeros((0, 6)), world.at))
    world.go(60, lambda rows, random: rows.fill(np.nan))
    assert world.monitor.readings(world.at)[key("feature_dead", "gappy")] == 0.0  # it never was otherwise


def test_a_set_that_nobody_declared_is_known_by_the_numbers_of_its_columns():
    world = World(Drift({}))
    world.go(HOUR + 700)
    world.go(240, planted("skewed", 0.0))
    assert world.most[key("feature_dead", "1")] == 1.0


def test_a_model_that_is_made_anew_begins_another_pinned_day(known):
    made = {}
    world = World(Drift({"users": COLUMNS}, known, lambda: made))
    world.at += 2 * DAY + HOUR
    world.go(1300)
    assert key("feature_shift", "steady", "pinned") in world.most
    made["h1"] = world.at
    world.at += HOUR
    world.go(60)
    assert not any(one.get("against") == "pinned" for one in world.monitor.readings(world.at))


def test_what_is_not_read_any_more_is_not_told():
    world = World(Drift({"users": COLUMNS}))
    world.go(HOUR + 900)
    assert world.monitor.readings(world.at)
    for look in range(40):
        found = world.monitor.readings(world.at + WINDOW_S + 20.0 * look)
    assert found == {}


def test_memory_is_bounded_by_columns_and_wide_sets_tell_the_worst():
    assert rows_max(20) == 4096 and rows_max(4096) * 4096 <= CELLS_MAX and rows_max(10**6) == 16
    wide = Columns("w", tuple(f"c{n}" for n in range(300)))
    monitor, random, at = Drift({"users": wide}), np.random.default_rng(0), MORNING
    for number in range(8000):
        at += 0.5
        monitor.observe(read(random.normal(size=(1, 300)) if number < 7600 else np.zeros((1, 300)), at, "w"))
    found = monitor.readings(at)
    assert len(found) == TOLD and set(found.values()) == {1.0}


def test_a_sample_of_an_hour_is_a_fair_one():
    random, hour = np.random.default_rng(2), Hour(5, 1)
    for number in range(2000):
        hour.add(np.full((10, 1), number), number // 34, random)
    assert hour.seen == 20_000 and len(hour.rows) == 4096
    assert abs(hour.rows.mean() - 999.5) < 4 * 577 / np.sqrt(4096)
    again = Hour.back(hour.kept(), 1)
    assert (again.rows == hour.rows).all() and (again.blocks == hour.blocks).all() and again.seen == hour.seen
    with pytest.raises(ValueError):
        Hour.back(hour.kept(), 2)
