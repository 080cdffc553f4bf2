"""The first look at a model, with models that are plain functions: what is concluded from which answers."""

import numpy as np
import pytest

from millstream import errors
from millstream.models.runtimes import trial
from millstream.types import TensorSpec

X = (TensorSpec("x", "FP32", (-1, 3)),)


def look(predict, inputs=X, given=None):
    return trial.look(lambda arrays: {"y": np.asarray(predict(**arrays))}, inputs, given or {}, ())


def notes(found):
    return " | ".join(found.notes)


def test_rows_that_are_independent_join():
    found = look(lambda x: x * 2)
    assert found.outputs == (TensorSpec("y", "FP32", (-1, 3)),) and "rows join" in notes(found)
    assert found.inputs == X and len(found.example["x"]) == 3


def test_rows_that_mind_their_neighbours_come_alone():
    found = look(lambda x: x - x.mean(0))
    assert found.inputs[0].shape == (1, 3) and found.outputs[0].shape == (1, 3) and len(found.example["x"]) == 1
    assert "rows beside it" in notes(found)


def test_what_is_never_the_same_twice_is_said_and_not_taken_for_neighbours():
    random = np.random.default_rng(0)
    found = look(lambda x: x + random.random(x.shape))
    assert "not the same twice" in notes(found) and found.inputs == X


def test_an_output_without_rows_is_told_as_it_is():
    found = look(lambda x: x.sum(0))
    assert found.outputs[0].shape == (3,) and "does not follow the rows" in notes(found)
    assert look(lambda x: x.sum()).outputs[0].shape == ()
    assert look(lambda x: x.ravel()).outputs[0].shape == (3,)  # three numbers a row are no three rows


def test_a_fixed_first_dimension_is_left_alone():
    inputs = (TensorSpec("x", "FP32", (2, 3)),)
    found = look(lambda x: x[:1], inputs)
    assert found.outputs[0].shape == (1, 3) and "one by one" in notes(found)


def test_free_sizes_are_followed_and_tried_until_one_works():
    inputs = (TensorSpec("x", "FP32", (-1, -1)),)
    assert look(lambda x: x * 2, inputs).outputs[0].shape == (-1, -1)
    assert look(lambda x: x.sum(1), inputs).outputs[0].shape == (-1,)

    def wide(x):
        if x.shape[1] < 100:
            raise ValueError("too narrow")
        return x[:, :100]

    found = look(wide, inputs)
    assert found.outputs[0].shape == (-1, 100) and found.example["x"].shape == (3, 224)


def test_a_model_that_no_made_up_row_pleases_asks_for_an_example():
    def picky(x):
        raise KeyError("unknown customer")

    with pytest.raises(errors.Misconfigured, match=r"x:FP32\[-1,3\] \(KeyError: 'unknown customer'\).*--example FILE"):
        look(picky)
    with pytest.raises(errors.Misconfigured, match=r"fails on the example x:FP32\[-1,3\] \(KeyError"):
        look(picky, given={"x": np.ones((1, 3))})


def test_a_missing_module_is_told_as_what_it_is():
    def needs(x):
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    for given in ({}, {"x": np.ones((1, 3))}):
        with pytest.raises(ModuleNotFoundError):
            look(needs, given=given)


def test_an_example_of_one_row_is_varied_to_find_neighbours():
    found = look(lambda x: x - x.mean(0), given={"x": np.ones((1, 3))})
    assert found.inputs[0].shape == (1, 3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"whatever": np.ones((2, 3))}, (2, 3)),
        ({"x": np.ones(3)}, (1, 3)),
        ({"a": np.ones(5), "b": np.ones(5), "c": np.arange(5)}, (5, 3)),
    ],
    ids=["another name", "a bare row", "columns"],
)
def test_an_example_is_made_to_fit(given, expected):
    found = trial.fit(given, X)
    assert found["x"].shape == expected and found["x"].dtype == np.float32


def test_columns_fit_inputs_of_their_own():
    inputs = (TensorSpec("age", "INT64", (-1, 1)), TensorSpec("city", "BYTES", (-1,)))
    found = trial.fit({"age": np.array([1, 2]), "city": np.array(["a", "b"], object), "more": np.ones(2)}, inputs)
    assert found["age"].shape == (2, 1) and found["city"].tolist() == ["a", "b"] and len(found) == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"x": np.ones((2, 4))}, r"'x' is \[2, 4\], the model takes x:FP32\[-1,3\]"),
        ({"x": np.array([["a", "b", "c"]], object)}, "no FP32 array"),
        ({"a": np.ones((2, 2)), "b": np.ones(2)}, "no columns of numbers"),
    ],
)
def test_an_example_that_cannot_fit_is_refused(given, sentence):
    with pytest.raises(errors.Misconfigured, match=sentence):
        trial.fit(given, X)


def test_floats_become_the_bits_of_bfloat16():
    found = trial.fit({"x": np.array([[1.0, -2.0, 0.5]])}, (TensorSpec("x", "BF16", (-1, 3)),))
    assert found["x"].tolist() == [[0x3F80, 0xC000, 0x3F00]]


def test_answers_that_are_not_numbers_are_refused():
    with pytest.raises(errors.Misconfigured, match="NaN or infinity in 'y' to a made-up example"):
        look(lambda x: x * np.inf)
    with pytest.raises(errors.Misconfigured, match="cannot travel"):
        look(lambda x: x.astype(np.complex64))
