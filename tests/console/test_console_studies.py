"""What the pages Learning, Features, Recommend, Experiments and Review are given, without a browser."""

import importlib
import json
import pkgutil
import re
import string
import sys

import msgspec
import numpy as np
import pytest

from millstream import config, errors
from millstream.app.console import features as console_features
from millstream.app.console import learning as console_learning
from millstream.app.console import lists as console_lists
from millstream.app.console import trials as console_trials
from millstream.app.console.learning import LearningWatch
from millstream.app.console.reviews import Reviewing
from millstream.app.console.tail import Tail
from millstream.app.installation import Installation, Settings
from millstream.clock import FakeClock
from millstream.console import pages
from millstream.console.studies import Seen
from millstream.learn.curate.teacher import interval
from millstream.meter import Meter
from millstream.models.policy import LEARNER, Policy
from millstream.stream import decode, encode
from millstream.types import Delta, Entity, Example, Listing, Slot

TOML = """
[learn]
model = "ranker"

[features]
user = [{ name = "id" }]
item = [{ name = "id" }]

[recommend]
model = "ranker"

[recommend.placements.home]
"""


def installation(folder, toml=TOML):
    (folder / "millstream.toml").write_text(toml)
    settings = config.read(folder / "millstream.toml", Settings)
    return Installation(folder, settings, FakeClock(1_000_000.0))


def example(number, score, label, **other):
    told = {
        "request": f"r{number}", "item": "i", "model": "ranker", "version": "1@0", "tokens": b"", "score": score,
        "label": label, "weight": 1.0, "event_time": 0.0, "arrival": 0.0, "wait_s": 0.0, "outcomes": [],
        "task": "like",
    }  # fmt: skip
    return Example(**told | other)


def test_every_text_is_there_in_both_languages_with_the_same_places_to_fill():
    found = 0
    for module in pkgutil.iter_modules(pages.__path__):
        words = importlib.import_module(f"millstream.console.pages.{module.name}").WORDS
        for key, both in words.items():
            assert len(both) == 2 and all(both), key
            fields = [sorted({name for _, name, _, _ in string.Formatter().parse(text) if name}) for text in both]
            assert fields[0] == fields[1], key
            found += 1
        assert f"{module.name}.title" in words
        assert any(re.search(r"[\u4e00-\u9fff]", chinese) for _, chinese in words.values())
    assert found > 150


def test_calibration_is_in_ten_groups_with_the_interval_of_wilson():
    """Ten groups of a hundred; of the last fifty are positive, whose interval any table has as 0.4038 to 0.5962."""
    scores = np.repeat(np.arange(10) / 10 + 0.05, 100)
    labels = np.tile(np.arange(100) < 50, 10).astype(float)
    bins = console_learning._calibration(np.column_stack([scores, labels, np.ones(1000)]))
    assert [one.score for one in bins] == pytest.approx(np.arange(10) / 10 + 0.05, abs=1e-4)
    assert all((one.rate, one.low, one.high) == (0.5, 0.40383, 0.59617) for one in bins)
    assert interval(0.0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))


def test_a_negative_counts_for_all_that_it_was_kept_of():
    judged = np.array([[0.2, 1.0, 1.0], *[[0.2, 0.0, 4.0]] * 9])
    one = console_learning._calibration(np.repeat(judged, 10, axis=0))[0]
    whole = console_learning._calibration(np.repeat(judged, 10, axis=0))
    assert sum(b.examples for b in whole) == 10 + 9 * 10 * 4
    assert one.examples >= 10 and sum(b.rate * b.examples for b in whole) == pytest.approx(10, abs=0.01)


def test_learning_follows_examples_and_pushes_and_takes_what_was_served_alone(tmp_path):
    with installation(tmp_path) as at:
        at.repository.put("ranker", *version())
        writer, deltas = at.log.writer("examples"), at.log.writer("deltas")
        kept = [example(n, n / 100, float(n >= 50)) for n in range(100)]
        others = [
            example(200, 0.0, 1.0, version="history"), example(201, 0.9, 0.0, model="other"),
            example(202, 0.9, 1.0, form="late"), example(203, 0.9, 0.0, task="buy"),
        ]  # fmt: skip
        for one in kept + others:
            writer.append(one.request.encode(), encode(one))
        watch = LearningWatch(at)
        now = watch.learning()
        assert (now.binned, now.positives, now.end) == (100, 0.5, 104) and len(now.bins) == 10
        assert [one.rate for one in now.bins] == [0.0] * 5 + [1.0] * 5
        delta = Delta(
            model="ranker", base="1", sequence=7, upto=104, slots=b"\0" * 12, weights=b"", arrivals=b"\0" * 16,
            checksum=0,
        )  # fmt: skip
        deltas.append(b"", encode(delta))
        assert not watch.learning().pushed, "a second has not passed"
        at.clock.advance(1.0)
        pushed = watch.learning().pushed
        assert [(one.sequence, one.examples, one.slots, one.base) for one in pushed] == [(7, 2, 3, "1")]
        assert watch.learning() == watch.learning(), "nothing is drawn anew where nothing changed"


def version():
    """A manifest and files of a version that nobody loads here."""
    from millstream.models.manifest import Manifest

    return Manifest(format="onnx", file="model.onnx"), {"model.onnx": b"x"}


def test_learning_is_paused_by_who_and_why_and_the_decision_stands_first(tmp_path):
    with installation(tmp_path) as at:
        assert LearningWatch(at).learning().state == ""
        at.repository.put("ranker", *version())
        watch = LearningWatch(at)
        assert watch.learning().state == "run"
        first = watch.learning().policy
        assert "paused" in watch.let_learn(False, first, "mia", "labels look odd")
        now = watch.learning()
        assert (now.state, now.who, now.why) == ("paused", "mia", "labels look odd")
        assert (now.decisions[0].what, now.decisions[0].who, now.decisions[0].gate) == ("paused", "mia", False)
        with pytest.raises(errors.Conflict, match="mia was faster"):
            watch.let_learn(True, first, "ann", "decided before mia")
        watch.let_learn(True, now.policy, "mia", "they were right")
        assert watch.learning().state == "run" and watch.learning().decisions[0].what == "resumed"


def test_decisions_are_what_changed_learning_and_name_the_gate():
    history = [
        Policy(version=1, live="1", who="millstream train", why="first"),
        Policy(version=2, live="2", who=LEARNER, why="base"),
        Policy(version=3, live="3", who=LEARNER, why="base"),
        Policy(version=4, live="3", learning="paused", who=LEARNER, why="gate: worse"),
        Policy(version=5, live="3", learning="paused", shadow=("1",), who="mia", why="compare"),
        Policy(version=6, live="3", learning="run", who=LEARNER, why="gate: right again"),
        Policy(version=7, live="1", pin="1", who="mia", why="back"),
    ]
    found = console_learning._decisions(history[::-1])
    assert [(one.what, one.gate) for one in found] == [
        ("pinned", False), ("resumed", True), ("paused", True), ("base", False), ("live", False),
    ]  # fmt: skip
    assert [one.version for one in found if one.what == "base"] == ["3"], "of bases in a row the last"


def test_a_tail_begins_near_the_end_and_leaps_when_it_is_left_behind(tmp_path):
    with installation(tmp_path) as at:
        writer = at.log.writer("items")

        def tell(first, end):
            for number in range(first, end):
                writer.append(b"", encode(Entity(id=str(number), attributes={})))

        tail = Tail(at.log, "items", 10)
        assert not list(tail.new(decode))
        tell(0, 30)
        assert [event.id for _, event in tail.new(decode)] == [str(n) for n in range(20, 30)]
        tell(30, 33)
        assert [event.id for _, event in tail.new(decode)] == ["30", "31", "32"]
        tell(33, 100)
        assert [event.id for _, event in tail.new(decode)] == [str(n) for n in range(90, 100)]


def test_features_are_those_that_roles_count_and_nothing_is_run_for_them(tmp_path):
    toml = TOML + '[feature_store]\ndefinitions = "definitions.py"\n'
    (tmp_path / "definitions.py").write_text("raise SystemExit('the definitions were run')\n")
    with installation(tmp_path, toml) as at:
        meter = Meter(tmp_path / "state" / "meters", "learn")
        meter.counter("millstream_feature_events_total", "", {"set": "ranker"}).add(7)
        one = {"set": "ranker", "feature": "clicks_7d"}
        meter.gauge("millstream_feature_missing_share", "", one).set(0.25)
        for q, value in (("0.1", 1.0), ("0.5", 2.0), ("0.9", 3.0)):
            meter.gauge("millstream_feature_quantile", "", one | {"q": q}).set(value)
        found = console_features.FeaturesWatch(at).features()
    assert [(s.name, s.events, s.age) for s in found.sets] == [("ranker", 7, None)] and found.skew.state == "never"
    column = found.sets[0].columns[0]
    assert (column.name, column.missing, column.low, column.middle, column.high, column.drift) == (
        "clicks_7d", 0.25, 1.0, 2.0, 3.0, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("out", "said", "state"),
    [("", "Traceback\nno such file", "failed"), ("{}", "", "failed"), ("not json", "why", "failed")],
)
def test_a_comparison_that_says_nothing_is_told_as_failed(out, said, state):
    found = console_features._read(out, said)
    assert found.state == state and not found.sound and found.said == said.strip()


def test_a_comparison_that_cannot_begin_is_told_and_may_be_asked_for_again(tmp_path, monkeypatch):
    with installation(tmp_path) as at:
        watch = console_features.FeaturesWatch(at)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no such program"))
        watch._compare()
        skew = watch.features().skew
        assert skew.state == "failed" and "cannot begin" in skew.said


def test_a_comparison_is_read_from_the_last_line():
    odd = {"features": "f", "column": "c", "keys": {"user": "u"}, "at": 0.0, "read": 1.0, "recomputed": None}
    said = {"sound": False, "reads": 3, "values": {"f": {"equal": 2, "code": 1}}, "odd": [odd]}
    found = console_features._read("words before\n" + json.dumps(said), "")
    assert (found.state, found.sound, found.reads, found.values["f"]["code"]) == ("done", False, 3, 1)
    assert found.odd == ["f.c u: 1.0 ≠ None"]


def test_a_shelf_has_titles_and_the_place_of_each_stage():
    slots = [
        Slot("b", 0.2, ["fresh"], why={"recall": ["newest"], "recall_score": 0.5, "outputs": {"buy": 0.1}}),
        Slot("a", 0.9, ["score"]),
        Slot("c", 0.4),
    ]
    shelf = console_lists._shelf(Listing("r", "m", "1@0", slots, arm="calm"), {"a": ("Alien", "1979")}, 0.01)
    assert [(film.title, film.place, film.ranked) for film in shelf.films] == [
        ("b", 1, 3),
        ("Alien", 2, 1),
        ("c", 3, 2),
    ]
    assert shelf.films[0].found == ["newest"] and shelf.films[0].outputs == {"buy": 0.1} and shelf.arm == "calm"


def test_people_and_titles_are_of_the_log_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(console_lists, "PEOPLE", 3)
    with installation(tmp_path) as at:
        items, served = at.log.writer("items"), at.log.writer("served")
        items.append(b"", encode(Entity(id="i1", attributes={"title": "One", "genres": ["Drama"], "year": "1999"})))
        for user in ("a", "b", "c", "a", "d", ""):
            served.append(b"", msgspec.msgpack.encode({"type": "served", "user": user}))
        served.append(b"", b"\xc1 damaged")
        visiting = console_lists.Visiting(at)
        places = visiting.places()
        assert places.people == ["d", "a", "c"] and places.placements == ["home"]
        assert visiting._known == {"i1": ("One", "1999 · Drama")}


@pytest.mark.parametrize(
    ("toml", "address"),
    [("", "http://127.0.0.1:8000"), ('host = "0.0.0.0"\nhttp_port = 9000', "http://127.0.0.1:9000"),
     ('host = "::1"', "http://[::1]:8000")],
)  # fmt: skip
def test_the_service_is_asked_where_its_settings_say(tmp_path, toml, address):
    with installation(tmp_path, toml + TOML) as at:
        assert console_lists.address(at.settings) == address


def test_a_service_at_any_port_cannot_be_asked_and_that_is_said(tmp_path):
    with installation(tmp_path, "http_port = 0\n" + TOML) as at, pytest.raises(errors.Misconfigured, match="http_port"):
        console_lists.address(at.settings)


def test_a_service_that_is_away_is_said_as_an_error_of_the_house(tmp_path):
    with installation(tmp_path, "http_port = 1\n" + TOML) as at:
        visiting = console_lists.Visiting(at)
        with pytest.raises(errors.Busy, match="cannot reach"):
            visiting.ask(console_lists.Asker(visitor="v", placement="home"))
        visiting.close()


def test_a_client_that_nobody_uses_is_hung_up_and_its_key_is_gone(tmp_path):
    with installation(tmp_path, "http_port = 1\n" + TOML) as at:
        visiting = console_lists.Visiting(at)
        used, unused = visiting._client("ms_used"), visiting._client("ms_unused")
        at.clock.advance(console_lists.CLIENT_S / 2)
        assert visiting._client("ms_used") is used
        at.clock.advance(console_lists.CLIENT_S / 2 + 1)
        visiting.poll()
        assert visiting._client("ms_used") is used and visiting._client("ms_unused") is not unused
        visiting.close()
        assert not visiting._clients


def test_experiments_are_those_of_the_settings_and_what_is_split(tmp_path):
    arms = "[recommend.placements.home.arms.a]\nshare = 0.5\n[recommend.placements.home.arms.b]\nshare = 0.5\n"
    asked = '[experiments.mine]\nplacement = "home"\nmetric = "like"\n'
    with installation(tmp_path, TOML) as at:
        assert console_trials._experiments(at) == {}
    with installation(tmp_path, TOML + arms) as at:
        assert console_trials._experiments(at) == {"placement home": ("--placement", "home")}
        at.repository.put("ranker", *version())
        at.repository.put("ranker", *version())
        split = {"1": 1.0, "2": 1.0}
        at.repository.change_policy("ranker", lambda p: msgspec.structs.replace(p, split=split), who="", why="")
        assert console_trials._experiments(at)["model ranker"] == ("--model", "ranker")
    with installation(tmp_path, TOML + arms + asked) as at:
        assert set(console_trials._experiments(at)) == {"mine", "model ranker"}


def report(**other):
    told = {
        "name": "mine", "split": "home", "metric": "like a list", "control": "a", "least": 0.05, "confidence": 0.95,
        "since": 100.0, "until": 800.0, "past": 0.2, "arms": [], "rails": [], "shadows": [], "verdict": "so it is",
        "sample": {"fine": True, "chance": 1.0, "crossed": 0, "why": ""},
        "lifts": [{"arm": "b", "control": "a", "finding": "open", "lift": 0.1, "low": -0.2, "high": 0.4}],
    }  # fmt: skip
    return msgspec.convert(told | other, console_trials.ExperimentReport)


def test_after_the_first_look_the_past_is_looked_at_and_the_interval_has_a_line(tmp_path):
    with installation(tmp_path) as at:
        trials, kept = console_trials.Trials(at), console_trials._Kept("mine", ("mine",))
        trials._take(kept, report(), float("inf"), 2.0)
        assert kept.trial.state == "done" and kept.trial.verdict == "so it is"
        assert kept.back == [200.0, 300.0, 400.0, 500.0, 600.0, 700.0], "six moments between"
        trials._take(kept, report(until=300.0, verdict="older"), 300.0, 2.0)
        assert [one.at for one in kept.seen] == [300.0, 800.0] and kept.seen[0] == Seen(300.0, "b", 0.1, -0.2, 0.4)
        assert kept.trial.verdict == "so it is", "a look back is no news"
        trials._take(kept, report(), float("inf"), 2.0)
        assert len(kept.seen) == 2, "the same lists are no new point"
        trials._take(kept, "the log has no list", float("inf"), 2.0)
        assert (kept.trial.state, kept.trial.verdict) == ("failed", "the log has no list")


def test_an_experiment_that_cannot_be_looked_at_says_why(tmp_path):
    with installation(tmp_path, TOML + '[experiments.mine]\nplacement = "home"\nmetric = "like"\n') as at:
        found = console_trials.Trials(at)._ask(console_trials._Kept("mine", ("mine",)), float("inf"))
        assert isinstance(found, str) and found and "Traceback" not in found and sys.executable not in found


def test_an_empty_queue_is_empty_and_a_label_of_nothing_is_refused(tmp_path):
    with installation(tmp_path) as at:
        reviewing = Reviewing(at)
        now = reviewing.reviews("")
        assert (now.waiting, now.cases, now.datasets) == ({}, [], [])
        with pytest.raises(errors.NotFound):
            reviewing.label("0" * 16, "positive", "mia")
        with pytest.raises(errors.BadInput):
            reviewing.export("reviewed")
        with reviewing._alone(), pytest.raises(errors.Busy):
            reviewing.fill()
