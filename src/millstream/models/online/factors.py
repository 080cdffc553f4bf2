"""The arithmetic of factorisation machines and of DeepFM, compiled: one row at a time, forward, backward, step.

    logit = bias + sum of w_i + sum over pairs of <v_i, v_j> + layers(v of each place, one after the other)

over the tokens i of a row; a token's slot has one weight w and `k` factors v. An empty place puts zeros before the
layers, which are ReLU but for the last, of one unit. S. Rendle, "Factorization Machines", ICDM 2010; H. Guo et al.,
"DeepFM", IJCAI 2017.

Rules of the room:
- All gradients of a row are those of the loss before any step of that row, as automatic differentiation gives them. Two
  places in one slot are two coordinates that step in turn.
- Linear weights step by FTRL-proximal; factors and layers by AdaGrad. Nothing is random: what a slot holds before it
  is first learnt is computed from its number.
- A place that is empty and a hidden unit that is off cost nothing, forward or backward: their gradients are zero.
- Sums over factors are float64; layers are float32, in an order that a compiler may widen without changing a bit.

A slot's row of `state`: w, v [k], z, n (of w), n [k] (of v); what is served is its first 1 + k numbers. `dense`: bias,
then layer by layer its weights [inputs, units] and its units' biases. `sizes`: inputs of the layers, units of each.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream.models.online.learner import LOGIT_MAX, Floats, Tokens
from millstream.native import f32, f64, given, i64, inner, kernel, u32, unchecked, void

_GRADIENT_MAX: Final = 1e12  # its square is far from float32's end
_ZERO: Final = np.float32(0.0)
_MATRIX = f32[:, ::1]


@inner
def _random(number: int) -> float:
    """In [-1, 1), from a number: the last steps of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = np.uint64(number) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(40)) * 2.0**-23 - 1.0


@kernel(void(_MATRIX, f64, i64))
def begin_factors(values: Floats, scale: float, k: int) -> None:
    """Factors of every slot as they are before it is learnt."""
    for slot in range(values.shape[0]):
        for f in range(k):
            values[slot, 1 + f] = np.float32(scale * _random(slot * 64 + f))


@kernel(void(f32[::1], given(i64)))
def begin_layers(dense: Floats, sizes: NDArray[np.int64]) -> None:
    """Weights of the layers before anything is learnt: uniform by He et al., 2015; biases 0."""
    at = 1
    for layer in range(len(sizes) - 1):
        count = sizes[layer] * sizes[layer + 1]
        high = math.sqrt(6.0 / sizes[layer])
        for i in range(count):
            dense[at + i] = np.float32(high * _random((1 << 40) + at + i))
        at += count + sizes[layer + 1]


@inner
def _add(to: Floats, x: np.float32, line: Floats) -> None:
    """Views, as their indices are known not to be negative, and only then is this loop widened."""
    for j in range(len(to)):
        to[j] += x * line[j]


@inner
def _dot(one: Floats, other: Floats) -> np.float32:
    a, b, c, d = _ZERO, _ZERO, _ZERO, _ZERO  # four sums: a single one would wait for itself
    whole = len(one) // 4
    for i in range(whole):
        j = 4 * i
        a += one[j] * other[j]
        b += one[j + 1] * other[j + 1]
        c += one[j + 2] * other[j + 2]
        d += one[j + 3] * other[j + 3]
    for j in range(4 * whole, len(one)):
        a += one[j] * other[j]
    return (a + b) + (c + d)


@inner
def _forward(
    values: Floats,
    tokens: Tokens,
    row: int,
    k: int,
    dense: Floats,
    sizes: NDArray[np.int64],
    places: Floats,
    sums: NDArray[np.float64],
    units: Floats,
) -> float:
    """The logit of a row; leaves its factors by place, their sums, and what every unit put out."""
    mask = np.uint32(values.shape[0] - 1)
    logit = np.float64(dense[0])
    pairs = 0.0
    for f in range(k):
        sums[f] = 0.0
    for place in range(tokens.shape[1]):
        token = tokens[row, place]
        if token == 0:
            continue
        slot = token & mask
        logit += values[slot, 0]
        for f in range(k):
            v = values[slot, 1 + f]
            places[place * k + f] = v
            sums[f] += v
            pairs -= np.float64(v) * v
    for f in range(k):
        pairs += sums[f] * sums[f]
    logit += 0.5 * pairs

    at, put = 1, 0
    for layer in range(len(sizes) - 1):
        inputs, count = sizes[layer], sizes[layer + 1]
        biases = at + inputs * count
        for j in range(count):
            units[put + j] = dense[biases + j]
        out = units[put : put + count]
        if layer == 0:
            for place in range(tokens.shape[1]):
                if tokens[row, place] != 0:
                    for i in range(place * k, place * k + k):
                        _add(out, places[i], dense[at + i * count : at + i * count + count])
        else:
            for i in range(inputs):
                x = units[put - inputs + i]
                if x != 0:
                    _add(out, x, dense[at + i * count : at + i * count + count])
        if layer < len(sizes) - 2:
            for j in range(count):
                units[put + j] = max(units[put + j], _ZERO)
        else:
            logit += units[put]
        at = biases + count
        put += count
    return logit


@inner
def _probability(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(logit, -LOGIT_MAX), LOGIT_MAX)))


@inner
def _clipped(gradient: float) -> float:
    return min(max(gradient, -_GRADIENT_MAX), _GRADIENT_MAX)


@unchecked
def _step_layer(line: Floats, squares: Floats, x: np.float32, back: Floats, rate: np.float32, ease: np.float32) -> None:
    """AdaGrad on weights whose gradients are x times `back`."""
    for j in range(len(line)):
        gradient = min(max(x * back[j], np.float32(-_GRADIENT_MAX)), np.float32(_GRADIENT_MAX))
        squares[j] += gradient * gradient
        line[j] -= rate * gradient / (ease + np.sqrt(squares[j]))


@inner
def _backward(
    tokens: Tokens,
    row: int,
    k: int,
    gradient: float,
    rate: np.float32,
    ease: np.float32,
    dense: Floats,
    squares: Floats,
    sizes: NDArray[np.int64],
    places: Floats,
    units: Floats,
    back: Floats,
    into: Floats,
) -> None:
    """Step the layers by the logit's gradient; leaves the gradients of the factors by place in `into`."""
    layers = len(sizes) - 1
    end, put = len(dense), 0
    for layer in range(layers):
        put += sizes[layer + 1]
    back[put - 1] = np.float32(gradient)
    for layer in range(layers - 1, -1, -1):
        inputs, count = sizes[layer], sizes[layer + 1]
        put -= count
        biases = end - count
        at = biases - inputs * count
        ahead = back[put : put + count]
        if layer == 0:
            for place in range(tokens.shape[1]):
                if tokens[row, place] != 0:
                    for i in range(place * k, place * k + k):
                        line = slice(at + i * count, at + i * count + count)
                        into[i] = _dot(dense[line], ahead)
                        _step_layer(dense[line], squares[line], places[i], ahead, rate, ease)
        else:
            for i in range(inputs):
                x, felt = units[put - inputs + i], _ZERO
                if x != 0:
                    line = slice(at + i * count, at + i * count + count)
                    felt = _dot(dense[line], ahead)
                    _step_layer(dense[line], squares[line], x, ahead, rate, ease)
                back[put - inputs + i] = felt
        _step_layer(dense[biases:end], squares[biases:end], np.float32(1.0), ahead, rate, ease)
        end = at


@kernel(void(given(f32, 2), given(u32, 2), i64, given(f32), given(i64), f32[::1], f64[::1], f32[::1], f32[::1]))
def predict(
    values: Floats,
    tokens: Tokens,
    k: int,
    dense: Floats,
    sizes: NDArray[np.int64],
    places: Floats,
    sums: NDArray[np.float64],
    units: Floats,
    out: Floats,
) -> None:
    """Probabilities. `values`: rows that begin with w and v; `places`, `sums`, `units`: room to work in."""
    for row in range(tokens.shape[0]):
        out[row] = _probability(_forward(values, tokens, row, k, dense, sizes, places, sums, units))


@kernel(
    i64(
        _MATRIX, u32[::1], given(u32, 2), given(f32), given(f32), given(f64), i64, f32[::1], f32[::1], given(i64),
        f32[::1], f64[::1], f32[::1], f32[::1], f32[::1], u32[::1], i64, u32, f32[::1],
    )
)  # fmt: skip
def learn(
    state: Floats,
    marks: Tokens,
    tokens: Tokens,
    labels: Floats,
    weights: Floats,
    how: NDArray[np.float64],
    k: int,
    dense: Floats,
    squares: Floats,
    sizes: NDArray[np.int64],
    places: Floats,
    sums: NDArray[np.float64],
    units: Floats,
    back: Floats,
    into: Floats,
    touched: Tokens,
    pending: int,
    mark: int,
    out: Floats,
) -> int:
    """Fold the rows into `state` and `dense`; returns how many slots `touched` now lists. `how`: alpha, beta, l1, l2,
    rate, ease, decay, dense rate."""
    alpha, beta, l1, l2, rate, ease, decay = how[0], how[1], how[2], how[3], how[4], how[5], how[6]
    dense_rate, dense_ease = np.float32(how[7]), np.float32(ease)
    mask = np.uint32(state.shape[0] - 1)
    z_at, n_at, squares_at = 1 + k, 2 + k, 3 + k
    for row in range(tokens.shape[0]):
        probability = _probability(_forward(state, tokens, row, k, dense, sizes, places, sums, units))
        out[row] = probability
        gradient = (probability - labels[row]) * weights[row]
        if len(sizes) > 1:
            _backward(
                tokens, row, k, gradient, dense_rate, dense_ease, dense, squares, sizes, places, units, back, into
            )
        squares[0] = np.float32(squares[0] + gradient * gradient)
        dense[0] = np.float32(dense[0] - alpha * gradient / (beta + math.sqrt(squares[0])))
        for place in range(tokens.shape[1]):
            token = tokens[row, place]
            if token == 0:
                continue
            slot = token & mask
            w, n = state[slot, 0], state[slot, n_at]
            before = math.sqrt(n)
            state[slot, n_at] = np.float32(n + gradient * gradient)
            root = math.sqrt(state[slot, n_at])
            z = np.float32(state[slot, z_at] + gradient - (root - before) / alpha * w)
            state[slot, z_at] = z
            beyond = abs(z) - l1
            if beyond > 0:
                state[slot, 0] = np.float32(math.copysign(beyond, -z) / ((beta + root) / alpha + l2))
            else:
                state[slot, 0] = _ZERO
            for f in range(k):
                v = places[place * k + f]
                slope = gradient * (sums[f] - v) + decay * weights[row] * v
                if len(sizes) > 1:
                    slope += into[place * k + f]
                slope = _clipped(slope)
                state[slot, squares_at + f] = np.float32(state[slot, squares_at + f] + slope * slope)
                step = rate * slope / (ease + math.sqrt(state[slot, squares_at + f]))
                state[slot, 1 + f] = np.float32(state[slot, 1 + f] - step)
            if marks[slot] != mark:
                marks[slot] = mark
                touched[pending] = slot
                pending += 1
    return pending
