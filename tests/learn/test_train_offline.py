"""The offline twin: any span of the log, judged by what follows, registered as the policy can take it."""

import msgspec
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from millstream.app.installation import Installation, Settings
from millstream.app.training import train
from millstream.clock import FakeClock
from millstream.errors import BadInput, Misconfigured
from millstream.features import Column, Definition, Entities
from millstream.learn.offline import SPACES, Plan
from millstream.models import traffic
from millstream.models.online import KINDS, Ftrl, load, load_served
from millstream.models.online import Settings as FtrlSettings
from millstream.stream import JoinSettings, encode
from millstream.stream.tasks import Task
from millstream.types import Outcome, Served

DEFINITION = Definition(user=(Column("id"),), item=(Column("id"),), crosses=("user.id*item.id",))
FTRL = FtrlSettings(bits=12, l1=0.0)
COUNT = 3000
START = 1e6
SETTINGS = Settings(
    features=DEFINITION, ftrl=FTRL, join=JoinSettings(tasks={"like": Task({"like": 1.0}, window_s=0.5)}, keep_s=3600.0)
)


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels: what is liked depends on user and item."""
    random, entities = np.random.default_rng(1), Entities(DEFINITION)
    users, items = random.integers(0, 20, COUNT), random.integers(0, 15, COUNT)
    tokens = np.concatenate([entities.rows(f"u{u}", [f"i{i}"]) for u, i in zip(users, items, strict=True)])
    truth = 1 / (1 + np.exp(-(random.normal(0, 2, 20)[users] + random.normal(0, 1, 15)[items])))
    return tokens, (random.random(COUNT) < truth).astype(np.float32)


TOKENS, LABELS = rows()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """An installation whose examples came one a second."""
    folder, clock = tmp_path_factory.mktemp("filled"), FakeClock(START)
    with Installation(folder, SETTINGS, clock) as at:
        served, outcomes = at.log.writer("served"), at.log.writer("outcomes")
        for number, (row, label) in enumerate(zip(TOKENS, LABELS.tolist(), strict=True)):
            clock.jump(1.0)
            name, now = f"r{number}", clock.now()
            event = Served(
                request=name, model=at.model, version="1@0", policy=0, arm="live", user="u", candidates=["i"],
                event_time=now, definition=DEFINITION.hash, tokens=row.tobytes(), scores=np.float32(0.3).tobytes(),
            )  # fmt: skip
            served.append(name.encode(), encode(event))
            for kind in ("impression", "like") if label else ("impression",):
                outcomes.append(name.encode(), encode(Outcome(request=name, item="i", kind=kind, event_time=now)))
        outcomes.append(b"", encode(Outcome(kind="watermark", event_time=now + 1.0)))
        clock.jump(1.0)
    return folder


@pytest.fixture
def at(filled, tmp_path):
    """The same log, and a repository of its own."""
    with Installation(filled, SETTINGS, FakeClock(START + COUNT + 1.0)) as made:
        made.repository = type(made.repository)(tmp_path / "models", clock=made.clock)
        yield made


def file(at, version):
    manifest = at.repository.manifest(at.model, version)
    return manifest, at.repository.folder(at.model, version) / manifest.file


def test_one_pass_over_everything_is_the_fold_of_everything(at):
    made = train(at)
    expected = Ftrl(FTRL, DEFINITION.width)
    said = expected.learn(TOKENS, LABELS)
    manifest, path = file(at, made.version)
    assert np.array_equal(load(path)[0].weights(), expected.weights())
    assert (made.examples, made.role, manifest.lineage["upto"]) == (COUNT, "live", COUNT)
    held = slice(COUNT * 8 // 10, None)
    before = Ftrl(FTRL, DEFINITION.width)
    before.learn(TOKENS[: held.start], LABELS[: held.start])
    scores = before.predict({"tokens": TOKENS[held]})["probability"]
    assert made.figures["candidate"].auc == pytest.approx(roc_auc_score(LABELS[held], scores), abs=1e-3)
    assert made.figures["served"].auc == 0.5 and "live" not in made.figures
    assert roc_auc_score(LABELS[held], said[held]) > 0.75


def test_a_span_is_judged_by_what_comes_after_it(at):
    train(at)
    made = train(at, Plan(since=START + 500.5, until=START + 2000.5))
    manifest, path = file(at, made.version)
    expected = Ftrl(FTRL, DEFINITION.width)
    known = 1 + np.arange(COUNT) + (LABELS == 0)  # a negative when the next one is told
    inside = (known > 500.5) & (known <= 2000.5)
    expected.learn(TOKENS[inside], LABELS[inside])
    assert np.array_equal(load(path)[0].weights(), expected.weights())
    after = int(np.flatnonzero(inside)[-1]) + 1
    assert (made.examples, made.role, manifest.lineage["upto"]) == (inside.sum(), "", after)
    assert at.repository.policy(at.model).live == "1"
    scores = expected.predict({"tokens": TOKENS[after:]})["probability"]
    assert made.figures["candidate"].auc == pytest.approx(roc_auc_score(LABELS[after:], scores), abs=1e-3)
    assert load_served(path).correction.slope != 1.0, "fitted to the span after it"


def test_the_live_version_is_judged_beside_it_where_it_had_learnt_none_of_the_rows(at):
    train(at, Plan(until=START + 1500.5))
    made = train(at, Plan(until=START + 2000.5))
    after = file(at, made.version)[0].lineage["upto"]
    live = load_served(file(at, "1")[1]).predict({"tokens": TOKENS[after:]})["probability"]
    assert made.figures["live"].auc == pytest.approx(roc_auc_score(LABELS[after:], live), abs=1e-3)
    whole = train(at).version
    for promoted, plan, judged, known in (
        (made.version, Plan(until=START + 1500.5), COUNT - 1500, 500),
        (whole, Plan(), COUNT // 5, COUNT // 5),
    ):
        traffic.make(at.repository, at.model, "promote", traffic.Promote(version=promoted))
        said = []
        found = train(at, plan, say=said.append).figures
        assert set(found) == {"candidate", "served"} and found["candidate"].examples == pytest.approx(judged, abs=2)
        (line,) = [line for line in said if "had learnt" in line]
        assert int(line.split("had learnt ")[1].split()[0]) == pytest.approx(known, abs=2)


def test_passes_learn_again(at):
    made = train(at, Plan(passes=3))
    expected = Ftrl(FTRL, DEFINITION.width)
    for _ in range(3):
        expected.learn(TOKENS, LABELS)
    assert np.array_equal(load(file(at, made.version)[1])[0].weights(), expected.weights())


def test_a_search_finds_better_settings_than_bad_ones(at):
    said = []
    bad = Plan(settings={"alpha": 0.0001}, trials=6)
    made = train(at, bad, say=said.append)
    assert made.settings["alpha"] > 0.01 and made.settings["bits"] == 12
    assert made.figures["candidate"].logloss < train(at, Plan(settings={"alpha": 0.0001})).figures["candidate"].logloss
    assert sum(line.startswith("trial ") for line in said) == 7 and "as configured" in said[1]
    assert train(at, bad).settings == made.settings, "the same seed tries the same"


def test_every_kind_of_learner_can_be_searched(at):
    assert set(SPACES) == set(KINDS)
    for kind in KINDS:
        known = set(msgspec.structs.asdict(getattr(SETTINGS, kind)))
        assert set(SPACES[kind]) <= known


@pytest.mark.parametrize("role", ["shadow", "canary"])
def test_a_candidate_enters_as_it_is_told_to(at, role):
    first = train(at, role=role)
    assert first.role == "live", "somebody has to answer"
    second = train(at, Plan(settings={"bits": 14}), role)
    assert second.role == role and file(at, second.version)[0].settings["bits"] == 14
    policy = at.repository.policy(at.model)
    assert policy.live == "1" and policy.named()[second.version] == role
    assert role != "canary" or (policy.canary.share == 0.05 and policy.canary.guard is not None)


def test_what_cannot_be_is_said(at):
    with pytest.raises(Misconfigured, match="nonsense"):
        train(at, Plan(settings={"nonsense": 1}))
    with pytest.raises(Misconfigured, match="bits"):
        train(at, Plan(settings={"bits": 99}))


@pytest.mark.parametrize(
    ("since", "until", "words"),
    [
        (START + 2000, START + 1000, "the span ends at 1001000, not after it begins, at 1002000"),
        (START + 1000, START + 1000, "the span ends at 1001000, not after it begins"),
        (START + COUNT + 5, None, "from 1970-01-12T13:46:41Z to 1970-01-12T14:36:4[01]Z; give a span that has some"),
        (None, START, "give a span that has some"),
    ],
)
def test_a_span_without_examples_makes_no_version(at, since, until, words):
    with pytest.raises(BadInput, match=words):
        train(at, Plan(since=since, until=until))
    assert at.repository.models() == []
    train(at)
    with pytest.raises(BadInput, match=words):
        train(at, Plan(since=since, until=until), "canary")
    assert at.repository.versions(at.model) == ["1"] and at.repository.policy(at.model).canary is None


def test_without_examples_there_is_a_version_that_knows_nothing(tmp_path):
    with Installation(tmp_path, SETTINGS, FakeClock(START)) as at:
        with pytest.raises(BadInput, match="too few"):
            train(at, Plan(trials=2))
        made = train(at)
        assert (made.version, made.examples, made.figures) == ("1", 0, {})
        with pytest.raises(BadInput, match="the log holds no examples of task 'like'"):
            train(at)
        assert at.repository.versions(at.model) == ["1"], "a second one that knows nothing helps nobody"


def test_with_another_definition_it_begins_anew(filled, at):
    train(at)
    other = Definition(user=(Column("id"),), item=(Column("id"),))
    with Installation(filled, msgspec.structs.replace(SETTINGS, features=other), at.clock) as changed:
        changed.repository = at.repository
        made = train(changed)
        assert (made.version, made.examples, made.role) == ("2", 0, "")


def test_beside_a_process_that_joins_it_learns_what_is_there(filled, at):
    train(at)
    with Installation(filled, SETTINGS, at.clock) as learns:
        join, said = learns.join(), []
        assert train(at, say=said.append).examples == COUNT
        assert "another process joins" in said[0]
        join.close()


def test_while_up_runs_nobody_takes_its_place_in_the_log(tmp_path):
    with Installation(tmp_path, SETTINGS, FakeClock(START)) as up, Installation(tmp_path, SETTINGS, up.clock) as at:
        for kind in ("impression", "like"):
            event = Served(
                request="r", model=at.model, version="1@0", policy=0, arm="live", user="u", candidates=["i"],
                event_time=START, definition=DEFINITION.hash, tokens=TOKENS[0].tobytes(), scores=b"\0" * 4,
            )  # fmt: skip
            if kind == "impression":
                up.log.writer("served").append(b"r", encode(event))
                outcomes = up.log.writer("outcomes")
            outcomes.append(b"r", encode(Outcome(request="r", item="i", kind=kind, event_time=START)))
        with up.alone():
            assert train(at).examples == 0 and at.log.reader("examples").end(0) == 0
        assert train(at).examples == 1


def test_a_new_shadow_takes_the_place_of_the_last_and_candidates_do_not_pile_up(at):
    train(at)
    mine = at.repository.put(at.model, *copied(at, "1"))
    traffic.make(at.repository, at.model, "shadow", traffic.Copy(versions=(mine,)))
    made = [train(at, role="shadow").version for _ in range(7)]
    assert at.repository.policy(at.model).shadow == (mine, made[-1])
    kept = at.settings.learn.push.bases_kept
    assert at.repository.versions(at.model) == ["1", mine, *made[-kept:]]


def copied(at, version):
    """A version as somebody else puts it."""
    manifest, path = file(at, version)
    return msgspec.structs.replace(manifest, lineage={"made_by": "a person"}), {manifest.file: path}


def test_versions_that_were_live_are_kept_apart_from_those_that_never_were(at):
    train(at)
    kept = at.settings.learn.push.bases_kept
    for _ in range(kept + 1):
        promoted = train(at).version
        traffic.make(at.repository, at.model, "promote", traffic.Promote(version=promoted))
    for _ in range(kept + 1):
        train(at)
    there = at.repository.versions(at.model)
    assert there[:6] == ["1", "3", "4", "5", "6", "7"], "a roll back must find the ones before, and the first"
    assert len(there) == 1 + 2 * kept
