"""An engine over a folder, and models whose timing a test holds in its hands."""

from __future__ import annotations

import asyncio
import threading
import zlib
from contextlib import asynccontextmanager

import numpy as np

from millstream.clock import SystemClock
from millstream.engine import Engine, EngineLimits
from millstream.meter import Meter
from millstream.models import Manifest, Repository
from millstream.types import Delta, Request, TensorSpec

THREADS = EngineLimits(inline_us_max=0, instances=2)


@asynccontextmanager
async def serving(root, limits=None, meter=None, clock=None, **callbacks):
    engine = Engine(Repository(root), clock or SystemClock(), meter or Meter(), limits, **callbacks)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def rows(n, width=4, start=0.0):
    return (np.arange(n * width, dtype=np.float32) + start).reshape(n, width)


def ask(model, array, name="x", **more):
    return Request(model, {name: array}, len(array), **more)


async def until(condition, seconds=10.0):
    """Wait for something that another thread brings about."""
    for _ in range(int(seconds / 0.002)):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came about")


class Weight:
    """A learner in one number: y = weight in every row, `apply` sets the weight. `gate`, when closed, holds predict.
    `batches` records (rows, weight before, weight after) of each call."""

    inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    outputs = (TensorSpec("y", "FP32", (-1,)),)

    def __init__(self, weight=0.0):
        self.weight = np.float32(weight)
        self.batches = []
        self.inside = 0
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, inputs):
        before = self.weight
        self.inside += 1
        assert self.gate.wait(20)
        n = len(inputs["x"])
        y = np.full(n, self.weight, np.float32)
        self.batches.append((n, float(before), float(self.weight)))
        return {"y": y}

    def apply(self, slots, weights, dense, calibration):
        if not np.isfinite(weights).all():
            raise ValueError("a weight is not finite")
        self.weight = weights[-1]


def delta(sequence, weight, base="1", model="w", **wrong):
    slots, weights = np.array([0], "<u4").tobytes(), np.array([weight], "<f4").tobytes()
    fields = {"slots": slots, "weights": weights} | wrong
    parts = [fields.get(name, b"") for name in ("slots", "weights", "dense", "calibration")]
    fields = {"checksum": zlib.crc32(b"".join(parts))} | fields
    return Delta(model=model, base=base, sequence=sequence, upto=0, arrivals=b"", **fields)


def one_weight(root, model="w", versions=1, format="weight"):
    """Put versions of a Weight; gives (what Engine takes as `load`, version -> the loaded Weight)."""
    made = {}
    for _ in range(versions):
        Repository(root).put(model, Manifest(format=format, file="w"), {"w": b"-"})

    def load(repository, model, version):
        made[version] = Weight()
        return made[version]

    return load, made
