"""What deep rankers learn from: each shown item once, with what all tasks, amounts and histories say of it."""

import math

import numpy as np
import pytest
from deep_house import DEFINITION, House, settings

from millstream.errors import Misconfigured
from millstream.features import Rows
from millstream.learn.deep import DeepSettings, Head, Source, Span, heads, read
from millstream.stream.tasks import Task

HEADS = (Head("click"), Head("buy"), Head("dwell", amount=True))
ALL = Span(0, 1 << 60)
NAN = math.nan


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.close()


def shown(house, span=ALL, outputs=HEADS, history=3, model="ranker"):
    source = Source(model, DEFINITION, outputs, history)
    (house.at.folder / "state").mkdir(exist_ok=True)
    return read(house.at.log, source, span, house.at.folder / "state")


def by_item(found):
    """Row number by item, of items that were shown once."""
    items = ["a", "b", "c", "d"]
    tokens = Rows(DEFINITION).history(items, 4)[0].tolist()
    ids = found.tokens(np.arange(len(found)))[:, DEFINITION.id_place].tolist()
    return {item: ids.index(token) for item, token in zip(items, tokens, strict=True) if token in ids}


def test_a_shown_item_is_one_row_with_the_labels_of_all_tasks(house):
    house.serve("r1", ["a", "b"], history=["x", "y"], scores=[0.5, 0.125])
    house.tell("r1", "a", "click")
    house.tell("r1", "a", "dwell", 7.0)
    house.tell("r1", "a", "dwell", 30.0)
    house.tell("r1", "a", "order")
    house.serve("r2", ["c"], user="v")
    house.tell("r2", "c", "dwell", math.inf)
    house.end()
    found = shown(house)
    at = by_item(found)
    assert len(found) == found.inside == 3 and at.keys() == {"a", "b", "c"}
    order = [at[item] for item in "abc"]
    assert found.labels[order].tolist() == [[1, 1, 30], [0, 0, 0], [0, 0, 0]]
    assert found.scores[order].tolist() == [0.5, 0.125, 0.25] and (found.weights == 1).all()
    expected = [*house.entities.rows("u", ["a", "b"]), *house.entities.rows("v", ["c"])]
    assert np.array_equal(found.tokens(np.array(order)), expected)
    past = Rows(DEFINITION).history(["x", "y"], 3)[0].tolist()
    assert found.histories(np.array(order)).tolist() == [past, past, [0, 0, 0]]


def test_a_positive_counts_whatever_came_before_it(tmp_path):
    tasks = {"click": Task(window_s=2.0, late="correct"), "buy": Task({"order": 1.0}, window_s=20.0, delayed="fnw")}
    house = House(tmp_path, settings(**tasks))
    house.serve("r1", ["a", "b"], scores=[0.5, 0.5])
    house.end(10.0)
    house.tell("r1", "a", "click")
    house.tell("r1", "a", "order")
    house.end()
    examples = house.at.log.reader("examples")
    assert examples.end(0) == 6, "told twice of a, in both tasks"
    found = shown(house)
    at = by_item(found)
    assert found.labels[[at["a"], at["b"]], :2].tolist() == [[1, 1], [0, 0]]
    assert (found.weights == 1).all(), "labels are final: what made up for early ones is not needed"
    house.close()


def test_kept_negatives_stand_for_those_that_were_not(tmp_path):
    tasks = {
        "click": Task(window_s=2.0, negatives=0.25),
        "buy": Task({"order": 1.0}, window_s=2.0, negatives=0.5, negatives_by="shift"),
    }
    house = House(tmp_path, settings(**tasks))
    for number in range(2000):
        house.serve(f"r{number}", ["a"])
        if number % 10 == 0:
            house.tell(f"r{number}", "a", "click")
            house.tell(f"r{number}", "a", "dwell", 20.0)
    house.end()
    outputs = heads("click", {name: task.negatives for name, task in tasks.items()}, ("dwell",))
    found = shown(house, outputs=outputs)
    assert 1100 < len(found) < 1500
    liked = found.labels[:, 0] == 1
    assert liked.sum() == 200 and set(found.weights[liked, 0].tolist()) == {1.0}
    for at in range(2):
        known = ~np.isnan(found.labels[:, at])
        assert known.sum() < len(found), "one task kept what the other did not"
        assert (found.weights[known, at] * (found.labels[known, at] == 0)).sum() == pytest.approx(
            1800 if at == 0 else 2000, rel=0.12
        )
    assert found.weights[:, 2].sum() == pytest.approx(2000, rel=0.08), "an amount counts for all that was shown"
    assert np.average(found.labels[:, 2], weights=found.weights[:, 2]) == pytest.approx(2.0, rel=0.08)
    house.close()


def test_what_was_not_known_at_the_end_of_a_span_is_in_no_row_of_it(house):
    house.serve("r1", ["a"])
    house.tell("r1", "a", "click")
    house.tell("r1", "a", "dwell", 3.0)
    house.end(10.0)
    upto, until = house.at.log.reader("examples").end(0), house.clock.now()
    assert upto == 1, "the click; whether it was bought is still open"
    house.serve("r2", ["b"])
    house.tell("r1", "a", "order")
    house.tell("r1", "a", "dwell", 9.0)
    house.tell("r2", "b", "dwell", 5.0)
    house.end()
    found = shown(house, Span(0, upto, until))
    assert (found.inside, len(found)) == (1, 2)
    assert found.labels.tolist() == [[1, pytest.approx(NAN, nan_ok=True), 3], [0, 0, 3]]
    assert found.labels[1, 2] == 3, "amounts are cut to what the span knew of them"
    assert found.offsets.tolist()[0] == 0 and found.offsets[1] >= upto
    later = shown(house, Span(upto, 1 << 60))
    assert later.labels[by_item(later)["a"], 1] == 1


def test_rows_of_others_are_left_out(house):
    house.serve("r1", ["a"], model="other")
    house.serve("r2", ["b"])
    house.end()
    assert by_item(shown(house)).keys() == {"b"}
    assert by_item(shown(house, model="other")).keys() == {"a"}
    assert len(shown(house, outputs=(Head("skip"),))) == 0
    assert len(shown(house, Span(0, 0))) == 1 and shown(house, Span(0, 0)).inside == 0


def test_without_a_log_there_is_nothing(house):
    found = shown(house)
    assert len(found) == found.inside == 0 and found.labels.shape == (0, 3) and found.history == 3


def test_one_value_does_not_decide_what_an_amount_is(house):
    for number in range(100):
        house.serve(f"r{number}", ["a"])
        house.tell(f"r{number}", "a", "dwell", 1e9 if number == 50 else 10.0 + number / 10)
    house.end()
    assert shown(house).labels[:, 2].max() < 1e9


def test_settings_out_of_bounds_are_refused():
    with pytest.raises(Misconfigured, match=r"deep.hidden = \[\]: 1 to 4 layers"):
        DeepSettings(hidden=())
    with pytest.raises(Misconfigured, match="over 1 GiB"):
        DeepSettings(bits=22, factors=128)
    with pytest.raises(Misconfigured, match="'click' would be two outputs"):
        heads("click", {"click": 1.0}, ("click",))
    with pytest.raises(Misconfigured, match="'probability' would be two outputs"):
        heads("click", {"click": 1.0, "probability": 1.0}, ())
    assert heads("buy", {"click": 0.5, "buy": 1.0}, ("dwell",)) == (
        Head("buy"), Head("click", kept=0.5), Head("dwell", amount=True),
    )  # fmt: skip
