"""Traffic that begins, stops and comes back, and labels that are thinned or come in parts, are no reason to refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import Corrupt
from millstream.learn import GateSettings
from millstream.learn.judge import Judge, Task
from millstream.learn.settled import Settled
from millstream.learn.train import Batch, Folded
from millstream.learn.validation import Validation, ValidationSettings
from millstream.meter import Meter
from millstream.models.online import Correction, Ftrl, ServedFtrl, Settings

RATE, WAIT = 900.0, 30.0  # shown a second; what a negative waits


def shown(spans, seed=0, wrong=None):
    """Items shown in spans of time to people of differing taste: times, tokens, likes. `wrong`: (from, until) in which
    half of the labels are the wrong way round."""
    random = np.random.default_rng(seed)
    times = np.concatenate([np.sort(random.uniform(a, b, int((b - a) * RATE))) for a, b in spans])
    user, item = random.integers(0, 200, (2, len(times)))
    odds = random.normal(-0.7, 0.5, 200)[user] + random.normal(0.0, 0.5, 200)[item]
    likes = random.random(len(times)) < 1 / (1 + np.exp(-odds))
    if wrong:
        likes ^= (times >= wrong[0]) & (times < wrong[1]) & (random.random(len(times)) < 0.5)
    return times, np.stack([1 + user, 1000 + item, 5000 + 200 * user + item], 1).astype(np.uint32), likes, random


def told(spans, kept=1.0, early=False, **how):
    """As the join tells them, in order: `kept` of the negatives; `early`: negatives at once, positives after them."""
    times, tokens, likes, random = shown(spans, **how)
    clicks = np.minimum(random.exponential(3.0, len(times)), WAIT - 0.1)
    stays = random.random(len(times)) < kept
    if early:
        one, two = np.flatnonzero(stays), np.flatnonzero(likes)
        at, label = np.append(one, two), np.append(np.zeros(len(one)), np.ones(len(two)))
        known = event = np.append(times[one], times[two] + clicks[two])
        waited, back = np.zeros(len(at)), label > 0
    else:
        at = np.flatnonzero(likes | stays)
        label, event = likes[at].astype(float), times[at]
        waited, back = np.where(likes[at], 0.0, WAIT), np.zeros(len(at), np.bool_)
        known = event + np.where(likes[at], clicks[at], WAIT)
    order = np.argsort(known, kind="stable")
    return [column[order] for column in (known, event, waited, tokens[at], label.astype(np.float32), back)]


def refusals(tmp_path, task, columns, fnw=False, gate=None):
    """What the gate said, and when, of a learner that begins with nothing, at the default settings."""
    known, event, waited, tokens, labels, back = columns
    learner, file = Ftrl(Settings(bits=14), 3), tmp_path / "model.ftrl"
    file.write_bytes(learner.dump())
    made = Judge(gate or GateSettings(), Validation(ValidationSettings()), True, task, Meter(), None)
    made.stand({}, ServedFtrl.load(file), None)
    by_weight = not task.correction.shift
    found, at = [], 0
    for now in np.arange(0.0, known[-1] + 1, 0.5):
        part = slice(at, int(np.searchsorted(known, now)))
        count = part.stop - at
        if not count:
            continue
        weights = np.where(labels[part] > 0, 1.0, 1 / task.kept if by_weight else 1.0)
        if fnw:
            p = learner.predict({"tokens": tokens[part]})["probability"]
            weights = weights * np.where(labels[part] > 0, 1 + p, (1 - p) * (1 + p))
        weights = weights.astype(np.float32)
        said = learner.learn(tokens[part], labels[part], weights)
        again = np.zeros(count, np.bool_)
        batch = Batch(
            tokens[part], labels[part], weights, known[part], waited[part], said, event[part], back[part], again
        )
        made.observe(Folded(batch, said, at, 0))
        at = part.stop
        if why := made.gate.refuses(np.zeros(1, np.float32)):
            found.append((float(now), why))
    return found


LIKE = Task(name="like", wait_s=WAIT)


@pytest.mark.parametrize("spans", [[(0, 110)], [(0, 110), (130, 210)], [(0, 110), (200, 280)]])
def test_traffic_that_begins_stops_and_comes_back_is_never_refused(tmp_path, spans):
    assert refusals(tmp_path, LIKE, told(spans)) == []


SAMPLED = {
    "weight": (Task(0.2, name="like", wait_s=WAIT), {"kept": 0.2}, False),
    "shift": (Task(0.2, Correction(shift=float(np.log(0.2))), "like", WAIT), {"kept": 0.2}, False),
    "fnw": (LIKE, {"early": True}, True),
    "fnc": (Task(1.0, Correction(fake=True), "like", WAIT), {"early": True}, False),
    "fnw, sampled": (Task(0.5, name="like", wait_s=WAIT), {"early": True, "kept": 0.5}, True),
}


@pytest.mark.parametrize("what", SAMPLED)
def test_thinned_and_early_negatives_are_judged_as_what_they_stand_for(tmp_path, what):
    task, how, fnw = SAMPLED[what]
    assert refusals(tmp_path, task, told([(0, 120), (170, 250)], **how), fnw) == [], "clean traffic"
    (when, why), *_ = refusals(tmp_path, task, told([(0, 200)], wrong=(150, 200), **how), fnw)
    assert 150 < when < 200 and "logloss" in why, (when, why)


def test_wrong_labels_of_settled_traffic_are_refused(tmp_path):
    (when, _), *_ = refusals(tmp_path, LIKE, told([(0, 200)], wrong=(150, 200)))
    assert 150 < when < 200


def of(made, known, waited=0.0, times=None):
    known = np.asarray(known, float)
    return made.of(known, np.full(len(known), waited), known - waited if times is None else np.asarray(times)).tolist()


def test_traffic_is_settled_two_waits_after_it_began_and_a_gap_begins_it_anew():
    made = Settled(10.0, few=0)
    assert of(made, [100, 102, 119.9, 120, 121]) == [False, False, False, False, False], "119.9 comes after a gap"
    made = Settled(10.0, few=0)
    steady = np.arange(100.0, 140.0)
    assert of(made, steady) == (steady >= 120).tolist()
    assert of(made, [140.0, 150.0], waited=10.0) == [True, True], "negatives tell of what was shown before"
    assert of(made, [151.0, 152.0]) == [False, False]
    assert of(made, [153.0], times=[500.0]) == [False], "a clock that is ahead hides no gap"
    assert all(of(Settled(0.0, few=0), [1, 1000, 5000])), "labels that wait for nothing"


def test_a_few_examples_of_slow_traffic_are_judged_though_each_comes_after_a_gap():
    assert all(of(Settled(10.0, few=3), np.arange(0.0, 10_000, 60)))
    assert of(Settled(10.0, few=3), [0, 1, 2, 3, 4]) == [True, True, True, False, False]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_pieces_the_whole_and_a_restart_settle_alike(sizes, seed, few):
    random = np.random.default_rng(seed)
    total = sum(sizes)
    known = np.cumsum(random.exponential(0.3, total) + random.choice([0.0, 8.0], total, p=[0.98, 0.02]))
    waited = random.choice([0.0, 10.0], total)
    whole, pieces, at, found = Settled(10.0, few), Settled(10.0, few), 0, []
    expected = whole.of(known, waited, known - waited).tolist()
    for size in sizes:
        part = slice(at, at + size)
        found += pieces.of(known[part], waited[part], (known - waited)[part]).tolist()
        again = Settled(10.0, few)
        again.restore(pieces.dump())
        pieces, at = again, at + size
    assert found == expected and pieces.dump() == whole.dump()


def test_what_cannot_be_read_of_a_base_is_said():
    with pytest.raises(Corrupt, match="make another base live"):
        Settled(1.0, 0).restore("yesterday")
