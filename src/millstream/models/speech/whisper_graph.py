"""Whisper as two ONNX graphs with weights of eight bits: one that hears a window, one that says what comes next.

Rules of the room:
- Nothing is computed twice for the same audio: keys and values of the window are the first graph's to give.
- The second graph takes any number of tokens at once: a prompt with a prefix is one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from millstream.models.speech.ct2_file import Weights
from millstream.models.speech.graph8 import STEPS_UNSIGNED, Graph


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
    has, graph = sizes(weights), _Whisper(weights)
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
    has, graph = sizes(weights), _Whisper(weights, blocks=True)
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


class _Whisper(Graph):
    """The parts of a Whisper."""

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
        step = self.constant("step", np.array(1 / STEPS_UNSIGNED, np.float32))
        zero = self.constant("zero", np.array(0, np.uint8))
        parts = self.node("QuantizeLinear", [self.part(found, most), step, zero])
        values = self.heads(values, heads, size, (0, 2, 1, 3))
        x = self.node("Mul", [self.node("MatMulIntegerToFloat", [parts, values, step, times]), most])
        return self.linear(self.joined(x, size), f"{name}/linear_1")[0]

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
