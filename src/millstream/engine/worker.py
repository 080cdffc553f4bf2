"""Where batches are computed: the loop itself for quick models, threads for the others.

Rules of the room:
- A batch is a step: the sessions in it move on together, each in its own slot; everything else is a session of length
  one. Slots move only when the whole call has succeeded.
- NaN is no answer: the requests that got it are told so, the others of the batch are answered.
- One request's fault is its own: when a joined call fails, requests with non-finite numbers are refused and the rest
  is computed again, and failing that each alone. A model that is busy or late, or whose process died of it, is
  spared that.
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
from numpy.typing import NDArray

from millstream import errors
from millstream.engine.batch import Answer, Batch, Copy, ItemT, Result
from millstream.engine.lane import Lane
from millstream.types import Array, Ran

Item = Answer | Copy


def execute(batch: Batch[ItemT], now: Callable[[], float]) -> None:
    """Fill in the batch's results and times."""
    batch.started = started = now()
    cpu = time.thread_time()
    batch.results = answers(batch.lane, batch.items, batch.ran)
    batch.cpu = time.thread_time() - cpu
    batch.wall = now() - started


class Workers(Generic[ItemT]):
    """`count` threads that execute batches; `after(batch)` follows each in its thread, `done(batch)` on the loop."""

    def __init__(
        self,
        count: int,
        name: str,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        done: Callable[[Batch[ItemT]], None],
        after: Callable[[Batch[ItemT]], None] | None = None,
    ) -> None:
        self._loop, self._now = loop, now
        self._after: Callable[[Batch[ItemT]], None] | None = after
        self._done: Callable[[Batch[ItemT]], None] = done
        self._batches: queue.SimpleQueue[Batch[ItemT] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def start(self, batch: Batch[ItemT]) -> None:
        self._batches.put(batch)

    def stop(self) -> None:
        """End the threads after what they were given, without waiting for them."""
        for _ in self._threads:
            self._batches.put(None)

    def join(self) -> None:
        """Wait for the threads of a `stop` to end; blocks."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                execute(batch, self._now)
                if self._after is not None:
                    self._after(batch)
            except BaseException as error:  # a model may call sys.exit; its callers and this thread go on
                batch.results = [_told(batch.lane, error) for _ in batch.items]
            self._loop.call_soon_threadsafe(self._done, batch)


def answers(lane: Lane, items: Sequence[Item], ran: Ran) -> list[Result]:
    """Each item's outputs, or why not. `ran` is told of the call that gave them."""
    clock = time.perf_counter
    started = clock()
    try:
        ran.requests, ran.padding = len(items), 0.0
        if len(items) == 1:
            ran.rows = items[0].request.rows
            inputs = lane.join.alone(items[0].request)
        else:
            ran.rows = sum([item.request.rows for item in items])
            inputs, ran.padding = lane.join.together(items)
        joined = clock()
        outputs = call(lane, inputs, ran.rows, _slots(lane, items))
        computed = clock()
        results: list[Result] = [*lane.join.apart(outputs, items)] if len(items) > 1 else [outputs]
        if lane.check.nan(outputs):
            results = [_sound(lane, result) for result in results]
        ran.copy_s, ran.compute_s, ran.split_s = joined - started, computed - joined, clock() - computed
        return results
    except Exception as error:
        if len(items) == 1 or isinstance(error, Stepped | errors.Busy | errors.Late):
            return [_told(lane, error) for _ in items]
    sound = [item for item in items if not lane.check.finite(item.request.inputs)]
    if not sound or len(sound) == len(items):
        return [answers(lane, [item], Ran(1, 0))[0] for item in items]
    again = iter(answers(lane, sound, Ran(1, 0)))
    kept = set(map(id, sound))
    return [next(again) if id(item) in kept else answers(lane, [item], Ran(1, 0))[0] for item in items]


def _slots(lane: Lane, items: Sequence[Item]) -> NDArray[np.intp] | None:
    """The slot of every row, -1 where no session is; None for a model without state."""
    if lane.slots is None:
        return None
    slots: list[int] = []
    for item in items:
        slots += [item.session.slot] if item.session is not None else [-1] * item.request.rows
    return np.array(slots, np.intp)


def call(lane: Lane, inputs: dict[str, Array], rows: int, slots: NDArray[np.intp] | None) -> dict[str, Array]:
    """The model on these rows, in pieces of `rows_max` where rows are independent."""
    if name := lane.check.finite(inputs):
        raise errors.BadInput(
            f"{lane.label}: input {name!r} holds NaN or infinity; send finite numbers "
            "(a model for which NaN means missing says non_finite = 'pass' in its model.toml)"
        )
    if not lane.joins or rows <= lane.rows_max:
        outputs = _step(lane, inputs, slots)
    else:
        outputs = _in_pieces(lane, inputs, rows, slots)
    if fault := _fault(lane, outputs, rows):
        raise (errors.Failed if slots is None else Stepped)(f"{lane.label}: {fault}")
    return outputs


class Stepped(errors.Error):
    """The call has moved its slots and answered nonsense: computing any of it again would move them twice, and the
    sessions in it end."""


def _fault(lane: Lane, outputs: dict[str, Array], rows: int) -> str:
    """What is wrong with what a model answered; "" when nothing is."""
    if missing := lane.names - outputs.keys():
        return f"it answered without output {min(missing)!r}"
    if lane.joins:
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                return (
                    f"output {name!r} has shape {list(array.shape)} for {rows} rows; rows come first in every output, "
                    "or the model's file must not say that its first dimension is free"
                )
    return ""


def _step(lane: Lane, inputs: dict[str, Array], slots: NDArray[np.intp] | None) -> dict[str, Array]:
    if slots is None or lane.slots is None:
        return lane.loaded.predict(inputs)
    return lane.slots.step(inputs, slots)


def _in_pieces(lane: Lane, inputs: dict[str, Array], rows: int, slots: NDArray[np.intp] | None) -> dict[str, Array]:
    """One request of more rows than a call may have. It is no session's: those step one row at a time."""
    pieces = []
    for at in range(0, rows, lane.rows_max):
        here = slice(at, at + lane.rows_max)
        piece = {name: array[here] if len(array) == rows else array for name, array in inputs.items()}
        pieces.append(_step(lane, piece, None if slots is None else slots[here]))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _sound(lane: Lane, result: Result) -> Result:
    """A result, or what is said in its place when it holds NaN: no caller could tell it from an answer."""
    name = lane.check.nan(result) if isinstance(result, dict) else ""
    if not name:
        return result
    return (errors.Failed if lane.slots is None else Stepped)(
        f"{lane.label} answered NaN in {name!r} to finite numbers: the version is at fault; roll it back (a model "
        "that means NaN says non_finite = 'pass' in its model.toml)"
    )


def _told(lane: Lane, error: BaseException) -> Exception:
    """`error` as the caller gets it: one of our own as it is, anything else as a failure of this version."""
    if type(error) is errors.Error:
        told = errors.Failed(str(error))
    elif isinstance(error, errors.Error):
        return error
    else:
        told = errors.Failed(f"{lane.label} failed on this request: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told
