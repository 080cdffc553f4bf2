"""Whisper as two ONNX graphs with weights of eight bits: one that hears a window, one that says what comes next.

Rules of the room:
- What is multiplied with a weight is turned into eight bits where it is used. Sums, norms and probabilities are in
  float32.
- Of a window, where the processor's products are what it waits for, a weight has a scale for each channel that it gives,
  and what it is multiplied with has one. Of a text, where it waits for the weights to come from memory, both have one
  for each block of some channels: read as fast as memory is, and nearer to float32.
- Of a window, what comes of a norm has channels that are far larger than others, always the same ones: they are divided by what
  their weights are multiplied with (Xiao et al., SmoothQuant, 2023), as the norm's own numbers tell. What comes of a
  Gelu has positions that are far larger than others: there each position has a scale of its own.
- Nothing is computed twice for the same audio: keys and values of the window are the first graph's to give.
- The second graph takes any number of tokens at once: a prompt with a prefix is one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.models.speech.ct2_file import Weights

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

OPSET: Final = 20
_IR: Final = 9
_MICROSOFT = "com.microsoft"
_OWN = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention")  # ONNX Runtime's
_STEPS = 127
_EPSILON = 1e-5
_TINY = 1e-9
_BLOCK = 128
_IN_EIGHT_BITS = 4  # a number of ONNX Runtime's
_EVENED = 0.75  # of how much larger a channel is, its weights take over


class Sizes(msgspec.Struct, frozen=True):
    """Of a Whisper: what its `bands` of the spectrum, its numbers a position (`size`), `vocabulary` and `room` of a
    text in tokens are, and the layers and heads of its two parts."""

    bands: int
    size: int
    vocabulary: int
    room: int
    encoder_layers: int
    encoder_heads: int
    layers: int
    heads: int


def sizes(weights: Weights) -> Sizes:
    """Read off a file. KeyError: a variable is missing."""
    vocabulary, size = weights["decoder/embeddings/weight"].shape
    return Sizes(
        bands=weights["encoder/conv1/weight"].shape[1],
        size=size,
        vocabulary=vocabulary,
        room=len(weights["decoder/position_encodings/encodings"]),
        encoder_layers=_layers(weights, "encoder"),
        encoder_heads=int(weights["encoder/num_heads"]),
        layers=_layers(weights, "decoder"),
        heads=int(weights["decoder/num_heads"]),
    )


def cross(layers: int) -> list[str]:
    """What the first graph gives and the second takes."""
    return [f"{what}_{layer}" for layer in range(layers) for what in ("heard_keys", "heard_values")]


def own(layers: int, kind: str) -> list[str]:
    """Keys and values of the text: "past", which the second graph takes, and "new", which it gives."""
    return [f"{kind}_{what}_{layer}" for layer in range(layers) for what in ("keys", "values")]


def encoder(weights: Weights) -> bytes:
    """mel [1, bands, columns] -> of each layer of the decoder heard_keys [heads, size / heads, positions] and
    heard_values [heads, positions, size / heads]; a position is two columns."""
    has, graph = sizes(weights), _Graph(weights)
    x = graph.spectrum("mel", has.size)
    for layer in range(has.encoder_layers):
        at = f"encoder/layer_{layer}"
        x = graph.add(x, graph.hearing(x, f"{at}/self_attention", has.encoder_heads, has.size))
        x = graph.add(x, graph.forward(x, f"{at}/ffn"))
    takers = [f"decoder/layer_{layer}/attention/linear_1" for layer in range(has.layers)]
    x = graph.norm(x, "encoder/layer_norm", takers)
    for layer, taker in enumerate(takers):
        keys, values = graph.linear(x, taker, parts=2)
        for found, name, order in ((keys, "heard_keys", (0, 2, 3, 1)), (values, "heard_values", (0, 2, 1, 3))):
            parted = graph.heads(found, has.heads, has.size, order)
            graph.node("Squeeze", [parted, graph.numbers(0)], [f"{name}_{layer}"])
    return graph.bytes({"mel": [1, has.bands, "columns"]}, cross(has.layers))


def decoder(weights: Weights, clocks: Sequence[tuple[int, int]]) -> bytes:
    """The next tokens of `rows` texts of one window. `clocks`: the heads that tell when a token was said, each with its
    layer before it.

    x [rows, tokens, size]: their embeddings with their places; mask [tokens, before + tokens]: 0, and -inf for what is
    behind a token; at [asked]: whose next tokens are asked for; off [rows or 1, asked, vocabulary]: 0, and -inf for
    what may not come; most [1]: how many of the likeliest to give; past_* [rows, heads, before, size / heads]; heard_*
    of `encoder`
    -> best, which [rows, asked, most]: logarithms of the probabilities of the likeliest tokens, and these; logs [rows,
    asked, vocabulary]: all logarithms; new_*: past_* with these tokens; seen [clocks, rows * tokens, positions]: where
    `clocks` looked.
    """
    has, graph = sizes(weights), _Graph(weights, blocks=True)
    x, seen = "x", []
    graph.node("Unsqueeze", ["mask", graph.numbers(0, 1)], ["masks"])
    for layer in range(has.layers):
        at = f"decoder/layer_{layer}"
        x = graph.add(x, graph.remembering(x, f"{at}/self_attention", layer, has))
        found, looks = graph.looking(x, f"{at}/attention", layer, has)
        if heads := [head for where, head in clocks if where == layer]:
            seen.append(graph.node("Gather", [looks, graph.numbers(*heads)], axis=0))
        x = graph.add(x, found)
        x = graph.add(x, graph.forward(x, f"{at}/ffn"))
    graph.node("Concat", seen, ["seen"], axis=0)
    x = graph.norm(graph.node("Gather", [x, "at"], axis=1), "decoder/layer_norm", ["decoder/projection"])
    (x,) = graph.linear(x, "decoder/projection")
    graph.node("LogSoftmax", [graph.add(x, "off")], ["logs"], axis=-1)
    graph.node("TopK", ["logs", "most"], ["best", "which"], axis=-1)
    depth = has.size // has.heads
    given: dict[str, list[Any]] = {"x": ["rows", "tokens", has.size], "mask": ["tokens", "whole"]}
    given |= {"off": ["texts", "asked", has.vocabulary]}
    given |= {name: ["rows", has.heads, "before", depth] for name in own(has.layers, "past")}
    for keys, values in zip(*[iter(cross(has.layers))] * 2, strict=True):
        given |= {keys: [has.heads, depth, "positions"], values: [has.heads, "positions", depth]}
    told = ["best", "logs", "seen", *own(has.layers, "new")]
    return graph.bytes(given, told, whole={"at": ["asked"], "most": [1]}, which=["which"])


class _Graph:
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
        large = self.node("ReduceMax", [self.node("Abs", [x]), self.numbers(-1)], keepdims=1)
        large = self.node("Max", [large, self.tiny()])
        weight, bias = (self._weights.floats(f"{name}/linear_1/{what}") for what in ("weight", "bias"))
        found = self.product(self.node("Div", [x, large]), f"{name}/linear_1", weight, np.zeros_like(bias))
        return self.add(self.node("Mul", [found, large]), self.constant(f"{name}/linear_1/bias", bias))

    def heads(self, x: str, heads: int, size: int, order: tuple[int, ...]) -> str:
        """x [rows, tokens, size] as [rows, tokens, heads, size / heads], its axes in another order."""
        parted = self.node("Reshape", [x, self.numbers(0, 0, heads, size // heads)])
        return self.node("Transpose", [parted], perm=order)

    def spectrum(self, mel: str, size: int) -> str:
        """The two convolutions, and the places added: [1, positions, size]. The second is a product with each pair of
        columns and the last one of the pair before."""
        taken = [mel, *(self.floats(f"encoder/conv1/{what}") for what in ("weight", "bias"))]
        x = self.node("Transpose", [self.node("Conv", taken, kernel_shape=[3], pads=[1, 1])], perm=[0, 2, 1])
        pairs = self.node("Reshape", [self.node("Gelu", [x]), self.numbers(0, -1, 2 * size)])
        last = self.node("Slice", [pairs, self.numbers(size), self.numbers(2 * size), self.numbers(2)])
        before = self.node("Pad", [last, self.numbers(0, 1, 0, 0, -1, 0)])
        weight = self._weights.floats("encoder/conv2/weight").transpose(0, 2, 1).reshape(size, 3 * size)
        x = self.node("Concat", [before, pairs], axis=2)
        x = self.node("Gelu", [self.product(x, "conv2", weight, self._weights.floats("encoder/conv2/bias"))])
        count = self.node("Shape", [x], start=1, end=2)
        places = self.floats("encoder/position_encodings/encodings")
        return self.add(x, self.node("Slice", [places, self.numbers(0), count]))

    def hearing(self, x: str, name: str, heads: int, size: int) -> str:
        """Attention of a window to itself, in eight bits, too: what is looked at is so for each position by itself, as
        a part of what it looks at most."""
        x = self.norm(x, f"{name}/layer_norm", [f"{name}/linear_0"])
        queries, keys, values = self.linear(x, f"{name}/linear_0", parts=3, scale=(size // heads) ** -0.5)
        queries, *how = self.unsigned(queries)
        (keys, by), (values, times) = self.signed(keys), self.signed(values)
        looks = [self.heads(queries, heads, size, (0, 2, 1, 3)), self.heads(keys, heads, size, (0, 2, 3, 1))]
        found = self.node("Softmax", [self.node("MatMulIntegerToFloat", [*looks, how[0], by, how[1]])], axis=-1)
        most = self.node("ReduceMax", [found, self.numbers(-1)], keepdims=1)
        step = self.constant("step", np.array(1 / 255, np.float32))
        zero = self.constant("zero", np.array(0, np.uint8))
        parts = self.node("QuantizeLinear", [self.node("Div", [found, most]), step, zero])
        values = self.heads(values, heads, size, (0, 2, 1, 3))
        x = self.node("Mul", [self.node("MatMulIntegerToFloat", [parts, values, step, times]), most])
        return self.linear(self.joined(x, size), f"{name}/linear_1")[0]

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

    def remembering(self, x: str, name: str, layer: int, has: Sizes) -> str:
        """Attention of a text to itself."""
        x = self.norm(x, f"{name}/layer_norm", [f"{name}/linear_0"])
        parts = self.linear(x, f"{name}/linear_0", parts=3, scale=(has.size // has.heads) ** -0.5)
        taken = [*parts, "", "", "masks", *(f"past_{what}_{layer}" for what in ("keys", "values"))]
        given = [f"said_{layer}", *(f"new_{what}_{layer}" for what in ("keys", "values"))]
        self.node("MultiHeadAttention", taken, given, num_heads=has.heads, scale=1.0)
        return self.linear(given[0], f"{name}/linear_1")[0]

    def looking(self, x: str, name: str, layer: int, has: Sizes) -> tuple[str, str]:
        """Attention of a text to the window, and where it looked there: [heads, rows * tokens, positions]. All rows and
        tokens are one matrix: a head's keys are read once."""
        depth = has.size // has.heads
        x = self.norm(x, f"{name}/layer_norm", [f"{name}/linear_0"])
        (queries,) = self.linear(x, f"{name}/linear_0", scale=depth**-0.5)
        flat = self.node("Reshape", [queries, self.numbers(-1, has.heads, depth)])
        flat = self.node("Transpose", [flat], perm=[1, 0, 2])
        looks = self.node("Softmax", [self.node("MatMul", [flat, f"heard_keys_{layer}"])], axis=-1)
        found = self.node("MatMul", [looks, f"heard_values_{layer}"])
        found = self.node("Transpose", [found], perm=[1, 0, 2])
        found = self.node("Reshape", [found, self.node("Shape", [queries])])
        return self.linear(found, f"{name}/linear_2")[0], looks


def _layers(weights: Weights, part: str) -> int:
    found = (name.split("/")[1] for name in weights if name.startswith(f"{part}/layer_") and name.count("/") > 1)
    return 1 + max(int(name.removeprefix("layer_")) for name in found if name != "layer_norm")
