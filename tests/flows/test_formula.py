"""The formula over a ranker's outputs: what it computes, and what it refuses with words."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import Misconfigured, NotFound
from millstream.flows.formula import DEPTH_MAX, LENGTH_MAX, Formula

HEADS = {
    "click": np.array([0.1, 0.5, 0.9], np.float32),
    "conversion": np.array([0.0, 0.25, 1.0], np.float32),
    "dwell": np.array([0.0, 30.0, 600.0], np.float32),
}


def row(at):
    return [float(column[at]) for column in HEADS.values()]


@pytest.mark.parametrize(
    ("text", "said"),  # of a click c, a conversion v and a dwell d
    [
        ("click", lambda c, v, d: c),
        ("-click + +1", lambda c, v, d: 1 - c),
        ("click * (1 + 0.5 * conversion) + 0.1 * log1p(dwell)", lambda c, v, d: c * (1 + v / 2) + 0.1 * math.log1p(d)),
        ("click ** 2 / (1 + conversion)", lambda c, v, d: c**2 / (1 + v)),
        ("2 ** -1 ** 2 * click", lambda c, v, d: c / 2),
        ("min(click, conversion, 0.2)", lambda c, v, d: min(c, v, 0.2)),
        ("max(click, conversion) - exp(-sqrt(dwell))", lambda c, v, d: max(c, v) - math.exp(-math.sqrt(d))),
    ],
)  # fmt: skip
def test_it_computes_what_python_would_of_each_row(text, said):
    found = Formula(text).of(HEADS)
    assert found.dtype == np.float32 and found.shape == (3,)
    np.testing.assert_allclose(found, [said(*row(at)) for at in range(3)], rtol=1e-6)


def test_it_names_the_outputs_that_it_needs():
    assert Formula("click * max(1, dwell) + click").names == {"click", "dwell"}
    assert Formula("exp(min)").names == {"min"}  # a name that is not called is an output's


def test_outputs_of_other_models_have_their_names_before_them():
    found = Formula("0.7 * click + 0.2 * online.click - online.buy * deep.click")
    assert found.names == {"click", "online.click", "online.buy", "deep.click"}
    assert found.beside == {"online": ("buy", "click"), "deep": ("click",)} and Formula("click").beside == {}
    theirs = {"online.click": HEADS["conversion"], "online.buy": HEADS["click"], "deep.click": HEADS["dwell"]}
    wanted = 0.7 * HEADS["click"] + 0.2 * HEADS["conversion"] - HEADS["click"] * HEADS["dwell"]
    np.testing.assert_allclose(found.of(HEADS | theirs), wanted, rtol=1e-6)
    with pytest.raises(NotFound, match=r"no output 'deep.click'"):
        found.of(HEADS | {name: one for name, one in theirs.items() if name != "deep.click"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("click *", "cannot be read"),
        ("click dwell", "cannot be read at character"),
        ("click * (1", "cannot be read"),
        ("click\0", "cannot be read"),
        ("3 * 4", "names no output"),
        ("a.click.real", r"'a.click.real' at character 1 cannot stand"),
        ("(click + 1).real", "cannot stand"),
        ("1 + click[0]", r"'click\[0\]' at character 5 cannot stand"),
        ("click if dwell else 0", "cannot stand in a formula, which has names of outputs"),
        ("click > 0.5", "'click > 0.5' at character 1 cannot stand"),
        ("click @ dwell", "cannot stand"),
        ("click // 2", "cannot stand"),
        ("~click", "cannot stand"),
        ("click * True", "'True' at character 9 cannot stand"),
        ("click * 2j", "cannot stand"),
        ("click * 'a'", "cannot stand"),
        ("(lambda: 1)() + click", "cannot stand"),
        ("__import__('os').system('true')", "cannot stand"),
        ("click * abs(dwell)", r"'abs\(dwell\)' at character 9: there is no function 'abs'; there are min, max, log1p"),
        ("exp(click, 2)", "exp takes one value, got 2"),
        ("min(click)", "min takes two values or more, got 1"),
        ("exp(x=click)", "cannot stand"),
        ("max(*click)", "cannot stand"),
        ("click * 1e999", "too large"),
        ("click * 1e39", "too large"),
        ("click * 1" + "0" * 400, "too large"),
        ("click + " * 200 + "click", f"may have {LENGTH_MAX}"),
        ("-" * (DEPTH_MAX + 2) + "click", f"nested more than {DEPTH_MAX} deep"),
        ("(" * 400 + "click" + ")" * 400, "cannot be read"),
    ],
)
def test_what_is_no_formula_is_refused_with_what_and_where(text, words):
    with pytest.raises(Misconfigured, match=words) as wrong:
        Formula(text)
    assert str(wrong.value).startswith("score = ")


def test_an_output_that_the_model_does_not_give_is_named_beside_those_that_it_gives():
    with pytest.raises(NotFound, match=r"no output 'likes', 'shares'; it gives click, conversion, dwell"):
        Formula("click + shares + likes").of(HEADS)


def test_what_cannot_be_computed_stands_last_and_what_overflows_first():
    heads = {"click": np.array([0.0, 0.2, -2.0, 100.0, 0.4], np.float32)}
    np.testing.assert_allclose(Formula("log1p(click)").of(heads), np.log1p([0.0, 0.2, 0.0, 100.0, 0.4]), rtol=1e-6)
    found = Formula("exp(click)").of(heads)
    assert found[3] == found[4] == found.max() > 1 and np.isfinite(found).all()
    assert Formula("log1p(click - 9000)").of(heads).tolist() == [0.0] * 5
    assert Formula("click / 0").of({"click": np.zeros(2, np.float32)}).tolist() == [0.0, 0.0]
    assert len(Formula("1 / click").of({"click": np.empty(0, np.float32)})) == 0


@given(st.text("click dwelsqrtonpmax0123456789.+-*/(),[]{}:='\"\\\n_", max_size=40))
def test_any_text_is_a_formula_or_misconfigured(text):
    try:
        made = Formula(text)
    except Misconfigured:
        return
    found = made.of(dict.fromkeys(made.names, HEADS["click"]))
    assert found.shape == (3,) and np.isfinite(found).all()
