"""A network of convolutions in eight bits: a third of the time on a CPU, for numbers that differ a little.

What is said of it is the largest magnitude that each tensor between two layers has. Weights have a scale for each
channel, tensors one each; what a rectifier gives takes all 256 steps, the rest is even around zero (Jacob et al.,
Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018).

Rules of the room:
- Scales are fixed: the numbers of a row never depend on the rows beside it.
- A layer that takes what no rectifier gave, as the first does, stays as it is: there small things matter most, and
  processors without VNNI add two products up in 16 bits, which numbers far from zero overflow.
- What a tensor has beyond its magnitude is cut off, which costs more than a coarser step.
- The file says so in ONNX's own words (a pair of QuantizeLinear and DequantizeLinear for each tensor): what has no
  eight bits computes it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

OPSET: Final = 17
_STEPS, _EVEN = 255, 127
_BIAS_MAX: Final = 2.0**30
"""Steps of 32 bits that a bias takes at most."""


def between(graph: GraphProto) -> list[str]:
    """The tensors that get a scale, by name: what convolutions and sums of layers take and give, behind the rectifier
    where one follows. Of a convolution that stays as it is, what it gives."""
    known, rectified = {one.name for one in graph.initializer}, _rectified(graph)
    after = _after(graph)
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv":
            found |= {node.input[0]} & rectified | {_given(node, after)}
        elif node.op_type == "Add" and not known & set(node.input):
            found |= {*node.input, _given(node, after)}
    return sorted(found)


def eight_bits(model: ModelProto, most: Sequence[float]) -> ModelProto:
    """The model with weights and tensors of eight bits; `most`: the largest magnitude of each of `between`, in that
    order. Misconfigured: that are not as many."""
    names = between(model.graph)
    if len(names) != len(most):
        raise errors.Misconfigured(
            f"a network with {len(names)} tensors between its layers, {len(most)} magnitudes are known; this ONNX "
            "Runtime converts it otherwise: take the version before"
        )
    made = type(model)()
    made.CopyFrom(model)
    _Coarse(made.graph, dict(zip(names, most, strict=True))).rewrite()
    del made.opset_import[:]
    made.opset_import.add(domain="", version=OPSET)
    return made


def plain(path: Path, into: Path) -> None:
    """Write a model in ONNX Runtime's own format as ONNX, with its weights as plain numbers. What ONNX Runtime raises
    where it cannot."""
    import onnxruntime as ort

    level, whole = ort.GraphOptimizationLevel, into.with_name(f"{into.name}.whole")
    for taken, format, given, most in (
        (path, "ORT", whole, level.ORT_DISABLE_ALL),
        (whole, "ONNX", into, level.ORT_ENABLE_BASIC),
    ):
        options = ort.SessionOptions()
        options.graph_optimization_level = most
        options.add_session_config_entry("session.load_model_format", format)
        options.add_session_config_entry("session.save_model_format", "ONNX")
        options.optimized_model_filepath = str(given)
        options.log_severity_level = 4
        ort.InferenceSession(str(taken), options, providers=["CPUExecutionProvider"])
    whole.unlink()


def convert(path: Path, into: Path, most: Sequence[float]) -> None:
    """Write an ONNX file in eight bits. Missing: the package that reads and writes such files is not installed;
    Misconfigured as `eight_bits`."""
    try:
        import onnx
    except ImportError:
        raise errors.Missing.extra("speech", f"{path.name}: eight bits") from None
    onnx.save(eight_bits(onnx.load(path), most), into)


class _Coarse:
    """A graph on its way into eight bits; `most`: by tensor."""

    def __init__(self, graph: GraphProto, most: dict[str, float]) -> None:
        self._graph, self._most = graph, most
        self._rectified = _rectified(graph)
        self._known = {one.name: one for one in graph.initializer}
        self._scales: dict[str, np.float32] = {}
        self._nodes: list[NodeProto] = []
        self._values: list[Any] = []

    def rewrite(self) -> None:
        """Replace nodes and weights of the graph."""
        graph, used = self._graph, set[str]()
        for node in list(graph.node):
            if node.op_type == "Conv" and node.input[0] in self._rectified:
                self._weights(node)
            node.input[:] = [f"{name}.coarse" if name in self._scales else name for name in node.input]
            self._nodes.append(node)
            for name in node.output:
                if name in self._most:
                    self._tensor(name)
            used |= set(node.input)
        values = [one for one in graph.initializer if one.name in used] + self._values
        for field, news in ((graph.node, self._nodes), (graph.initializer, values)):
            kept = [_copied(one) for one in news]
            del field[:]
            field.extend(kept)
        del graph.value_info[:]

    def _tensor(self, name: str) -> None:
        most, all_steps = self._most[name], name in self._rectified
        self._scales[name] = np.float32(most / (_STEPS if all_steps else _EVEN))
        told = self._put(name, scale=self._scales[name], zero=np.uint8(0 if all_steps else _EVEN + 1))
        self._add("QuantizeLinear", [name, *told], f"{name}.steps")
        self._add("DequantizeLinear", [f"{name}.steps", *told], f"{name}.coarse")

    def _weights(self, node: NodeProto) -> None:
        from onnx import numpy_helper

        taken, weight, bias = node.input
        values, added = (numpy_helper.to_array(self._known[name]) for name in (weight, bias))
        scales = np.abs(values).reshape(len(values), -1).max(axis=1) / _EVEN
        # a channel that is next to nothing but its bias must not make that overflow
        scales = np.maximum(scales, np.abs(added) / (self._scales[taken] * _BIAS_MAX))
        scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
        steps = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        self._constant(weight, steps, scales)
        whole = scales * self._scales[taken]
        self._constant(bias, np.rint(added / whole).astype(np.int32), whole)
        node.input[:] = [taken, f"{weight}.coarse", f"{bias}.coarse"]

    def _constant(self, name: str, steps: NDArray[Any], scales: NDArray[np.float32]) -> None:
        told = self._put(name, steps=steps, scale=scales, zero=np.zeros(len(scales), steps.dtype))
        self._add("DequantizeLinear", told, f"{name}.coarse", axis=0)

    def _put(self, name: str, **values: Any) -> list[str]:
        from onnx import numpy_helper

        names = [f"{name}.{what}" for what in values]
        self._values += [
            numpy_helper.from_array(np.asarray(value), one) for one, value in zip(names, values.values(), strict=True)
        ]
        return names

    def _add(self, what: str, taken: list[str], given: str, **attributes: int) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(what, taken, [given], **attributes))


def _rectified(graph: GraphProto) -> set[str]:
    return {node.output[0] for node in graph.node if node.op_type == "Relu"}


def _after(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """By tensor: the nodes that take it."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _given(node: NodeProto, after: dict[str, list[NodeProto]]) -> str:
    """What a node gives, behind the rectifier that alone takes it."""
    takers = after.get(node.output[0], [])
    found: str = takers[0].output[0] if [one.op_type for one in takers] == ["Relu"] else node.output[0]
    return found


def _copied(one: Any) -> Any:
    """Its own: what is in a field goes with the field."""
    made = type(one)()
    made.CopyFrom(one)
    return made
