"""A first look at a model: it is run on a few rows, to see what it takes, what comes out, and whether rows are rows.

Rules of the room:
- Runs beside any framework: numpy and the nouns of the house are all it uses.
- What was found out is said in sentences for the person who adds the model; what could not be is said too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from millstream import errors
from millstream.models.runtimes import Found
from millstream.types import DTYPES, Array, TensorSpec

Predict = Callable[[dict[str, Array]], dict[str, Array]]

KEPT_ROWS_MAX = 4  # of an example, in model.toml
_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
_SIZES = (8, 32, 224, 1)  # tried, in this order, where a model leaves a size free and nobody gave an example


def datatype(dtype: np.dtype[Any]) -> str:
    """The V2 name of a numpy type. One that no request can carry: Misconfigured."""
    if dtype.kind in "SU":
        return "BYTES"
    found = _NAMES.get(dtype.newbyteorder("<"))
    if found is None:
        raise errors.Misconfigured(f"arrays of {dtype} cannot travel; the model may use {', '.join(DTYPES)}")
    return found


def datatype_called(name: str) -> str:
    """The V2 name of what TensorFlow and Keras call "float32", "bfloat16", "string" ..."""
    try:
        return {"string": "BYTES", "bfloat16": "BF16"}.get(name) or datatype(np.dtype(name))
    except TypeError:
        raise errors.Misconfigured(f"tensors of {name} cannot travel; the model may use {', '.join(DTYPES)}") from None


def halves(specs: tuple[TensorSpec, ...], bits: set[str]) -> tuple[TensorSpec, ...]:
    """The specs, of which those in `bits` are BF16: its raw bits look like UINT16."""
    return tuple(TensorSpec(one.name, "BF16", one.shape) if one.name in bits else one for one in specs)


def specs_of(arrays: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    """What arrays with their rows first are, the number of rows left free."""
    return tuple(TensorSpec(name, datatype(array.dtype), (-1, *array.shape[1:])) for name, array in arrays.items())


def named(values: Any, names: Sequence[str]) -> dict[str, Any]:
    """What a model gave (one tensor, several, or a dict of them) by name: its own, else `names` in order, else
    "output", or "output_0" and on."""
    if isinstance(values, Mapping):
        return {str(name): value for name, value in values.items()}
    if not isinstance(values, list | tuple):
        return {names[0] if names else "output": values}
    if len(names) != len(values):
        names = [f"output_{number}" for number in range(len(values))] if len(values) > 1 else ["output"]
    return dict(zip(names, values, strict=True))


def fit(given: Mapping[str, Array], inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """A person's example as the model's inputs: columns become a matrix where it takes one, a lone array gets the name
    of the lone input, numbers get the datatypes. What does not fit: Misconfigured, saying what would."""
    if len(inputs) == 1 and inputs[0].name not in given:
        given = {inputs[0].name: _matrix(given) if len(given) > 1 else next(iter(given.values()))}
    missing = [spec.name for spec in inputs if spec.name not in given]
    if missing:
        raise errors.Misconfigured(
            f"the example has no {', '.join(missing)}; it has {', '.join(given)}, the model takes {told(inputs)}"
        )
    return {spec.name: _as(given[spec.name], spec) for spec in inputs}


def told(specs: Sequence[TensorSpec]) -> str:
    """As a person types them: `x:FP32[-1,3] ...`."""
    return " ".join(f"{spec.name}:{spec.datatype}[{','.join(map(str, spec.shape))}]" for spec in specs)


def look(predict: Predict, inputs: tuple[TensorSpec, ...], given: Mapping[str, Array], notes: Sequence[str]) -> Found:
    """Run it on `given`, or on rows that are made up, once alone and once among three, and tell what was found."""
    if given:
        example = fit(given, inputs)
        outputs = _answered(predict, example)
        notes = (*notes, "the example is yours")
    else:
        example, outputs = _made_up(predict, inputs)
        notes = (*notes, "the example is made up: --example FILE gives a real one, which proves more")
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise errors.Misconfigured(
                f"the model answers NaN or infinity in {name!r} to {'the' if given else 'a made-up'} example; "
                f"{'correct one of them' if given else 'give a real one: --example FILE'}"
            )
    shapes = {name: array.shape for name, array in outputs.items()}
    types = {name: datatype(array.dtype) for name, array in outputs.items()}
    if any(spec.shape[:1] != (-1,) for spec in inputs):
        notes = (*notes, "its first dimension is fixed: requests are computed one by one")
        specs = tuple(TensorSpec(name, types[name], shape) for name, shape in shapes.items())
        return Found(inputs, specs, example, tuple(notes))
    one, three = _rows(example, 1), _rows(example, 3)
    alone, among = predict(one), predict(three)
    for name, array in alone.items():
        shapes[name] = _free(array.shape, among[name].shape, shapes[name])
    shapes, more = _other_sizes(predict, inputs, one, shapes)
    loose = [name for name in shapes if (alone[name].shape[:1], among[name].shape[:1]) != ((1,), (3,))]
    if loose:
        # A first dimension that is no row is told as a size: the engine then computes requests one by one.
        shapes |= {name: alone[name].shape[:1] + shapes[name][1:] for name in loose}
        more = (*more, f"{', '.join(loose)}: does not follow the rows, so requests are computed one by one")
    elif differs := _differs(alone, among):
        if _differs(alone, predict(one)):
            more = (*more, f"{differs}: not the same twice for the same input")
        else:
            # One row a call is what a fixed first dimension means to the engine.
            inputs = tuple(TensorSpec(spec.name, spec.datatype, (1, *spec.shape[1:])) for spec in inputs)
            shapes = {name: (1, *shape[1:]) for name, shape in shapes.items()}
            more = (*more, f"{differs}: a row's answer changes with the rows beside it, so it takes one row a request")
            example = one
    else:
        more = (*more, "rows join: a row's answer is the same alone and among others")
    specs = tuple(TensorSpec(name, types[name], tuple(shape)) for name, shape in shapes.items())
    return Found(inputs, specs, _rows(example, min(KEPT_ROWS_MAX, _count(example))), (*notes, *more))


def _answered(predict: Predict, example: dict[str, Array]) -> dict[str, Array]:
    """The answer to a person's example."""
    try:
        return predict(example)
    except ImportError:  # what is missing is said by whoever knows which Python this is
        raise
    except Exception as error:  # whatever a program raises
        raise errors.Misconfigured(
            f"the model fails on the example {told(specs_of(example))} ({type(error).__name__}: {str(error)[:300]}); "
            "correct the example; where a datatype is not what the model takes, type it: --input 'x:FP32[-1,3]'"
        ) from error


def _made_up(predict: Predict, inputs: Sequence[TensorSpec]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The first made-up example that the model answers, and its answer."""
    why: Exception | None = None
    for example in _guesses(inputs):
        try:
            return example, predict(example)
        except ImportError:
            raise
        except Exception as error:  # whatever a program raises
            why = why or error
    raise errors.Misconfigured(
        f"the model fails on made-up rows for {told(inputs)} ({type(why).__name__}: {str(why)[:300]}); give it a real "
        "example: --example FILE (.json, .npy, .npz, .csv, .parquet)"
    ) from why


def _guesses(inputs: Sequence[TensorSpec]) -> Iterator[dict[str, Array]]:
    random = np.random.default_rng(0)
    for size in _SIZES:
        example = {}
        for spec in inputs:
            shape = [3 if spec.shape[0] < 0 else spec.shape[0]] if spec.shape else []
            shape += [size if s < 0 else s for s in spec.shape[1:]]
            dtype = DTYPES[spec.datatype]
            if spec.datatype.startswith("FP"):
                example[spec.name] = random.random(shape).astype(dtype)
            else:
                example[spec.name] = np.full(shape, "" if spec.datatype == "BYTES" else 0, dtype)
        yield example
        if not any(s < 0 for spec in inputs for s in spec.shape[1:]):
            return


def _rows(example: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """The example with so many rows; numbers that have to be repeated are varied, so that no two rows are the same."""
    found = {}
    for name, array in example.items():
        if len(array) >= rows:
            found[name] = array[:rows].copy()
            continue
        repeated = np.resize(array, (rows, *array.shape[1:]))
        if array.dtype.kind == "f":
            scale = np.linspace(1, 0.8, rows).reshape(-1, *[1] * (array.ndim - 1))
            repeated = (repeated * scale).astype(array.dtype)
        found[name] = repeated
    return found


def _count(example: Mapping[str, Array]) -> int:
    return min((len(array) for array in example.values()), default=1)


def _free(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """One shape for all of these, -1 where they differ; where even the number of dimensions does, the first."""
    if len({len(shape) for shape in shapes}) > 1:
        return shapes[0]
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))


def _other_sizes(
    predict: Predict, inputs: Sequence[TensorSpec], one: Mapping[str, Array], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Where sizes after the rows are free, those of the outputs that follow them."""
    if not any(size < 0 for spec in inputs for size in spec.shape[1:]):
        return shapes, ()
    longer = {}
    for spec in inputs:
        array = one[spec.name]
        wanted = [
            have * 2 if said < 0 and axis else have
            for axis, (have, said) in enumerate(zip(array.shape, spec.shape, strict=True))
        ]
        longer[spec.name] = np.resize(array, wanted)
    try:
        found = predict(longer)
    except Exception as error:  # whatever a program raises
        return shapes, (f"twice the free sizes of the example were refused: {str(error)[:200]}",)
    merged = {}
    for name, shape in shapes.items():
        after = found[name].shape
        merged[name] = shape[:1] + _free(shape[1:], after[1:]) if len(after) == len(shape) else shape
    return merged, ()


def _differs(one: Mapping[str, Array], many: Mapping[str, Array]) -> str:
    """The name of an output whose first row is not the same in both; "" when there is none."""
    for name, array in one.items():
        first, other = array[:1], many[name][:1]
        if first.shape != other.shape:
            return name
        if first.dtype.kind == "f":
            if not np.allclose(first, other, rtol=1e-3, atol=1e-5, equal_nan=True):
                return name
        elif not (first == other).all():
            return name
    return ""


def _matrix(columns: Mapping[str, Array]) -> Array:
    lengths = {array.shape for array in columns.values()}
    if (
        len(lengths) > 1
        or len(next(iter(lengths))) != 1
        or any(array.dtype.kind not in "biuf" for array in columns.values())
    ):
        raise errors.Misconfigured(
            f"the model takes one array; the example has {len(columns)} that are no columns of numbers: "
            f"{', '.join(columns)}"
        )
    return np.stack(list(columns.values()), axis=1)


def _as(array: Array, spec: TensorSpec) -> Array:
    """The array with the spec's datatype and number of dimensions."""
    shape = spec.shape
    if array.ndim == len(shape) - 1:
        if all(said in (-1, got) for said, got in zip(shape[1:], array.shape, strict=True)) and shape[-1] != 1:
            array = array[None]
        else:
            array = array[..., None]
    if array.ndim != len(shape) or any(said not in (-1, got) for said, got in zip(shape, array.shape, strict=True)):
        raise errors.Misconfigured(
            f"the example's {spec.name!r} is {list(array.shape)}, the model takes {told([spec])} (-1: any size)"
        )
    try:
        if spec.datatype == "BF16" and array.dtype.kind == "f":
            return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2")
        return np.ascontiguousarray(array.astype(DTYPES[spec.datatype]))
    except (ValueError, TypeError, OverflowError) as error:
        raise errors.Misconfigured(f"the example's {spec.name!r} is no {spec.datatype} array: {error}") from error
