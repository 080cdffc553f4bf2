"""What runs in a model's own process: load it, then answer one call after another, until nobody asks any more.

Rules of the room:
- Only numpy, msgspec, the standard library and what this file imports of the house are here, and the model's framework:
  a version's own environment has no more.
- What was checked is what runs: all files of the version are compared with their digests at every start, its Python
  files once more as they are imported, and no compiled leftovers of them are read.
- An exception of the model goes back as words, and the process lives on. Whatever else it does to the process (exit,
  crash, hang) is for the other side to notice.
- A copy that the model makes of its process (fork) answers nobody: it ends when it comes back.
- The process ends with the one that started it, and is the first to go when memory runs out.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import hashlib
import importlib
import logging
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from millstream import errors
from millstream.models.apart.ring import Slot
from millstream.models.manifest import Manifest, example_arrays, fitting
from millstream.models.pinned import pin
from millstream.models.runtimes import PROGRAMS, Found
from millstream.types import Array, TensorSpec

QUIT = 255  # instead of a slot's number: end
_PR_SET_PDEATHSIG = 1
_OOM_FIRST = b"500"
_TEXT_MAX = 4000


class Load(msgspec.Struct, tag=True):
    """Become a model: the first message to a process that will answer calls. Answered by Ready."""

    folder: str
    manifest: Manifest
    device: str


class Inspect(msgspec.Struct, tag=True):
    """Look into a file, with the arrays that come along as its example, named in their order. Answered by Looked."""

    folder: str
    manifest: Manifest
    names: tuple[str, ...]


class Ready(msgspec.Struct, tag=True):
    """Loaded; these are its tensors."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Looked(msgspec.Struct, tag=True):
    """What was found, but its example: that is the arrays that come along, named in their order."""

    found: Found
    names: tuple[str, ...]


class Failed(msgspec.Struct, tag=True):
    """It raised. `kind`: the class of the house's error, "" for any other; `missing`: a module that is not there."""

    kind: str
    text: str
    missing: str = ""


Asked = Load | Inspect
Told = Ready | Looked | Failed


def main() -> None:
    """Run until the other side is gone. Arguments: its pid, the pipe of requests, then a slot and a pipe for each."""
    parent, requests, *rest = (int(argument) for argument in sys.argv[1:])
    _end_with(parent)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_FIRST)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # where it was is told on stderr
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    slots = [_Own(fd) for fd in rest[0::2]]
    replies = rest[1::2]
    os.register_at_fork(after_in_child=partial(_close, [requests, *replies]))  # else a copy hides that this one died
    loaded: _Loaded | None = None
    while (number := os.read(requests, 1)) and number[0] != QUIT:
        slot = slots[number[0]]
        message, arrays = slot.read()
        if loaded is None:
            loaded = _first(slot, message, arrays)
        else:
            loaded.answer(slot, arrays)
        os.write(replies[number[0]], number)
    os._exit(0)  # whatever the framework would still like to do at its end: nobody waits for it


class _Own(Slot):
    """A slot that only the process which opened it writes to."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._pid = os.getpid()

    def write(self, message: bytes, arrays: Sequence[tuple[int, Array]]) -> None:
        if os.getpid() != self._pid:
            with suppress(OSError):
                os.write(2, b"a copy of the process (fork) came back from the model's code, and was ended\n")
            os._exit(1)
        super().write(message, arrays)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _first(slot: Slot, message: bytes, arrays: Sequence[tuple[int, Array]]) -> _Loaded | None:
    """Do what the first message says."""
    asked = msgspec.msgpack.decode(message, type=Asked)
    folder = Path(asked.folder).absolute()
    pin(folder, asked.manifest.digests)
    try:
        runtime = importlib.import_module(PROGRAMS[asked.manifest.format])
        if isinstance(asked, Load):
            _check(folder, asked.manifest)
            loaded = _Loaded(runtime.load(folder, asked.manifest, asked.device))
            gc.collect()
            gc.freeze()  # what is loaded stays: looking through it again would only cost calls their caches
            slot.write(_said(Ready(loaded.inputs, loaded.outputs)), [])
            return loaded
        given = {name: array for name, (_, array) in zip(asked.names, arrays, strict=True)}
        if not given and asked.manifest.inputs:
            given = example_arrays(asked.manifest, asked.manifest.inputs)
        found = runtime.inspect(folder, asked.manifest, given)
        said = Looked(msgspec.structs.replace(found, example={}), tuple(found.example))
        slot.write(_said(said), list(enumerate(found.example.values())))
    except Exception as error:
        if not isinstance(error, errors.Error):
            _tell()
        slot.write(_said(_failed(error)), [])
    return None


def _check(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its digest, here where it is loaded, and so at every start of the process. Corrupt."""
    for name, expected in manifest.digests.items():
        with (folder / name).open("rb") as file:
            if expected != f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}":
                raise errors.Corrupt(f"{file.name}: it differs from its digest in model.toml; put the version again")


class _Loaded:
    """A model that answers calls which come as numbered arrays."""

    def __init__(self, model: Any) -> None:
        self.inputs: tuple[TensorSpec, ...] = tuple(model.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(model.outputs)
        self._predict = model.predict
        self._names = [spec.name for spec in self.inputs]
        self._last = ""

    def answer(self, slot: Slot, arrays: Sequence[tuple[int, Array]]) -> None:
        """Compute a call, and put what came of it into its slot."""
        names = self._names
        try:
            outputs = self._predict({names[number]: array for number, array in arrays})
            given = [
                (number, fitting(spec, outputs[spec.name]))
                for number, spec in enumerate(self.outputs)
                if spec.name in outputs
            ]
            slot.write(b"", given)
        except Exception as error:
            failed = _failed(error)
            if failed.text != self._last and failed.kind != "BadInput":
                self._last = failed.text
                _tell()
            slot.write(_said(failed), [])


def _tell() -> None:
    """Say on stderr where it was raised, unless the model has closed that."""
    with suppress(Exception):
        traceback.print_exc()
        sys.stderr.flush()


def _said(message: Told) -> bytes:
    return msgspec.msgpack.encode(message)


def _failed(error: Exception) -> Failed:
    text = str(error) or repr(error)
    if isinstance(error, errors.Error):
        return Failed(type(error).__name__, text[:_TEXT_MAX])
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    return Failed("", f"{type(error).__name__}: {text}"[:_TEXT_MAX], missing)


def _end_with(parent: int) -> None:
    """See to it that this process does not outlive the one that started it, also in the middle of a call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            gone.wait(1.0)
        os._exit(1)

    gone = threading.Event()
    threading.Thread(target=watch, name="millstream-parent", daemon=True).start()
