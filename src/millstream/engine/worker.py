"""Where batches are computed: the loop itself for quick models, threads for the others.

Rules of the room:
- A batch of one is handed to the model as it came and back as it is: no copy.
- One request's fault is its own: when a joined call fails, requests with non-finite numbers are refused and the rest
  is computed again, and failing that each alone.
- Whatever a model raises becomes a result; a worker thread never dies of it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

import numpy as np

from millstream import errors
from millstream.engine.batch import Answer, Batch, Copy, ItemT, Lane, Result
from millstream.models.manifest import example_arrays
from millstream.types import Array

Item = Answer | Copy


def execute(batch: Batch[ItemT]) -> None:
    """Fill in the batch's results and times."""
    batch.started = started = time.perf_counter()
    cpu = time.thread_time()
    batch.results = _answers(batch.lane, batch.items)
    batch.cpu = time.thread_time() - cpu
    batch.wall = time.perf_counter() - started


def warm(lane: Lane) -> None:
    """Run the version on its example, time it, and find out whether rows may really join.

    An example of the manifest that fails refuses the version: Misconfigured. Zeros are only a guess, so when they fail
    nothing is concluded.
    """
    example = example_arrays(lane.manifest, lane.loaded.inputs)
    try:
        outputs = _call(lane, example, _rows(example))
    except Exception as error:
        if lane.manifest.example:
            raise errors.Misconfigured(f"{lane.label} fails on its own example: {error}; it is not served") from error
        return
    if lane.manifest.example:
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise errors.Misconfigured(f"{lane.label} answers NaN or infinity in {name!r} to its own example")
    times = []
    for _ in range(3):
        started = time.perf_counter()
        _call(lane, example, _rows(example))
        times.append(time.perf_counter() - started)
    lane.cost = min(times)
    if lane.joins:
        twice = {name: np.concatenate([array, array]) for name, array in example.items()}
        try:
            _call(lane, twice, 2 * _rows(example))
        except errors.Error:
            lane.joins = False


class Workers(Generic[ItemT]):
    """`count` threads that execute batches; `done(batch)` is called on the loop after each."""

    def __init__(
        self, count: int, name: str, loop: asyncio.AbstractEventLoop, done: Callable[[Batch[ItemT]], None]
    ) -> None:
        self._loop = loop
        self._done: Callable[[Batch[ItemT]], None] = done
        self._batches: queue.SimpleQueue[Batch[ItemT] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def start(self, batch: Batch[ItemT]) -> None:
        self._batches.put(batch)

    def stop(self) -> None:
        """End the threads after what they were given; blocks until then."""
        for _ in self._threads:
            self._batches.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            execute(batch)
            self._loop.call_soon_threadsafe(self._done, batch)


def _answers(lane: Lane, items: Sequence[Item]) -> list[Result]:
    if len(items) == 1:
        try:
            return [_call(lane, items[0].request.inputs, items[0].request.rows)]
        except Exception as error:
            return [_told(lane, error)]
    try:
        first = items[0].request.inputs
        joined = {name: np.concatenate([item.request.inputs[name] for item in items]) for name in first}
        return _split(_call(lane, joined, sum(item.request.rows for item in items)), items)
    except Exception:
        sound = [item for item in items if not lane.check.finite(item.request.inputs)]
        if not sound or len(sound) == len(items):
            return [_answers(lane, [item])[0] for item in items]
        again = iter(_answers(lane, sound))
        kept = set(map(id, sound))
        return [next(again) if id(item) in kept else _answers(lane, [item])[0] for item in items]


def _call(lane: Lane, inputs: dict[str, Array], rows: int) -> dict[str, Array]:
    """The model on these rows, in pieces of `rows_max` where rows are independent."""
    if name := lane.check.finite(inputs):
        raise errors.BadInput(
            f"{lane.label}: input {name!r} holds NaN or infinity; send finite numbers "
            "(a model for which NaN means missing says non_finite = 'pass' in its model.toml)"
        )
    if not lane.joins or rows <= lane.rows_max:
        outputs = lane.loaded.predict(inputs)
    else:
        pieces = [
            lane.loaded.predict({name: array[at : at + lane.rows_max] for name, array in inputs.items()})
            for at in range(0, rows, lane.rows_max)
        ]
        outputs = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    if lane.joins:
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                raise errors.Error(
                    f"{lane.label}: output {name!r} has shape {list(array.shape)} for {rows} rows; rows come first in "
                    "every output, or the model's file must not say that its first dimension is free"
                )
    return outputs


def _split(outputs: dict[str, Array], items: Sequence[Item]) -> list[Result]:
    """Each item's rows as views of the joined outputs."""
    results: list[Result] = []
    at = 0
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        for item in items:
            end = at + item.request.rows
            results.append({name: array[at:end]})
            at = end
        return results
    for item in items:
        end = at + item.request.rows
        results.append({name: array[at:end] for name, array in outputs.items()})
        at = end
    return results


def _told(lane: Lane, error: Exception) -> Exception:
    """`error` as the caller gets it: one of our own as it is, anything else as a failure of this version."""
    if isinstance(error, errors.Error):
        return error
    told = errors.Error(f"{lane.label} failed on this request: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


def _rows(inputs: dict[str, Array]) -> int:
    return next((len(array) for array in inputs.values() if array.ndim), 1)
