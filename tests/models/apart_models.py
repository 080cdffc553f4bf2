"""Programs for tests: small classes that crash, hang, leave or answer as they are told, and versions of them."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from millstream.meter import Meter
from millstream.models import Manifest, Repository
from millstream.models.apart import Programs
from millstream.models.manifest import Process, parse_spec

# y = x + add; a magic first value does what a test is about.
UNRULY = """
import ctypes, os, signal, sys, time
import numpy as np
from millstream import errors

class Unruly:
    inputs = {"x": "FP32[-1,1]"}
    outputs = {"y": "FP32[-1,1]"}
    add = ADD

    def predict(self, inputs):
        x = inputs["x"]
        if (x == 666).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (x == 667).any():
            ctypes.string_at(0)
        if (x == 668).any():
            sys.exit(3)
        if (x == 669).any():
            time.sleep(3600)
        if (x == 670).any():
            raise KeyError("a mistake of the model's")
        if (x == 671).any():
            raise errors.BadInput("671 cannot be ranked")
        if (x == 672).any():
            print("printed\\n" * 3, "and more on stdout")
        if (x == 673).any():
            return {"y": np.zeros((200 << 20, 1), np.float32)}
        if (x == 674).any():
            while True:
                print("x" * 1000)
        return {"y": x + self.add}
"""
CRASH, SEGFAULT, EXIT, HANG, RAISE, BAD, PRINT, HUGE, SPAM = 666, 667, 668, 669, 670, 671, 672, 673, 674


def put(root: Path, text: str, model="m", inputs=None, outputs=None, files=None, **more) -> str:
    """A version of format python whose file is `text`."""
    inputs, outputs = inputs or {"x": "FP32[-1,1]"}, outputs or {"y": "FP32[-1,1]"}
    manifest = Manifest(
        **{
            "format": "python",
            "file": "own.py",
            "inputs": tuple(parse_spec(*pair) for pair in inputs.items()),
            "outputs": tuple(parse_spec(*pair) for pair in outputs.items()),
            **more,
        }
    )
    return Repository(root).put(model, manifest, {"own.py": text.encode(), **(files or {})})


def put_unruly(root: Path, add=1, model="m", call_s_max=30.0, **more) -> str:
    return put(root, UNRULY.replace("ADD", str(add)), model, process=Process(call_s_max=call_s_max), **more)


@contextlib.contextmanager
def programs(meter=None, **more):
    made = Programs(meter or Meter(), **more)
    try:
        yield made
    finally:
        made.close()


def children() -> set[int]:
    """Processes that this one has started and that have not ended, but for what multiprocessing keeps, and a Java that
    other tests share."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes()
                ours = b"multiprocessing" not in words and not words.partition(b"\0")[0].endswith(b"java")
                if int(fields[1]) == os.getpid() and fields[0] != "Z" and ours:
                    found.add(int(entry.name))
    return found


def until(condition, seconds=30.0):
    """Wait for what another thread or process brings about."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)
    return found
