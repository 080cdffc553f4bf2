"""A process of a model's own, from outside: started, asked through shared memory, listened to, and seen to its end.

Rules of the room:
- Processes are spawned, never forked, and share nothing with this one but slots and two pipes; what they print is
  logged, a bounded number of lines.
- Whoever asks waits in the kernel, without the GIL. A process that dies ends the wait at once: its end of the pipe goes
  with it.
- A process that is asked to end by SIGABRT says first, on stderr, where it is; one that does not end is killed, and
  what it started with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

import millstream
from millstream import errors
from millstream.models.apart.child import QUIT, Asked, Failed, Told
from millstream.models.apart.ring import Slot
from millstream.types import Array

SLOTS = 2  # calls that a process has at once: one is computed, the next is written
LOOK_S = 1.0  # between two looks at a process whose pipe somebody else may hold open
LINES_MAX, LINES_S = 100, 10.0  # lines that are logged, in so many seconds
LINE_MAX = 500
TAIL = 5
# One thread a call, as everywhere in the house; an operator's own values stay. Nothing may import numpy before this.
_BOOT = """
import os, sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"):
    os.environ.setdefault(name + ("_THREADS" if "_" in name else "_NUM_THREADS"), "1")
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
root = sys.argv.pop(1)
spec = spec_from_file_location("millstream", root + "/__init__.py", submodule_search_locations=[root])
house = sys.modules["millstream"] = module_from_spec(spec)
spec.loader.exec_module(house)
for room in ("models", "models.apart"):  # bare: what their own __init__ imports is not needed, nor there
    bare = sys.modules["millstream." + room] = ModuleType("millstream." + room)
    bare.__path__ = [root + "/" + room.replace(".", "/")]
house.models, house.models.apart = sys.modules["millstream.models"], bare
from millstream.models.apart.child import main
main()
"""
_ROOT = Path(millstream.__file__).resolve().parent
_decode_told = msgspec.msgpack.Decoder(Told).decode
log = logging.getLogger(__name__)


def _pipe(reads: ExitStack, writes: ExitStack) -> tuple[int, int]:
    """A pipe, each end of which is closed with one of the two."""
    read, write = os.pipe()
    reads.callback(os.close, read)
    writes.callback(os.close, write)
    return read, write


class Seat:
    """A slot of a process, with the pipe that says when an answer lies in it."""

    __slots__ = ("_number", "_poll", "_reply", "_requests", "child", "slot")

    def __init__(self, child: Child, number: int, slot: Slot, requests: int, reply: int) -> None:
        self.child, self.slot = child, slot
        self._number, self._requests, self._reply = bytes([number]), requests, reply
        self._poll = select.poll()
        self._poll.register(reply, select.POLLIN)

    def write(self, message: bytes, arrays: Sequence[tuple[int, Array]]) -> None:
        """Put the next call in. See Slot.write."""
        self.slot.call += 1
        self.slot.write(message, arrays)

    def read(self) -> tuple[bytes, list[tuple[int, Array]]]:
        """The answer to it. See Slot.read; one to another call: Corrupt."""
        asked = self.slot.call
        answer = self.slot.read()
        if self.slot.call != asked:
            raise errors.Corrupt(f"call {asked} was asked, and an answer to {self.slot.call} came")
        return answer

    def ask(self) -> bool:
        """Say that a call lies in the slot. False: nobody is there any more."""
        try:
            os.write(self._requests, self._number)
        except BrokenPipeError:
            return False
        return True

    def wait(self, seconds: float) -> bool | None:
        """Wait for the answer to what was asked: True, it lies in the slot; False, there will be none, the process has
        died; None: not so far."""
        if not self._poll.poll(1e3 * min(seconds, LOOK_S)):
            until = time.monotonic() + seconds - LOOK_S
            while not self._poll.poll(0):
                if self.child.gone():
                    return False
                if (left := until - time.monotonic()) <= 0:
                    return None
                self._poll.poll(1e3 * min(left, LOOK_S))
        return bool(os.read(self._reply, 1))


class Child:
    """One process with `SLOTS` seats. Whoever makes it must `release` it, in a thread that lives as long: on Linux the
    process ends with that thread."""

    def __init__(self, label: str, python: Path) -> None:
        self.label, self.python = label, python
        self.inside = 0  # calls under way
        self.lost = 0  # calls that it did not answer
        self.hung = False
        self._stop_by = 0.0
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._rest, self._window, self._lines = b"", 0.0, 0
        with ExitStack() as held, ExitStack() as given:
            theirs, requests = _pipe(given, held)
            self._said, said = _pipe(held, given)
            self._requests, self.seats, shared = requests, [], []
            for number in range(SLOTS):
                slot = Slot.make()
                held.callback(slot.close)
                reply, answer = _pipe(held, given)
                self.seats.append(Seat(self, number, slot, requests, reply))
                shared += [slot.fd, answer]
            # What an environment of its own holds is all there is; this one's may also lie on PYTHONPATH.
            isolated = "-P" if python == Path(sys.executable) else "-I"
            numbers = map(str, (os.getpid(), theirs, *shared))
            try:
                self._process = subprocess.Popen(
                    [str(python), isolated, "-c", _BOOT, str(_ROOT), *numbers],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=(theirs, *shared),
                    start_new_session=True,  # Ctrl-C is for the server, which lets its processes finish
                )
            except OSError as error:
                raise errors.Misconfigured(f"{label}: {python} cannot be started: {error}") from error
            self._held = held.pop_all()
        self.pid = self._process.pid

    def first(
        self, asked: Asked, arrays: Sequence[tuple[int, Array]], seconds: float
    ) -> tuple[Told, list[tuple[int, Array]]]:
        """Send the first message and wait for its answer, while what is printed is logged. One that says Failed, or
        does not come: Misconfigured."""
        seat, until = self.seats[0], time.monotonic() + seconds
        seat.write(msgspec.msgpack.encode(asked), arrays)
        asked_it = seat.ask()
        while asked_it and (answered := seat.wait(0.0)) is not False:
            if answered:
                message, given = seat.read()
                told = _decode_told(message)
                if isinstance(told, Failed):
                    self._hear(0.0)
                    raise self._refused(told)
                return told, given
            if answered is False or (not self._hear(0.02) and self.gone()):
                break
            if time.monotonic() > until:
                self.stop(hung=True)
                raise errors.Misconfigured(
                    f"{self.label}: its process was not ready within {seconds:g} s (start_s_max) and was ended; "
                    f"{self._last_words()}"
                )
        self._join(LOOK_S)
        self._drain()
        raise errors.Misconfigured(
            f"{self.label}: its process ended while it started ({self.how()}); {self._last_words()}"
        )

    def listen(self) -> None:
        """Log what is printed until the process has ended."""
        while not self.gone():
            self._hear(LOOK_S)
            if self._stop_by and time.monotonic() > self._stop_by:
                self._kill()
        self._drain()

    def gone(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def how(self) -> str:
        """In which way it ended."""
        code = self._process.poll()
        if code is None:
            return "still running"
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"{name}, as when memory runs out" if name == "SIGKILL" and not self.hung else name
        return f"signal {-code}"

    def quit(self) -> None:
        """Ask it to end after what it computes now; `listen` kills it when it does not."""
        self._stop_by = time.monotonic() + LOOK_S
        with contextlib.suppress(OSError):
            os.write(self._requests, bytes([QUIT]))

    def stop(self, hung: bool = False) -> None:
        """End it in the middle of what it does."""
        self.hung = self.hung or hung
        self._stop_by = time.monotonic() + LOOK_S
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)

    def release(self) -> None:
        """See to it that it has ended, and let go of its memory and pipes. No call may be under way."""
        self._kill()
        self._process.wait()
        self.seats.clear()  # they know it, too: memory must not wait for the collector
        self._held.close()

    def _join(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _kill(self) -> None:
        """All that belongs to its session: what it started goes with it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _drain(self) -> None:
        """Log what it had printed when it ended: a pipe holds only so much."""
        for _ in range(LINES_MAX):
            if not self._hear(0.0):
                return

    def _hear(self, seconds: float) -> bool:
        """Log the next that it prints, for which this waits so long; whether there was something."""
        poll = select.poll()
        poll.register(self._said, select.POLLIN)
        if not poll.poll(1e3 * seconds):
            return False
        data = os.read(self._said, 1 << 16)
        if not data:  # it has closed what it prints to, and may go on
            time.sleep(min(seconds, 0.02))
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-LINE_MAX:]
        for line in lines:
            self._log(line)
        return True

    def _log(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()[:LINE_MAX]
        if not text:
            return
        self.tail.append(text)
        now = time.monotonic()
        if now - self._window > LINES_S:
            self._window, self._lines = now, 0
        self._lines += 1
        if self._lines <= LINES_MAX:
            log.info("%s (process %d): %s", self.label, self.pid, text)
        elif self._lines == LINES_MAX + 1:
            log.info("%s (process %d) prints more than is logged (%d lines in %g s)", self.label, self.pid, LINES_MAX,
                     LINES_S)  # fmt: skip

    def _last_words(self) -> str:
        return f"it said last: {' | '.join(self.tail)}" if self.tail else "it said nothing"

    def _refused(self, failed: Failed) -> errors.Error:
        if failed.missing:
            module = failed.missing.partition(".")[0]
            return errors.Misconfigured(
                f"{self.label}: its program needs the module {module!r}, which {self.python} does not have: install it "
                f"there (pip install), lock it in the version's `requirements`, or, if it is yours, add it with --code"
            )
        kind = getattr(errors, failed.kind, errors.Misconfigured) if failed.kind else errors.Misconfigured
        if kind in (errors.Misconfigured, errors.Corrupt):
            return kind(failed.text if self.label in failed.text else f"{self.label}: {failed.text}")
        return errors.Misconfigured(f"{self.label}: it cannot be loaded: {failed.text}")
