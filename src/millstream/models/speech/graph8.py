"""An ONNX graph whose weights are of eight bits, on its way: what is multiplied with a weight is turned into eight bits
where it is used; sums, norms and probabilities are in float32.

Rules of the room:
- Of a window, where products are what takes the time, a weight has a scale for each channel that it gives, and what it
  is multiplied with has one. Of a text, where weights that come from memory are what takes it, both have one for each
  block of some channels: read as fast as memory is, and nearer to float32.
- Of a window, what comes of a norm has channels that are far larger than others, always the same ones: they are divided
  by what their weights are multiplied with (Xiao et al., SmoothQuant, 2023), as the norm's own numbers tell. What comes
  of a Gelu has positions that are far larger than others: there each position has a scale of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream.models.speech.ct2_file import Weights

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

OPSET: Final = 20
_IR: Final = 9
_MICROSOFT = "com.microsoft"
_OWN = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention")  # ONNX Runtime's
STEPS_UNSIGNED: Final = 255
_STEPS = 127
_EPSILON = 1e-5
_TINY = 1e-9
_GELU = 0.17  # its least value is above -.17
_BLOCK = 128
_IN_EIGHT_BITS = 4  # a number of ONNX Runtime's
_EVENED = 0.75  # of how much larger a channel is, its weights take over


class Graph:
    """A graph on its way: nodes and their constants. A tensor is its name; a method gives that of its result.
    `blocks`: weights have scales for blocks of channels."""

    def __init__(self, weights: Weights, blocks: bool = False) -> None:
        self._weights, self._blocks = weights, blocks
        self._evened: dict[str, NDArray[np.float32]] = {}  # by weight: what its channels are multiplied with
        self._nodes: list[NodeProto] = []
        self._values: dict[str, TensorProto] = {}

    def bytes(
        self,
        given: dict[str, list[Any]],
        told: Sequence[str],
        whole: Mapping[str, list[Any]] = {},
        which: Sequence[str] = (),
    ) -> bytes:
        """The file. `given`: its inputs with their shapes, `whole` those of whole numbers; `told`: its outputs, `which`
        those of whole numbers."""
        from onnx import TensorProto, helper

        def value(kind: int, name: str, shape: list[Any] | None = None) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        real, number = TensorProto.FLOAT, TensorProto.INT64
        taken = [value(real, name, shape) for name, shape in given.items()]
        taken += [value(number, name, shape) for name, shape in whole.items()]
        outputs = [*(value(real, name) for name in told), *(value(number, name) for name in which)]
        graph = helper.make_graph(self._nodes, "whisper", taken, outputs, list(self._values.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        found: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR).SerializeToString()
        return found

    def node(self, what: str, taken: Sequence[str], given: Sequence[str] = (), **more: Any) -> str:
        from onnx import helper

        given = given or [f"{what}_{len(self._nodes)}"]
        self._nodes.append(helper.make_node(what, taken, given, domain=_MICROSOFT if what in _OWN else "", **more))
        return given[0]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        if name not in self._values:
            self._values[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def numbers(self, *values: int) -> str:
        return self.constant("_".join(map(str, ("numbers", *values))), np.array(values, np.int64))

    def floats(self, name: str) -> str:
        return self.constant(name, self._weights.floats(name))

    def add(self, one: str, other: str) -> str:
        return self.node("Add", [one, other])

    def norm(self, x: str, name: str, takers: Sequence[str]) -> str:
        """x around zero, for the weights `takers` alone."""
        gamma, beta = (self._weights.floats(f"{name}/{what}") for what in ("gamma", "beta"))
        weights = np.max([np.abs(self._weights.floats(f"{taker}/weight")).max(axis=0) for taker in takers], axis=0)
        large = (3 * np.abs(gamma) + np.abs(beta)) ** _EVENED / np.maximum(weights, _TINY) ** (1 - _EVENED)
        evened = np.maximum(large / max(_TINY, float(np.median(large))), 1e-3).astype(np.float32)
        self._evened |= dict.fromkeys(takers, evened)
        taken = [self.constant(f"{name}.{what}", one / evened) for what, one in (("gamma", gamma), ("beta", beta))]
        return self.node("LayerNormalization", [x, *taken], epsilon=_EPSILON)

    def linear(self, x: str, name: str, parts: int = 1, scale: float = 1.0) -> list[str]:
        """x by a weight of eight bits, in `parts` of one size; `scale`: of the first of them."""
        weight = self._weights.floats(f"{name}/weight")
        bias = self._weights.floats(f"{name}/bias") if f"{name}/bias" in self._weights else np.zeros(len(weight), "f4")
        weight *= self._evened.get(name, np.float32(1))
        found = []
        for number, (rows, added) in enumerate(zip(np.split(weight, parts), np.split(bias, parts), strict=True)):
            by = np.float32(scale if number == 0 else 1.0)
            product = self.by_blocks if self._blocks else self.product
            found.append(product(x, f"{name}.{number}", by * rows, by * added))
        return found

    def by_blocks(self, x: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        """As `product`."""
        out, into = weight.shape
        block = min(_BLOCK, into & -into)
        whole = weight.reshape(out, into // block, block)
        scales = np.maximum(np.abs(whole).max(axis=2), _TINY) / np.float32(_STEPS)
        whole = whole / scales[..., None]
        steps = np.rint(whole, out=whole).astype(np.int8).view(np.uint8) ^ np.uint8(128)  # 128 is zero
        taken = [x, self.constant(f"{name}.steps", steps), self.constant(f"{name}.scales", scales.reshape(-1)), "", ""]
        taken.append(self.constant(f"{name}.bias", bias))
        return self.node("MatMulNBits", taken, K=into, N=out, bits=8, block_size=block, accuracy_level=_IN_EIGHT_BITS)

    def product(self, x: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        """x [..., into] by weight [out, into], and bias [out]."""
        scales = np.maximum(np.abs(weight).max(axis=1), _TINY) / np.float32(_STEPS)
        whole = weight / scales[:, None]
        steps = np.rint(whole, out=whole).astype(np.int8)
        taken = [
            x,
            self.constant(f"{name}.steps", steps.T),
            self.constant(f"{name}.scales", scales),
            self.constant(f"{name}.zeros", np.zeros(len(steps), np.int8)),
            self.constant(f"{name}.bias", bias),
        ]
        return self.node("DynamicQuantizeMatMul", taken)

    def forward(self, x: str, name: str) -> str:
        (wide,) = self.linear(self.norm(x, f"{name}/layer_norm", [f"{name}/linear_0"]), f"{name}/linear_0")
        x = self.node("Gelu", [wide])
        if self._blocks:
            return self.linear(x, f"{name}/linear_1")[0]
        large = self.node("ReduceMax", [x, self.numbers(-1)], keepdims=1)
        large = self.node("Max", [large, self.constant("gelu", np.array(_GELU, np.float32))])
        weight, bias = (self._weights.floats(f"{name}/linear_1/{what}") for what in ("weight", "bias"))
        found = self.product(self.part(x, large), f"{name}/linear_1", weight, np.zeros_like(bias))
        return self.add(self.node("Mul", [found, large]), self.constant(f"{name}/linear_1/bias", bias))

    def part(self, x: str, of: str) -> str:
        """x by what is much smaller: a product is quicker than a quotient."""
        return self.node("Mul", [x, self.node("Reciprocal", [of])])

    def heads(self, x: str, heads: int, size: int, order: tuple[int, ...]) -> str:
        """x [rows, tokens, size] as [rows, tokens, heads, size / heads], its axes in another order."""
        parted = self.node("Reshape", [x, self.numbers(0, 0, heads, size // heads)])
        return self.node("Transpose", [parted], perm=order)

    def unsigned(self, x: str) -> tuple[str, str, str]:
        """x in eight bits without a sign, its scale, and what zero is there."""
        names = (f"{x}.unsigned", f"{x}.scale", f"{x}.zero")
        self.node("DynamicQuantizeLinear", [x], names)
        return names

    def signed(self, x: str) -> tuple[str, str]:
        """x in eight bits with a sign, and its scale."""
        most = self.node("Max", [self.node("ReduceMax", [self.node("Abs", [x])], keepdims=0), self.tiny()])
        scale = self.node("Mul", [most, self.constant("part", np.array(1 / _STEPS, np.float32))])
        zero = self.constant("signed zero", np.array(0, np.int8))
        return self.node("QuantizeLinear", [x, scale, zero]), scale

    def tiny(self) -> str:
        return self.constant("tiny", np.array(_TINY, np.float32))

    def joined(self, x: str, size: int) -> str:
        """x [rows, heads, tokens, size / heads] as [rows, tokens, size]."""
        x = self.node("Transpose", [x], perm=[0, 2, 1, 3])
        return self.node("Reshape", [x, self.numbers(0, 0, size)])
