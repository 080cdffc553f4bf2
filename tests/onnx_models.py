"""Small ONNX files for tests: each is a whole model that a stranger's training could have left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def graph(path: Path, nodes, inputs, outputs, constants=()) -> Path:
    """Save a model. `inputs`, `outputs`: (name, TensorProto type, shape); a str in a shape is a free dimension."""
    values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    tables = [numpy_helper.from_array(array, name) for name, array in constants]
    made = helper.make_graph(nodes, "made_by_a_test", *values, tables)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def linear(path: Path, weights: np.ndarray, bias: float = 0.0, rows="rows") -> Path:
    """y = x @ weights + bias: float32 [rows, n] to float32 [rows, k]."""
    n, k = weights.shape
    return graph(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])],
        [("x", TensorProto.FLOAT, [rows, n])],
        [("y", TensorProto.FLOAT, [rows, k])],
        [("w", weights.astype(np.float32)), ("b", np.full(k, bias, np.float32))],
    )


def scaled(path: Path, scale: float, width: int = 4) -> Path:
    """y = x * scale, element by element, so that rows are independent to the last bit."""
    return graph(
        path,
        [helper.make_node("Mul", ["x", "s"], ["y"])],
        [("x", TensorProto.FLOAT, ["rows", width])],
        [("y", TensorProto.FLOAT, ["rows", width])],
        [("s", np.array(scale, np.float32))],
    )


def stamped(path: Path, number: float) -> Path:
    """Two outputs: y = x + number, and version = number in every row; both say which version computed the row."""
    return graph(
        path,
        [
            helper.make_node("Add", ["x", "n"], ["y"]),
            helper.make_node("Mul", ["x", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "n"], ["version"]),
        ],
        [("x", TensorProto.FLOAT, ["rows", 1])],
        [("y", TensorProto.FLOAT, ["rows", 1]), ("version", TensorProto.FLOAT, ["rows", 1])],
        [("n", np.array(number, np.float32)), ("zero", np.array(0, np.float32))],
    )


def table(path: Path, rows: int = 5) -> Path:
    """y = table[i]: INT64 [rows] to float32 [rows, 2]; an index outside the table is refused by the graph."""
    return graph(
        path,
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [("i", TensorProto.INT64, ["rows"])],
        [("y", TensorProto.FLOAT, ["rows", 2])],
        [("table", np.arange(rows * 2, dtype=np.float32).reshape(rows, 2))],
    )


def sums(path: Path) -> Path:
    """y = sum of each row: float32 [rows, any length] to float32 [rows]."""
    return graph(
        path,
        [helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)],
        [("x", TensorProto.FLOAT, ["rows", "length"])],
        [("y", TensorProto.FLOAT, ["rows"])],
        [("axis", np.array([1], np.int64))],
    )


def same(path: Path, kind: int, shape=("rows", 1)) -> Path:
    """y = x of any element type."""
    return graph(path, [helper.make_node("Identity", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])


def recurrent(path: Path, axis: int = 0, width: int = 3) -> Path:
    """h' = tanh(x + h / 2), c' = c + h', y = c' * 2: element by element, so every bit is the same in any batch.

    x [rows, width]; the states h, c are [rows, width], or [1, rows, width] with `axis` 1, as an LSTM has them.
    """
    shape = ["rows", width] if axis == 0 else [1, "rows", width]
    nodes = [
        helper.make_node("Mul", ["h", "half"], ["h2"]),
        helper.make_node("Add", ["x", "h2"], ["s"]),
        helper.make_node("Tanh", ["s"], ["h_out"]),
        helper.make_node("Add", ["c", "h_out"], ["c_out"]),
        helper.make_node("Mul", ["c_out", "two"], ["yy"]),
    ]
    constants = [("half", np.array(0.5, np.float32)), ("two", np.array(2, np.float32))]
    if axis:
        nodes.append(helper.make_node("Squeeze", ["yy", "zero"], ["y"]))
        constants.append(("zero", np.array([0], np.int64)))
    else:
        nodes.append(helper.make_node("Identity", ["yy"], ["y"]))
    return graph(
        path,
        nodes,
        [("x", TensorProto.FLOAT, ["rows", width]), ("h", TensorProto.FLOAT, shape), ("c", TensorProto.FLOAT, shape)],
        [
            ("y", TensorProto.FLOAT, ["rows", width]),
            ("h_out", TensorProto.FLOAT, shape),
            ("c_out", TensorProto.FLOAT, shape),
        ],
        constants,
    )


def lstm(path: Path, width: int = 3, hidden: int = 4) -> Path:
    """ONNX's own LSTM, one frame a step: x [1, rows, width], h and c [1, rows, hidden], y [rows, hidden]."""
    random = np.random.default_rng(5)
    shape = [1, "rows", hidden]
    return graph(
        path,
        [
            helper.make_node("Unsqueeze", ["x", "zero"], ["frame"]),
            helper.make_node(
                "LSTM", ["frame", "w", "r", "", "", "h", "c"], ["all", "h_out", "c_out"], hidden_size=hidden
            ),
            helper.make_node("Squeeze", ["h_out", "zero"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["rows", width]), ("h", TensorProto.FLOAT, shape), ("c", TensorProto.FLOAT, shape)],
        [
            ("y", TensorProto.FLOAT, ["rows", hidden]),
            ("h_out", TensorProto.FLOAT, shape),
            ("c_out", TensorProto.FLOAT, shape),
        ],
        [
            ("w", random.normal(size=(1, 4 * hidden, width)).astype(np.float32)),
            ("r", random.normal(size=(1, 4 * hidden, hidden)).astype(np.float32)),
            ("zero", np.array([0], np.int64)),
        ],
    )


def pooled(path: Path, masked: bool = True) -> Path:
    """y = the sum of `audio` [rows, samples] over its first `sizes` [rows] samples; z = 2 * audio, as long as the
    input. Not `masked`: the sum of all, and one for every sample, padding included."""
    nodes = [
        helper.make_node("Shape", ["audio"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["length"], axis=0),
        helper.make_node("Range", ["zero", "length", "one"], ["places"]),
        helper.make_node("Unsqueeze", ["sizes", "axes"], ["column"]),
        helper.make_node("Less", ["places", "column"], ["real"]),
        helper.make_node("Cast", ["real"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["audio", "mask"] if masked else ["audio", "unit"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axes"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["length"], ["longest"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["sum", "nothing" if masked else "longest"], ["y"]),
        helper.make_node("Add", ["audio", "audio"], ["z"]),
    ]
    return graph(
        path,
        nodes,
        [("audio", TensorProto.FLOAT, ["rows", "samples"]), ("sizes", TensorProto.INT64, ["rows"])],
        [("y", TensorProto.FLOAT, ["rows"]), ("z", TensorProto.FLOAT, ["rows", "samples"])],
        [
            ("zero", np.array(0, np.int64)),
            ("one", np.array(1, np.int64)),
            ("axes", np.array([1], np.int64)),
            ("unit", np.array(1, np.float32)),
            ("nothing", np.array(0, np.float32)),
        ],
    )


def attending(
    path: Path, width: int, history: int = 0, weight: float = 0.5, click=False, broken=False, once=False
) -> Path:
    """A ranker: `probability` float32 [rows] of `tokens` UINT32 [rows, width] and, of a `history` so wide, what stands
    in it, the last places counting most. Sums are of whole numbers, so rows are independent to the last bit. `click`:
    gives that too; `broken`: the graph refuses all but zeros; `once`: one row of history may stand for all rows."""
    sums = lambda name, last: [  # noqa: E731
        helper.make_node("Mod", [name, f"{name}_prime"], [f"{name}_left"]),
        helper.make_node("Cast", [f"{name}_left"], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_float", f"{name}_counts"], [f"{name}_counted"]),
        helper.make_node("ReduceSum", [f"{name}_counted", "axis"], [last], keepdims=0),
    ]
    widest = max(width, history)
    counts = np.arange(widest, dtype=np.float32) + 1
    nodes = [*sums("tokens", "of_rows"), helper.make_node("Mul", ["of_rows", "weight"], ["weighed"])]
    inputs = [("tokens", TensorProto.UINT32, ["rows", width])]
    constants = [
        ("axis", np.array([1], np.int64)),
        ("weight", np.array(weight, np.float32)),
        ("share", np.array(0.5 / (97 * widest * widest), np.float32)),
        ("tokens_prime", np.array(97, np.uint32)),
        ("tokens_counts", counts[-width:]),
    ]
    last = "weighed"
    if history:
        nodes += [*sums("history", "of_history"), helper.make_node("Add", [last, "of_history"], ["both"])]
        inputs.append(("history", TensorProto.UINT32, ["histories" if once else "rows", history]))
        constants += [("history_prime", np.array(89, np.uint32)), ("history_counts", counts[-history:])]
        last = "both"
    if broken:
        nodes += [
            helper.make_node("Cast", ["tokens_left"], ["places"], to=TensorProto.INT64),
            helper.make_node("Gather", ["nothing", "places"], ["nothings"]),
            helper.make_node("ReduceSum", ["nothings", "axis"], ["none"], keepdims=0),
            helper.make_node("Add", [last, "none"], ["sum"]),
        ]
        constants.append(("nothing", np.zeros(1, np.float32)))
        last = "sum"
    named = ["probability", *(["click"] if click else [])]
    nodes += [helper.make_node("Mul", [last, "share"], [name]) for name in named]
    return graph(path, nodes, inputs, [(name, TensorProto.FLOAT, ["rows"]) for name in named], constants)


def logarithm(path: Path, width: int = 2) -> Path:
    """y = log(x), element by element: NaN for what is below 0, minus infinity for 0."""
    return graph(
        path,
        [helper.make_node("Log", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["rows", width])],
        [("y", TensorProto.FLOAT, ["rows", width])],
    )


def weighing(path: Path, number: float, size: int) -> Path:
    """y = x + number + table[0], where the table is `size` bytes of zeros: float32 [rows, 4] to the same."""
    return graph(
        path,
        [
            helper.make_node("Gather", ["table", "first"], ["nothing"]),
            helper.make_node("Add", ["x", "n"], ["moved"]),
            helper.make_node("Add", ["moved", "nothing"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["rows", 4])],
        [("y", TensorProto.FLOAT, ["rows", 4])],
        [
            ("n", np.array(number, np.float32)),
            ("table", np.zeros(size // 4, np.float32)),
            ("first", np.array(0, np.int64)),
        ],
    )
