"""A version's first calls, before anybody's: is it sound, what does it cost, do its rows join, does it mind padding.

Rules of the room:
- What a version says of itself is tried here, and one that says wrong is refused: Misconfigured.
- Without an example zeros are only a guess: when they fail nothing is concluded, but that it is not called quick.
- Recorded requests were answered once: a version that fails on more than FAILING of those that fit its inputs is
  refused. Where no other version answers it is served all the same, which is said: a restart must not end a service.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np

from millstream import errors
from millstream.engine.batch import Copy
from millstream.engine.lane import Lane
from millstream.engine.worker import answers, call
from millstream.models.chain import Faulty
from millstream.models.manifest import Length, example_arrays
from millstream.types import Array, Ran, Request

log = logging.getLogger(__name__)

FAILING = 0.01
TRIED_S = 10.0  # recorded requests are not run for longer


def warm(lane: Lane) -> None:
    """Run the version on its example, time it, and try what its manifest says."""
    example = example_arrays(lane.manifest, lane.inputs)
    try:
        outputs = _try(lane, example)
    except Exception as error:
        if isinstance(error, errors.Busy) and not isinstance(
            error, errors.Lost
        ):  # a chain whose parts are not there yet
            raise
        if isinstance(error, Faulty):  # it would, whatever the values
            raise
        if lane.manifest.example:
            raise errors.Misconfigured(f"{lane.label} fails on its own example: {error}; it is not served") from error
    else:
        if lane.manifest.example:
            for name, array in outputs.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise errors.Misconfigured(f"{lane.label} answers NaN or infinity in {name!r} to its own example")
        _time(lane, example)
    if lane.batching.length:
        _try_padding(lane, example, lane.batching.length)
    if lane.batching.once:
        _try_once(lane, example)


def try_recorded(lane: Lane, recorded: Sequence[dict[str, Array]], refuse: bool) -> None:
    """Run the version on recorded requests, before it answers any other. Misconfigured names the first that it fails
    on, when it fails on too many; without `refuse` that is logged instead."""
    until = time.perf_counter() + TRIED_S
    tried, failures = 0, []
    for number, inputs in enumerate(recorded, 1):
        if time.perf_counter() > until:
            break
        request = Request(lane.model, inputs, next((len(array) for array in inputs.values() if array.ndim), 1))
        try:
            kind = lane.check(request)
        except errors.BadInput:  # recorded of a version with other inputs
            continue
        tried += 1
        (result,) = answers(lane, [Copy(request, kind)], Ran(1, 0))
        if isinstance(result, Exception):
            failures.append((number, result))
    if tried:
        log.info("%s: ran %d recorded requests before it answers, %d failed", lane.label, tried, len(failures))
    if len(failures) <= FAILING * tried:
        return
    number, error = failures[0]
    said = (
        f"{lane.label} fails on {len(failures)} of {tried} recorded requests, at most {FAILING:.0%} may; the first is "
        f"number {number} (line {number} of watch/recorded.jsonl): {error}"
    )
    if refuse:
        raise errors.Misconfigured(f"{said}; it is not served")
    log.error("%s; it is served all the same, as no other version answers", said)


def _time(lane: Lane, example: dict[str, Array]) -> None:
    """What a call costs, and whether two of them may be one."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        _try(lane, example)
        times.append(time.perf_counter() - started)
    lane.cost = min(times)
    if lane.joins:
        twice = {name: np.concatenate([array, array]) for name, array in example.items()}
        try:
            _try(lane, twice)
        except errors.Error:
            lane.joins = False


def _try(lane: Lane, inputs: dict[str, Array]) -> dict[str, Array]:
    """The model on these inputs as one request would have them."""
    rows = next((len(array) for array in inputs.values() if array.ndim), 1)
    slots = None if lane.slots is None else np.full(rows, -1)
    return call(lane, lane.join.alone(Request(lane.model, inputs, rows)), rows, slots)


def _try_once(lane: Lane, example: dict[str, Array]) -> None:
    """Refuse a version that says it takes one row for all, and answers otherwise than to a row for each."""
    once = lane.batching.once
    given = example if lane.manifest.example else {name: _some(array) for name, array in example.items()}
    few = {
        name: array[:1] if name in once else np.resize(array, (3, *array.shape[1:])) for name, array in given.items()
    }
    many = few | {name: np.repeat(few[name], 3, axis=0) for name in once}
    try:
        one, each = (call(lane, lane.join.alone(Request(lane.model, rows, 3)), 3, None) for rows in (few, many))
    except Exception as error:
        raise errors.Misconfigured(
            f"{lane.label}: [batching] once = {', '.join(once)} was tried and failed: {error}; remove it, or add an "
            "[example] that the model takes"
        ) from error
    for name, array in each.items():
        if not _same(array, one[name]):
            raise errors.Misconfigured(
                f"{lane.label}: output {name!r} is another with one row of {', '.join(once)} for all than with one for "
                "each; remove `once` from [batching]"
            )


def _same(one: Array, other: Array) -> bool:
    """Whether two answers are the same but for the order in which a library adds up."""
    if one.shape != other.shape:
        return False
    if one.dtype.kind == "f":
        return np.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
    return bool((one == other).all())


def _some(array: Array) -> Array:
    """Values that are not all nothing, where nobody gave an example."""
    return array if array.dtype.hasobject else np.ones_like(array)


def _try_padding(lane: Lane, example: dict[str, Array], length: Length) -> None:
    """Refuse a version that says it ignores padding and does not, or of which that cannot be found out."""
    why = ""
    for pair in _pairs(lane, example, length):
        try:
            alone = [_try(lane, copy.request.inputs) for copy in pair]
        except Exception as error:  # too short for this model, perhaps
            why = str(error)
            continue
        _compare(lane, alone, answers(lane, pair, Ran(2, 0)))
        return
    raise errors.Misconfigured(
        f"{lane.label}: [batching.length] could not be tried, no length of its buckets gave an answer ({why}); add an "
        "[example] that does"
    )


def _pairs(lane: Lane, example: dict[str, Array], length: Length) -> Iterator[list[Copy]]:
    """Two requests of different lengths that would share a call, from every bucket that has two."""
    random = np.random.default_rng(0)
    shortest = 1
    for number, longest in enumerate(length.buckets):
        if longest > shortest:
            pair = []
            for size in ((shortest + longest) // 2, longest):
                inputs = dict(example)
                for name in length.of:
                    shape = list(example[name].shape)
                    shape[length.axis] = size
                    if lane.manifest.example or example[name].dtype.hasobject:
                        inputs[name] = np.resize(example[name], shape)
                    else:
                        values = random.random(shape) if example[name].dtype.kind == "f" else np.ones(shape)
                        inputs[name] = values.astype(example[name].dtype)
                pair.append(Copy(Request(lane.model, inputs, len(inputs[length.of[0]])), (number,)))
            yield pair
        shortest = longest + 1


def _compare(lane: Lane, alone: list[dict[str, Array]], together: list[dict[str, Array] | Exception]) -> None:
    for one, with_another in zip(alone, together, strict=True):
        if not isinstance(with_another, dict):
            raise errors.Misconfigured(f"{lane.label}: [batching.length] was tried and failed: {with_another}")
        for name, array in one.items():
            if not _same(array, with_another[name]):
                raise errors.Misconfigured(
                    f"{lane.label}: output {name!r} of a row changes when it is padded to a longer one's length; mask "
                    "the padding in the model (by `lengths`), name outputs that are as long as the input in `trim`, or "
                    "remove [batching.length]"
                )
