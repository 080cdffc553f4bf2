"""The learner obeys the policy: it pauses, resumes, follows a person, and never learns an example twice."""

import threading

import numpy as np
import pytest
from learn_house import FTRL, WIDTH, House, example

from millstream.errors import Conflict
from millstream.learn import GateSettings, LearnSettings, PushSettings
from millstream.learn.calibration import Calibration
from millstream.learn.judge import read_report
from millstream.learn.validation import Labels
from millstream.models import traffic
from millstream.models.online import Ftrl
from millstream.models.repository import Repository


def wrong(number: int) -> float:
    return 1.0 - float(number % 2)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return np.array_equal(left, right) and bool(np.count_nonzero(left))


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.log.close()


def test_what_is_served_is_the_fold_of_the_examples(house):
    for count in (10, 300, 1):
        house.tell(count)
        house.turn()
    assert same(house.served(), house.folded(range(311)))
    assert house.meter.sum("millstream_examples_learnt_total") == 311


def test_a_persons_version_is_never_written_into(house):
    version = house.repository.folder("ranker", "1")
    before = {path.name: path.read_bytes() for path in version.iterdir()}
    house.tell(200)
    house.turn()
    assert {path.name: path.read_bytes() for path in version.iterdir()} == before
    assert house.policy.live != "1"
    assert {delta.base for delta in house.deltas()} == {house.policy.live}
    manifest = house.repository.manifest("ranker", house.policy.live)
    assert (manifest.lineage["made_by"], manifest.lineage["parent"]) == ("millstream learn", "1")


def test_examples_of_other_models_are_not_learnt(house):
    house.tell(50)
    house.tell(50, wrong, model="another", width=3)
    house.tell(50)
    house.turn()
    assert same(house.served(), house.folded([*range(50), *range(100, 150)]))


def test_a_restart_goes_on_where_it_stood(house):
    for _ in range(5):
        house.tell(40)
        house.turn()
        house.restart()
    house.tell(3)
    house.turn()
    assert same(house.served(), house.folded(range(203)))
    sequences = [delta.sequence for delta in house.deltas() if delta.base == house.policy.live]
    assert sequences == list(range(1, len(sequences) + 1))


def test_paused_learning_stays_where_it_is_and_resumes_with_all_that_came(house):
    house.tell(120)
    house.turn()
    house.change(traffic.learning("paused"))
    before, deltas = house.served(), len(house.deltas())
    house.tell(80)
    assert house.turn() == 0
    assert np.array_equal(house.served(), before) and len(house.deltas()) == deltas
    house.restart()
    assert house.turn() == 0
    house.change(traffic.learning("run"))
    house.turn()
    assert same(house.served(), house.folded(range(200)))


def test_wrong_labels_pause_learning_with_the_reason_in_the_policy(house):
    house.tell(400)
    house.turn()
    good = house.served()
    house.tell(100, wrong)
    house.turn()
    policy = house.policy
    assert policy.learning == "paused" and policy.who == "millstream learn"
    assert policy.why.startswith("gate: logloss") and "plain rate" in policy.why
    assert np.array_equal(house.served(), good), "what the gate refused is served"
    assert house.meter.sum("millstream_pushes_refused_total") == 1
    house.tell(50)
    assert house.turn() == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_after_a_refusal_learning_resumes_on_the_served_weights_without_what_was_refused(house, restarted):
    house.tell(400)
    house.turn()
    house.tell(100, wrong)
    house.turn()
    assert house.policy.learning == "paused"
    house.tell(40)
    if restarted:
        house.restart()
    house.change(traffic.learning("run"))
    house.turn()
    assert house.policy.learning == "run", house.policy.why
    assert same(house.served(), house.folded([*range(400), *range(500, 540)]))
    house.tell(60)
    house.restart()
    house.turn()
    assert same(house.served(), house.folded([*range(400), *range(500, 600)]))


def test_a_refusal_makes_no_new_base_though_one_is_due(tmp_path):
    house = House(tmp_path, base_examples=50)
    house.tell(400)
    house.turn()
    before = house.policy.live, house.repository.versions("ranker")
    house.tell(100, wrong)
    house.turn()
    assert house.policy.learning == "paused"
    assert (house.policy.live, house.repository.versions("ranker")) == before
    house.log.close()


def test_weights_out_of_bounds_are_refused(tmp_path):
    house = House(tmp_path)
    explosive = Ftrl(type(FTRL)(bits=10, l1=0.0, l2=0.0, alpha=100.0, beta=1e-6), WIDTH)
    house.promote(house.put(explosive))
    house.tell(50)
    house.turn()
    assert "beyond the bound" in house.policy.why and house.policy.learning == "paused"
    assert all(np.abs(np.frombuffer(delta.weights, np.float32)).max() <= 50 for delta in house.deltas())
    house.log.close()


def test_a_roll_back_pins_and_a_promotion_goes_on_from_the_present(house):
    house.tell(100)
    house.turn()
    first = house.policy.live
    house.tell(100)
    house.turn()
    house.change(traffic.roll_back("1"))
    house.tell(30)
    assert house.turn() == 0, "learning goes on though the model is pinned"
    assert house.policy.live == "1"
    house.promote("1")
    house.turn()
    assert house.policy.live not in ("1", first)
    assert same(house.served(), house.folded(range(200, 230))), "what the old weights had learnt was learnt again"


def test_a_roll_back_to_a_base_of_learning_goes_on_from_the_present_too(tmp_path):
    house = House(tmp_path, base_examples=100)
    house.tell(100)
    house.turn()
    base = house.policy.live
    learnt = house.folded(range(100))
    assert np.array_equal(house.served(base), learnt)
    house.tell(150, wrong)
    house.turn()
    house.change(traffic.roll_back(base))
    assert house.turn() == 0
    house.promote(base)
    house.tell(20, start=250)
    house.restart()
    house.turn()
    start, _ = Ftrl.load(house.repository.folder("ranker", base) / "model.ftrl")
    assert same(house.served(), house.folded(range(250, 270), learner=start))
    house.log.close()


def test_the_learner_follows_a_person_who_promotes_another_version(house):
    house.tell(100)
    house.turn()
    better = Ftrl(FTRL, WIDTH)
    house.folded(range(1000, 2000), learner=better)
    version = house.put(better)
    house.promote(version)
    house.tell(50)
    house.turn()
    start, _ = Ftrl.load(house.repository.folder("ranker", version) / "model.ftrl")
    assert same(house.served(), house.folded(range(100, 150), learner=start))


def test_bases_are_kept_bounded_and_what_is_in_use_stays(tmp_path):
    house = House(tmp_path, base_examples=20, bases_kept=3)
    house.tell(20)
    house.turn()
    kept = house.policy.live
    house.change(traffic.shadow((kept,)))
    for _ in range(10):
        house.tell(20)
        house.turn()
    versions = house.repository.versions("ranker")
    made = [v for v in versions if house.repository.manifest("ranker", v).lineage["made_by"] == "millstream learn"]
    assert int(house.policy.live) > 10 and house.policy.live in made
    assert {"1", kept} <= set(versions), "a person's version and the one in shadow are not the learner's to remove"
    assert len(made) == 3 + 1
    assert same(house.served(), house.folded(range(220)))
    house.log.close()


def test_a_policy_file_that_is_broken_stops_learning_and_not_the_role(house, caplog):
    house.tell(50)
    house.turn()
    file = house.repository.root / "ranker" / "policy.toml"
    whole = file.read_text()
    file.write_text("live = ")
    house.tell(50)
    for _ in range(3):
        assert house.learning.step() == 0
    assert caplog.text.count("learning waits") == 1 and "policy.toml" in caplog.text
    file.write_text(whole)
    house.turn()
    assert same(house.served(), house.folded(range(100)))


def test_two_people_and_the_learner_lose_no_change_of_the_policy(tmp_path):
    house = House(tmp_path, base_examples=10)
    house.change(lambda policy: policy)
    before = house.policy.version
    rounds, failed = 40, []

    def person(number: int) -> None:
        mine = Repository(house.repository.root)
        for turn in range(rounds):
            change = traffic.shadow(("1",) if (turn + number) % 2 else ())
            try:
                mine.change_policy("ranker", change, who=f"person {number}", why=str(turn))
            except Exception as error:  # a thread's error would be lost
                failed.append(error)

    people = [threading.Thread(target=person, args=(number,)) for number in (1, 2)]
    for one in people:
        one.start()
    while any(one.is_alive() for one in people):
        house.tell(10)
        house.clock.advance(1.5)
        house.learning.step()
    for one in people:
        one.join()
    assert failed == []
    house.turn()
    bases = house.log.committed("learn.ranker", "bases")[0] - 1
    assert bases > 2
    assert house.policy.version == before + 2 * rounds + bases, "a change was lost"
    assert same(house.served(), house.folded(range(house.examples.end)))
    house.log.close()


def test_a_person_who_is_faster_than_a_new_base_wins(house, monkeypatch):
    house.tell(20)
    other = house.put()
    house.promote("1")
    put = house.repository.put

    def slow(model, manifest, files):
        version = put(model, manifest, files)
        house.promote(other)
        monkeypatch.undo()
        return version

    monkeypatch.setattr(house.repository, "put", slow)
    house.clock.advance(2)
    assert house.learning.step() == 0
    assert house.policy.live == other
    house.turn()
    assert house.repository.manifest("ranker", house.policy.live).lineage["parent"] == other
    assert issubclass(Conflict, Exception) and same(house.served(), house.folded(range(20)))


def uptos(house) -> list[int]:
    return [delta.upto for delta in house.deltas() if delta.base == house.policy.live]


def test_after_a_restart_nothing_is_counted_or_pushed_a_second_time(house):
    for _ in range(3):
        house.tell(40)
        house.turn()
    pushed, before = len(house.deltas()), house.served()
    house.restart()
    assert house.turn() == 0
    assert house.meter.sum("millstream_examples_learnt_total") == 0
    assert len(house.deltas()) == pushed and np.array_equal(house.served(), before)
    house.tell(7)
    house.turn()
    assert house.meter.sum("millstream_examples_learnt_total") == 7
    assert house.meter.sum("millstream_label_wait_seconds") == 7
    assert len(np.frombuffer(house.deltas()[-1].arrivals, np.float64)) == 7
    assert uptos(house) == sorted(uptos(house)) and uptos(house)[-1] == 127
    assert same(house.served(), house.folded(range(127)))


def test_a_death_between_a_delta_and_the_note_of_it_pushes_nothing_older(house, monkeypatch):
    house.tell(40)
    house.turn()
    house.tell(40)
    house.turn()
    house.tell(40)
    monkeypatch.setattr(house.log, "commit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        house.turn()
    house.restart()
    house.tell(5)
    house.turn()
    assert house.meter.sum("millstream_examples_learnt_total") == 5
    assert uptos(house)[-2:] == [120, 125]


def test_a_version_that_cannot_be_used_is_read_again_only_when_something_changed(house, monkeypatch):
    file = house.repository.folder("ranker", "1") / "model.ftrl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    read, verify = [], house.repository.verify
    monkeypatch.setattr(house.repository, "verify", lambda *which: read.append(which) or verify(*which))
    house.tell(20)
    for _ in range(5):
        assert house.learning.step() == 0
    assert len(read) == 1, "the whole file is read at every step"
    file.write_bytes(whole)
    house.turn()
    assert same(house.served(), house.folded(range(20)))


def test_damaged_deltas_are_replaced_by_a_new_base(house):
    for _ in range(3):
        house.tell(20)
        house.turn()
    base = house.policy.live
    (segment,) = (house.folder / "log" / "deltas" / "0").glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[200] ^= 1
    segment.write_bytes(content)
    at = house
    at.learning = type(at.learning)(at.settings, at.repository, at.log, at.learning._deltas, at.clock, at.meter)
    house.turn()
    assert int(house.policy.live) > int(base)
    learner, _ = Ftrl.load(house.repository.folder("ranker", house.policy.live) / "model.ftrl")
    assert np.array_equal(learner.weights(), house.folded(range(60)))


RULED = GateSettings(window=100, logloss_over=0.25, resume_s=60.0)


def test_learning_resumes_by_itself_once_labels_are_as_usual(tmp_path):
    house = House(tmp_path, gate=RULED)
    house.tell(400)
    house.turn()
    house.tell(100, wrong)
    house.turn()
    assert house.policy.learning == "paused"
    for _ in range(3):  # the burst goes on for longer than resume_s
        house.tell(50, wrong)
        house.turn()
        house.clock.advance(30.0)
    assert house.policy.learning == "paused"
    house.restart()
    house.tell(150)
    house.turn()
    house.clock.advance(60.0)
    house.tell(1)
    house.turn()
    assert house.policy.learning == "run" and "as usual again" in house.policy.why
    house.tell(49)
    house.turn()
    assert same(house.served(), house.folded([*range(400), *range(801, 850)])), "what was wrong, or passed over, is in"
    house.log.close()


def test_a_refusal_takes_the_base_before_back_where_the_rule_says_so(tmp_path):
    house = House(tmp_path, gate=GateSettings(window=100, then="rollback"), base_examples=200)
    for _ in range(2):
        house.tell(200)
        house.turn()
    live = house.policy.live
    before = house.repository.manifest("ranker", live).lineage["parent"]
    house.tell(100, wrong)
    house.turn()
    assert (house.policy.live, house.policy.pin, house.policy.learning) == (before, before, "paused")
    house.log.close()


def refused(house):
    """Learning, paused by the gate for wrong labels."""
    for _ in range(2):
        house.tell(200)
        house.turn()
    house.tell(100, wrong)
    house.turn()
    assert house.policy.learning == "paused"


def comes_right(house):
    """Labels are as usual again, for longer than the gate wants."""
    house.tell(150)
    house.turn()
    house.clock.advance(60.0)
    house.tell(1)
    house.turn()


@pytest.mark.parametrize("restarted", [False, True])
def test_who_paused_learning_is_known_whatever_else_is_changed_meanwhile(tmp_path, restarted):
    house = House(tmp_path, gate=RULED)
    refused(house)
    why = house.policy.why
    house.change(traffic.shadow(("1",)))
    assert (house.policy.who, house.policy.paused_by) == ("a person", "millstream learn")
    assert house.policy.paused_why == why and why.startswith("gate: ")
    if restarted:
        house.restart()
        house.turn()
    comes_right(house)
    assert (house.policy.learning, house.policy.paused_by, house.policy.paused_why) == ("run", "", "")
    house.log.close()


def test_what_a_person_paused_resumes_by_nobody_else(tmp_path):
    house = House(tmp_path, gate=RULED)
    refused(house)
    house.change(traffic.learning("paused"))
    assert house.policy.paused_by == "a person"
    comes_right(house)
    house.clock.advance(60.0)
    comes_right(house)
    assert house.policy.learning == "paused"
    house.log.close()


ROLLS = GateSettings(window=100, logloss_over=0.25, resume_s=60.0, then="rollback")


def test_what_the_gate_rolled_back_resumes_by_itself_too(tmp_path):
    house = House(tmp_path, gate=ROLLS, base_examples=200)
    refused(house)
    before = house.policy.pin
    assert before and (house.policy.paused_by, house.policy.pinned_by) == ("millstream learn", "millstream learn")
    start, _ = Ftrl.load(house.repository.folder("ranker", before) / "model.ftrl")
    house.change(traffic.shadow(("1",)))
    comes_right(house)
    assert (house.policy.learning, house.policy.pin) == ("run", "")
    house.tell(40)
    house.turn()
    assert same(house.served(), house.folded(range(651, 691), learner=start)), "what was wrong, or passed over, is in"
    house.log.close()


def test_a_person_ends_the_gates_pin_by_letting_learning_run_and_no_other(tmp_path):
    house = House(tmp_path, gate=ROLLS, base_examples=200)
    refused(house)
    house.change(traffic.learning("run"))
    assert (house.policy.learning, house.policy.pin, house.policy.pinned_by) == ("run", "", "")
    house.tell(40)
    house.turn()
    assert house.meter.sum("millstream_examples_learnt_total") == 540
    house.change(traffic.roll_back("1"))
    with pytest.raises(Conflict, match=r"pinned to 1 by a person: a test.*traffic promote"):
        house.change(traffic.learning("run"))
    assert house.policy.pin == "1"
    house.log.close()


def test_what_is_said_of_learning_waits_for_no_push(tmp_path):
    house = House(tmp_path)
    house.settings = LearnSettings(model="ranker", push=PushSettings(push_s=1000.0))
    house.restart()
    report, told = tmp_path / "state" / "learning" / "ranker", 0
    for count in (50, 30, 20):
        house.tell(count)
        house.clock.advance(2.5)
        house.learning.step()
        told += count
        assert house.deltas() == [] and read_report(report).upto == told
    house.tell(10)
    house.restart()  # nothing was pushed: all is folded again, and judged once
    for _ in range(3):
        house.clock.advance(2.5)
        house.learning.step()
    assert read_report(report).upto == 110 and read_report(report).figures[""]["learner"].examples == 110
    house.log.close()


LEAPS = GateSettings(
    window=1000, logloss_over=100.0, frozen_over=100.0, past_over=100.0, calibration_over=100.0, resume_s=60.0
)


def robots(number: int) -> float:
    return float(number % 2 or number % 10 in (0, 4))


def came(number: int) -> float:
    return robots(number) if number >= 6000 else float(number % 2)


def test_robots_pause_learning_for_as_long_as_they_click_and_no_longer(tmp_path):
    house = House(tmp_path, gate=LEAPS, base_examples=1500)
    house.tell(6000)
    house.turn()
    for _ in range(12):  # longer than the past, if it learnt from them
        house.tell(500, robots)
        house.turn()
        house.clock.advance(30.0)
        if house.examples.end == 8000:
            house.restart()
    assert house.policy.learning == "paused" and house.policy.why.endswith("does somebody click without looking?")
    assert house.meter.sum("millstream_examples_learnt_total") == 0, "the restarted learner learns from robots"
    house.tell(2100)
    house.turn()
    house.clock.advance(60.0)
    house.tell(1)
    house.turn()
    assert house.policy.learning == "run"
    house.tell(1500)
    house.turn()
    assert house.policy.learning == "run" and house.meter.sum("millstream_examples_learnt_total") == 1501
    house.log.close()


def test_who_lets_learning_run_says_that_the_leap_is_right(tmp_path):
    house = House(tmp_path, gate=LEAPS)
    house.tell(6000)
    house.turn()
    house.tell(1000, robots)
    house.turn()
    assert house.policy.learning == "paused"
    house.change(traffic.learning("run"))
    for _ in range(10):
        house.tell(400, robots)
        house.turn()
        house.restart()
    assert house.policy.learning == "run", house.policy.why
    assert same(house.served(), house.folded([*range(6000), *range(7000, 11_000)], came))
    house.log.close()


def test_what_is_usual_outlives_restarts_and_bases_bit_for_bit(tmp_path):
    books = []
    for restarts in (False, True):
        house = House(tmp_path / str(restarts), gate=LEAPS, base_examples=700)
        for _ in range(20):
            house.tell(333)
            house.turn()
            if restarts:
                house.restart()
        house.tell(100, robots)
        house.turn()
        books.append(house.learning._judge.gate.dump())
        house.log.close()
    assert books[0] == books[1]


@pytest.mark.parametrize("restarts", [0, 4])
def test_what_is_said_of_learning_does_not_depend_on_restarts(tmp_path, restarts):
    house = House(tmp_path, base_examples=150)
    for number in range(8):
        house.tell(60, lambda n: float(n % 2 or n % 5 == 0))
        house.turn()
        if number < restarts:
            house.restart()
    house.clock.advance(10.0)
    house.tell(10)
    house.turn()
    report = read_report(tmp_path / "state" / "learning" / "ranker")
    assert report.upto == 490
    figures = report.figures[""]
    assert {who: one.examples for who, one in figures.items() if who != "previous"} == {
        "served": 490.0, "learner": 490.0, "frozen": 490.0
    }  # fmt: skip
    assert figures["frozen"].auc == 0.5 and figures["learner"].auc > 0.9
    last = house.deltas()[-1]
    assert np.frombuffer(last.calibration).tolist() == [report.slope, report.intercept]
    expected = Calibration()
    learner = Ftrl(FTRL, WIDTH)
    for number in range(490):
        one = example(number, float(number % 2 or number % 5 == 0) if number < 480 else float(number % 2))
        predicted = learner.learn(np.frombuffer(one.tokens, np.uint32)[None], np.array([one.label], np.float32))
        expected.observe(predicted, Labels(np.array([one.label]), np.ones(1), np.zeros(1, np.bool_)))
    assert expected.fit() == (report.slope, report.intercept)
    house.log.close()
