"""`--to onnx`: a model that is a program becomes a file that is none, if it then answers the same.

Rules of the room:
- Only converters that somebody keeps: skl2onnx and onnxmltools, PyTorch's own, Keras's own, tf2onnx.
- What they make keeps the names, and the number of dimensions, that the program has: its callers see no difference.
- The conversion is proved or refused (`proof.py`).
- Converting loads the program in this process, as its framework wants: this is for a command, not for a server.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from millstream import errors
from millstream.models.manifest import Manifest
from millstream.models.runtimes import PROGRAMS, trial
from millstream.ops.proof import SAMPLES, compared
from millstream.types import DTYPES, Array, TensorSpec

FILE = "model.onnx"
OPSET, OPSET_ML = 17, 3
_LOCALE = "C.UTF-8"  # in which texts become lower case; ONNX Runtime's own is not there on every machine
Say = Callable[[str], None]
_ELEMENTS = {
    "BOOL": "BOOL",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "BYTES": "STRING",
}
"""Datatypes that a conversion must keep, and ONNX's names of them. Floats may come narrower: skl2onnx has FP32."""


class Conversion(msgspec.Struct, frozen=True):
    """The file, who made it, and how much its answers differ: the largest absolute and relative difference over `rows`
    rows, and the share of labels that agree (None: there are none)."""

    model: bytes
    converter: str
    rows: int
    absolute: float
    relative: float
    agreement: float | None

    def lineage(self) -> dict[str, object]:
        """What is recorded with the version."""
        told: dict[str, object] = {
            "converter": self.converter,
            "rows": self.rows,
            "absolute_difference": self.absolute,
            "relative_difference": self.relative,
        }
        return told if self.agreement is None else told | {"label_agreement": self.agreement}


def to_onnx(folder: Path, manifest: Manifest, example: dict[str, Array], tolerance: float, say: Say) -> Conversion:
    """The version in `folder` as an ONNX file that answers the same to `example` and rows like it: within `tolerance`
    relative plus a tenth of it absolute, every label alike. No converter, or not the same: Misconfigured; a converter
    is not installed: Missing."""
    convert = _CONVERTERS.get(manifest.format)
    if convert is None:
        raise errors.Misconfigured(
            f"format {manifest.format!r} has no kept converter to ONNX; there are some for {', '.join(_CONVERTERS)}"
        )
    with _on_path(folder, manifest):
        runtime = importlib.import_module(PROGRAMS[manifest.format])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made, converter = convert(folder, manifest, runtime.load(folder, manifest, "cpu"))
                model = _aligned(made, manifest).SerializeToString()
            except ImportError as error:
                raise errors.Missing.extra("convert", f"converting to ONNX ({error})") from error
            except errors.Error:
                raise
            except Exception as error:  # converters raise whatever they like
                raise errors.Misconfigured(
                    f"{manifest.file} cannot be converted: {type(error).__name__}: {_short(error)}; add it without --to"
                ) from error
        fresh = runtime.load(folder, manifest, "cpu")  # a converter may have left its mark on the other
        absolute, relative, agreement = compared(fresh, model, manifest, example, tolerance)
    labels = "" if agreement is None else f", {agreement:.1%} of labels agree"
    say(
        f"converted by {converter}; over {SAMPLES} rows the answers differ by at most {absolute:.2g} absolute, "
        f"{relative:.2g} relative{labels}"
    )
    return Conversion(model, converter, SAMPLES, absolute, relative, agreement)


@contextmanager
def _on_path(folder: Path, manifest: Manifest) -> Iterator[None]:
    """The version's own code can be imported."""
    if manifest.code:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if manifest.code:
            sys.path.remove(str(folder))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


# What each framework has.


def _sklearn(folder: Path, manifest: Manifest, source: Any) -> tuple[Any, str]:
    from skl2onnx import convert_sklearn
    from skl2onnx.common import data_types

    from millstream.models.runtimes.sklearn import parts

    estimator = source.estimator
    kinds = {"BYTES": data_types.StringTensorType, "BOOL": data_types.BooleanTensorType}
    types = []
    for spec in manifest.inputs:
        kind = kinds.get(spec.datatype)
        if kind is None:
            whole = spec.datatype.startswith(("INT", "UINT"))
            kind = data_types.Int64TensorType if whole else data_types.FloatTensorType
        types.append((spec.name, kind([None, *(spec.shape[1:] or (1,))])))
    library = type(estimator).__module__.partition(".")[0]
    if type(estimator).__name__ == "Booster":
        tools = importlib.import_module("onnxmltools.convert")
        convert = getattr(tools, f"convert_{library}")
        floats = importlib.import_module("onnxmltools.convert.common.data_types").FloatTensorType
        return convert(estimator, initial_types=[(n, floats(k.shape)) for n, k in types]), _version("onnxmltools")
    boosted = _know_boosters()
    options: dict[int, dict[str, object]] = {
        id(part): {"locale": _LOCALE} for part in parts(estimator) if hasattr(part, "build_analyzer")
    }
    if hasattr(estimator, "classes_") and hasattr(estimator, "predict_proba"):  # which would else be a list of tables
        options[id(estimator)] = {"zipmap": False}
    made = convert_sklearn(
        estimator, initial_types=types, options=options, target_opset={"": OPSET, "ai.onnx.ml": OPSET_ML}
    )
    del made.graph.output[len(manifest.outputs) :]  # scores behind the labels, which the estimator is not asked for
    return made, ", ".join([_version("skl2onnx"), *([_version("onnxmltools")] if boosted else [])])


def _know_boosters() -> bool:
    """Teach skl2onnx the estimators of XGBoost and LightGBM, as far as those are installed; whether there are any."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common import shape_calculator

    known = False
    for library, package, classes in (
        ("xgboost", "xgboost.operator_converters.XGBoost", ("XGBClassifier", "XGBRegressor")),
        ("lightgbm", "lightgbm.operator_converters.LightGbm", ("LGBMClassifier", "LGBMRegressor")),
    ):
        try:
            owner = importlib.import_module(library)
            converter = getattr(importlib.import_module(f"onnxmltools.convert.{package}"), f"convert_{library}")
        except ImportError:
            continue
        known = True
        for name in classes:
            classifies = name.endswith("Classifier")
            shapes = (
                shape_calculator.calculate_linear_classifier_output_shapes
                if classifies
                else shape_calculator.calculate_linear_regressor_output_shapes
            )
            options = {"nocl": [True, False], "zipmap": [True, False, "columns"]} if classifies else {"split": None}
            update_registered_converter(getattr(owner, name), f"Millstream{name}", shapes, converter, options=options)
    return known


def _torch(folder: Path, manifest: Manifest, source: Any) -> tuple[Any, str]:
    import onnx
    import torch

    program = source.program
    names = [spec.name for spec in manifest.inputs]
    gives = [spec.name for spec in manifest.outputs]
    if program.kind == "exported":
        exported = torch.onnx.export(
            program.exported, dynamo=True, verbose=False, input_names=names, output_names=gives
        )
        return exported.model_proto, f"torch.onnx of PyTorch {torch.__version__}"
    example = tuple(torch.from_numpy(array) for array in _examples(manifest.inputs))
    free = [{axis: axis for axis, size in enumerate(spec.shape) if size < 0} for spec in manifest.inputs]
    if program.kind == "script":  # only the older exporter reads these
        held = io.BytesIO()
        axes = {
            spec.name: {
                axis: f"{spec.name}_{axis}" if axis else "rows" for axis, size in enumerate(spec.shape) if size < 0
            }
            for spec in (*manifest.inputs, *manifest.outputs)
        }
        torch.onnx.export(
            program.module, example, held, dynamo=False, input_names=names, output_names=gives, dynamic_axes=axes
        )
        return onnx.load_from_string(held.getvalue()), f"torch.onnx (TorchScript) of PyTorch {torch.__version__}"
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(axes, dynamic) for axes in free)
    exported = torch.onnx.export(
        program.module,
        example,
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=gives,
        dynamic_shapes=shapes,
    )
    return exported.model_proto, f"torch.onnx of PyTorch {torch.__version__}"


def _keras(folder: Path, manifest: Manifest, source: Any) -> tuple[Any, str]:
    import keras
    import onnx

    importlib.import_module("tf2onnx" if keras.backend.backend() == "tensorflow" else "onnxscript")
    source.predict(dict(zip([s.name for s in manifest.inputs], _examples(manifest.inputs), strict=True)))
    with tempfile.TemporaryDirectory() as aside:
        file = str(Path(aside) / FILE)
        source.model.export(file, format="onnx", verbose=False)
        return onnx.load(file), f"Keras {keras.__version__} on {keras.backend.backend()}"


def _tensorflow(folder: Path, manifest: Manifest, source: Any) -> tuple[Any, str]:
    import tensorflow as tf
    import tf2onnx

    names = [spec.name for spec in manifest.inputs]
    signature = [
        tf.TensorSpec([None if size < 0 else size for size in spec.shape], _tf_type(spec), name=f"input_{number}")
        for number, spec in enumerate(manifest.inputs)
    ]
    gives = [spec.name for spec in manifest.outputs]

    def call(*given: Any) -> Any:
        found = source.call(**dict(zip(names, given, strict=True)))
        return [found[name] for name in gives]

    made, _ = tf2onnx.convert.from_function(tf.function(call), input_signature=signature, opset=OPSET)
    return made, _version("tf2onnx")


def _tf_type(spec: TensorSpec) -> Any:
    import tensorflow as tf

    return {"BYTES": tf.string, "BF16": tf.bfloat16}.get(spec.datatype) or tf.as_dtype(DTYPES[spec.datatype])


_CONVERTERS: dict[str, Callable[[Path, Manifest, Any], tuple[Any, str]]] = {
    "sklearn": _sklearn,
    "torch": _torch,
    "keras": _keras,
    "tensorflow": _tensorflow,
}


def _examples(specs: tuple[TensorSpec, ...], rows: int = 3) -> list[Array]:
    """Arrays to trace with."""
    shapes = [
        tuple(
            (size if size >= 0 else 8) if axis else (size if size >= 0 else rows)
            for axis, size in enumerate(spec.shape)
        )
        for spec in specs
    ]
    return [np.zeros(shape, DTYPES[spec.datatype]) for shape, spec in zip(shapes, specs, strict=True)]


# The program's own names and dimensions.


def _aligned(model: Any, manifest: Manifest) -> Any:
    """The model with inputs and outputs called and shaped as the manifest says, in its order."""
    graph = model.graph
    constants = {one.name for one in graph.initializer}
    takes = [value for value in graph.input if value.name not in constants]
    gives = list(graph.output)
    for side, values, specs in (("takes", takes, manifest.inputs), ("gives", gives, manifest.outputs)):
        if len(values) != len(specs):
            raise errors.Misconfigured(
                f"{manifest.file} {side} {trial.told(specs)}, and converted "
                f"{', '.join(value.name for value in values)}: they do not match; add it without --to"
            )
    there = {value.name for value in (*takes, *gives)}
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.name not in there:  # a converter may call something within as well
            _rename(graph, spec.name, f"{spec.name}__within")
    del graph.input[:], graph.output[:]
    before = [_taken(graph, spec, value) for spec, value in _matched(manifest.inputs, takes)]
    after = [_given(graph, spec, value) for spec, value in _matched(manifest.outputs, gives)]
    nodes = [*(node for made in before for node in made), *graph.node, *(node for made in after for node in made)]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _matched(specs: tuple[TensorSpec, ...], values: list[Any]) -> list[tuple[TensorSpec, Any]]:
    """By name where the names are the same, else by place."""
    by_name = {value.name: value for value in values}
    if set(by_name) == {spec.name for spec in specs}:
        return [(spec, by_name[spec.name]) for spec in specs]
    return list(zip(specs, values, strict=True))


def _taken(graph: Any, spec: TensorSpec, value: Any) -> list[Any]:
    """Declare the input; the nodes from it to what the graph had."""
    element = value.type.tensor_type.elem_type
    graph.input.append(_value(spec, element))
    if _rank(value) == len(spec.shape) and value.name == spec.name:
        return []
    inner = f"{value.name}__taken"
    _rename(graph, value.name, inner)
    return _reshaped(graph, spec.name, inner, None if _rank(value) == len(spec.shape) else [-1, *spec.shape[1:], 1])


def _given(graph: Any, spec: TensorSpec, value: Any) -> list[Any]:
    """Declare the output; the nodes from what the graph had to it."""
    import onnx

    element = value.type.tensor_type.elem_type
    wanted = _ELEMENTS.get(spec.datatype)
    kind = onnx.TensorProto.DataType.Value(wanted) if wanted else element
    graph.output.append(_value(spec, kind))
    shape = None if _rank(value) == len(spec.shape) else [-1, *spec.shape[1:]]
    if shape is None and value.name == spec.name and kind == element:
        return []
    inner = f"{value.name}__given"
    _rename(graph, value.name, inner)
    nodes = []
    if kind != element:
        nodes.append(onnx.helper.make_node("Cast", [inner], [f"{inner}__cast"], to=kind))
        inner = f"{inner}__cast"
    return [*nodes, *_reshaped(graph, inner, spec.name, shape)]


def _reshaped(graph: Any, source: str, target: str, shape: list[int] | None) -> list[Any]:
    import onnx

    if shape is None:
        return [onnx.helper.make_node("Identity", [source], [target])]
    if shape.count(-1) > 1:
        raise errors.Misconfigured(f"{target}: has another number of dimensions when converted; add it without --to")
    name = f"{target}__shape"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), name))
    return [onnx.helper.make_node("Reshape", [source, name], [target])]


def _value(spec: TensorSpec, element: int) -> Any:
    import onnx

    shape = [
        size if size >= 0 else ("rows" if not axis else f"{spec.name}_{axis}") for axis, size in enumerate(spec.shape)
    ]
    return onnx.helper.make_tensor_value_info(spec.name, element, shape)


def _rank(value: Any) -> int:
    return len(value.type.tensor_type.shape.dim)


def _rename(graph: Any, old: str, new: str) -> None:
    """Everywhere in the graph and the graphs within it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, old, new)
