"""A model whose calls are computed in processes of its own, and what becomes of these.

Rules of the room:
- A process is kept by a thread, which starts it, listens to it, and starts the next when it has ended: at once the
  first time, later with a growing pause while it keeps ending.
- A call takes a free seat; the first seats of all processes go before the second ones. A call whose process ends, or
  that takes longer than it may, fails with Busy: it may have done half of what it does, so nobody computes it again
  but its caller.
- What happened to a process is said once, by its thread, and counted.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from millstream import errors
from millstream.meter import Counter
from millstream.models.apart.child import Failed, Load, Ready
from millstream.models.apart.process import Child, Seat
from millstream.models.manifest import Manifest, check_tensors
from millstream.types import Array

UP_S_MAX = 2.0  # a call waits so long for a process while there is none
PAUSES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next start, while processes keep ending
RESTARTS = 2  # that may fail in a row, before a model is said not to answer
STEADY_S = 10.0  # a process that lived so long ended by chance: the next starts at once
CLOSE_S_MAX = 5.0
_decode_failed = msgspec.msgpack.Decoder(Failed).decode
log = logging.getLogger(__name__)


class Apart:
    """A Model in `instances` processes that run `manifest`'s program from `folder` on `python`; ready when made. `died`
    and `hung` count the processes that had to be replaced. What cannot be loaded: Misconfigured, Corrupt."""

    def __init__(
        self,
        label: str,
        folder: Path,
        manifest: Manifest,
        device: str,
        instances: int,
        died: Counter,
        hung: Counter,
        python: Path = Path(sys.executable),
    ) -> None:
        self.label, self.instances, self.device = label, instances, device
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self._python, self._bounds = python, manifest.process
        self._load = Load(str(folder), manifest, device)
        self._died, self._hung = died, hung
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0  # for a seat, or for the end of a process's calls
        self._free: list[Seat] = []
        self._children: set[Child] = set()
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._unable = ""
        self._starting = instances
        self._keepers = [
            threading.Thread(target=self._keep, name=f"millstream-keep-{label}-{number}", daemon=True)
            for number in range(instances)
        ]
        for keeper in self._keepers:
            keeper.start()
        with self._changed:
            self._changed.wait_for(lambda: not self._starting or self._failure)
        if self._failure is not None:
            self.close()
            raise self._failure

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """See models.model.Model. Raises what the program raised, as Error, or as the error of the house that it was;
        Busy when its process ended or was ended meanwhile, or is not there; TooLarge; Full."""
        seat = self._take()
        try:
            seat.write(b"", [(number, inputs[spec.name]) for number, spec in enumerate(self.inputs)])
            answered = seat.ask() and seat.wait(self._bounds.call_s_max)
            if not answered:
                raise self._lost(seat.child, late=answered is None)
            try:
                message, arrays = seat.read()
            except errors.Corrupt as error:
                log.error("%s: %s; its process (pid %d) is replaced", self.label, error, seat.child.pid)
                seat.child.stop()
                raise self._lost(seat.child) from error
        finally:
            self._give_back(seat)
        if message:
            raise self._told(_decode_failed(message))
        return {self.outputs[number].name: array for number, array in arrays}

    def close(self) -> None:
        """End its processes: after what they compute, but soon. Blocks until they are gone. Twice is once."""
        self._closing.set()
        with self._changed:
            for child in self._children:
                child.quit()
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_S_MAX
        for keeper in self._keepers:
            keeper.join(max(0.0, until - time.monotonic()))

    @property
    def problem(self) -> str:
        """Why it has had no process for a while; "" while it has one, or may soon."""
        return "" if self._children else self._unable

    def pids(self) -> list[int]:
        """Of the processes that can answer now."""
        with self._changed:
            return sorted(child.pid for child in self._children)

    # Seats.

    def _take(self) -> Seat:
        with self._lock:
            if not self._free:
                self._wait_for(lambda: self._free or self._closing.is_set(), self._patience())
                if not self._free:
                    raise self._why_none()
            seat = self._free.pop()
            seat.child.inside += 1
            return seat

    def _patience(self) -> float:
        """Seconds to wait for a seat: those who have one leave it within a call's time."""
        return self._bounds.call_s_max if self._children else UP_S_MAX

    def _why_none(self) -> errors.Busy:
        if self._closing.is_set():
            return errors.Busy(f"{self.label} is being unloaded; ask again")
        if not self._children:
            return errors.Lost(f"{self.label}: its process has ended and the next is not ready yet; try again")
        return errors.Busy(f"{self.label}: all its processes were busy for {self._bounds.call_s_max:g} s; try again")

    def _wait_for(self, condition: Callable[[], object], seconds: float | None = None) -> None:
        self._waiting += 1
        self._changed.wait_for(condition, seconds)
        self._waiting -= 1

    def _give_back(self, seat: Seat) -> None:
        child = seat.child
        with self._lock:
            child.inside -= 1
            if child in self._children:
                # From the end are taken: first seats of any process before seats where another call is computed.
                if child.inside:
                    self._free.insert(0, seat)
                else:
                    self._free.append(seat)
            if self._waiting:
                self._changed.notify_all()

    def _lost(self, child: Child, late: bool = False) -> errors.Lost:
        """What the caller of a call is told that will have no answer."""
        with self._changed:
            child.lost += 1
            self._forget(child)
        if late:
            child.stop(hung=True)
            return errors.Lost(
                f"{self.label}: the call took longer than {self._bounds.call_s_max:g} s (process.call_s_max) and was "
                "ended; try again"
            )
        return errors.Lost(f"{self.label}: its process ended while it computed this; try again")

    def _forget(self, child: Child) -> None:
        """Give out no more seats of a process."""
        self._children.discard(child)
        self._free = [seat for seat in self._free if seat.child is not child]

    def _told(self, failed: Failed) -> errors.Error:
        if failed.kind:
            return getattr(errors, failed.kind, errors.Error)(f"{self.label}: {failed.text}")
        return errors.Error(f"{self.label} failed on this request: {failed.text}")

    # Processes, each in a thread.

    def _keep(self) -> None:
        """Have a process, until the end."""
        ended = 0  # times in a row
        while not self._closing.wait(PAUSES[min(ended, len(PAUSES)) - 1] if ended else 0.0):
            began = time.monotonic()
            try:
                child = self._started()
            except Exception as error:
                if self._starting:
                    with self._changed:
                        self._failure = self._failure or error
                        self._changed.notify_all()
                    return
                ended += 1
                if ended > RESTARTS:
                    self._unable = f"its process cannot be started again: {error}"
                if not self._closing.is_set():
                    log.error("%s: its process cannot be started again: %s. %s", self.label, error, _next(ended))
                continue
            child.listen()
            with self._changed:
                self._forget(child)
                self._wait_for(partial(_empty, child))
            if not self._closing.is_set():
                ended = 1 if time.monotonic() - began > STEADY_S else ended + 1
                self._say(child, ended)
            child.release()

    def _started(self) -> Child:
        """A process that is loaded, its seats given out."""
        child = Child(self.label, self._python)
        try:
            ready, _ = child.first(self._load, [], self._bounds.start_s_max)
            assert isinstance(ready, Ready)
            check_tensors(self.label, self._load.manifest, ready.inputs, ready.outputs)
        except BaseException:
            child.release()
            raise
        with self._changed:
            self.inputs, self.outputs = ready.inputs, ready.outputs
            self._children.add(child)
            self._unable = ""
            self._free[:0] = child.seats[1:]
            self._free.append(child.seats[0])
            self._starting = max(0, self._starting - 1)
            if self._closing.is_set():
                child.quit()
            self._changed.notify_all()
        return child

    def _say(self, child: Child, ended: int) -> None:
        """Count the end of a process, and tell the log."""
        with self._changed:
            (self._hung if child.hung else self._died).add()
        calls = f"the {child.lost} calls" if child.lost > 1 else "the call"
        if child.hung:
            log.error(
                "%s: a call took longer than %g s (process.call_s_max), so its process (pid %d) was killed. The "
                "requests of %s under way got a 503 (try again). %s",
                self.label, self._bounds.call_s_max, child.pid, calls, _next(ended),
            )  # fmt: skip
        elif child.lost:
            log.error(
                "%s: its process (pid %d) died (%s) in the middle of its work. The requests of %s under way got a 503 "
                "(try again). %s",
                self.label, child.pid, child.how(), calls, _next(ended),
            )  # fmt: skip
        else:
            log.error(
                "%s: its process (pid %d) died (%s) while nobody asked it anything. No request was lost. %s",
                self.label, child.pid, child.how(), _next(ended),
            )  # fmt: skip


def _empty(child: Child) -> bool:
    return not child.inside


def _next(ended: int) -> str:
    pause = PAUSES[min(ended, len(PAUSES)) - 1]
    return f"The next is started {f'in {pause:g} s' if pause else 'now'}; other models go on."
