"""What ranking costs beside pure ONNX Runtime: one call of a DeepFM and of a DIN over all candidates of a request.

    python bench/ranking.py [--candidates 500] [--calls 400] [--json]

The graphs are those that `millstream train offline --model deepfm|din` writes (learn/deep/network.py), with random
weights, so no training framework is needed. Beside each other, call by call in turn, on the same rows: the engine from
submit to the outputs (check, queue, batch, thread), and `session.run` alone, with the same threads. Both take the
history as one row for all candidates. The ratio is the median's over the median; the bound is 1.3. `cpu` is the ratio
of the medians of processor time, of all threads: where others use the machine, too, the rest is waiting for a core.

`history once` is what that spares: the same file with one row of history, beside one for each candidate. `tokens once`
is what it would spare if the user's tokens were given as one row, too, and spread within the graph after their factors
were looked up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import uvloop
from onnx import TensorProto, helper, numpy_helper

from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.meter import Meter
from millstream.models import Manifest, Repository
from millstream.models.manifest import Batching
from millstream.types import Array, Leeway, Request

USER, ITEM, FACTORS, HIDDEN, UNITS, HISTORY = 8, 12, 16, (64, 32), 16, 50
BITS, KNOWN = 18, 100_000
"""Tokens of a row that are of the user and of the item (with crosses), and the default sizes of [deep]; log2 of slots,
and how many of them were seen."""
NEED = 1.3
Shown = dict[str, float | str]


class Graph:
    """An ONNX graph as it is written down. Names of values are returned, so that lines read like the formulas."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.tables: list[Any] = []
        self.inputs: list[Any] = []
        self.random = np.random.default_rng(seed)

    def __call__(self, kind: str, *takes: str, **how: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(takes), [name], **how))
        return name

    def constant(self, value: Array) -> str:
        name = f"c{len(self.tables)}"
        self.tables.append(numpy_helper.from_array(value, name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.random.normal(0.0, 0.2, shape).astype(np.float32))

    def input(self, name: str, rows: str, width: int) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.UINT32, [rows, width]))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def save(self, path: Path, output: str) -> None:
        self.nodes.append(helper.make_node("Identity", [output], ["probability"]))
        said = [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows"])]
        made = helper.make_graph(self.nodes, "ranker", self.inputs, said, self.tables)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def ranker(path: Path, history: bool, once: bool) -> None:
    """DeepFM, or with a history DIN. `once`: an input `user` [1, 8] beside `tokens` [rows, 12]."""
    g = Graph()
    places = g.constant(g.random.integers(0, KNOWN, 1 << BITS).astype(np.int32))
    table, linear, size = g.weights(KNOWN, FACTORS), g.weights(KNOWN, 1), g.ints((1 << BITS) - 1)

    def placed(tokens: str) -> str:
        wide = g("Cast", tokens, to=TensorProto.INT64)
        there = g("Cast", g("Not", g("Equal", wide, g.ints(0))), to=TensorProto.INT64)
        slots = g("Mul", g("Add", g("Mod", wide, size), g.ints(1)), there)
        return g("Cast", g("Gather", places, slots), to=TensorProto.INT64)

    def spread(of_user: str, of_items: str) -> str:
        """One row of the user's [1, w, k] before each of the candidates' [rows, w', k]."""
        rows = g("Slice", g("Shape", of_items), g.ints(0), g.ints(1))
        one = g("Slice", g("Shape", of_user), g.ints(1), g.ints(3))
        return g("Concat", g("Expand", of_user, g("Concat", rows, one, axis=0)), of_items, axis=1)

    if once:
        user, items = placed(g.input("user", "users", USER)), placed(g.input("tokens", "rows", ITEM))
        factors = spread(g("Gather", table, user), g("Gather", table, items))
        lines = spread(g("Gather", linear, user), g("Gather", linear, items))
    else:
        whole = placed(g.input("tokens", "rows", USER + ITEM))
        factors, lines = g("Gather", table, whole), g("Gather", linear, whole)
    first, last = g.ints(1), g.ints(-1)
    total = g("ReduceSum", factors, first, keepdims=0)
    squares = g("ReduceSum", g("Mul", factors, factors), first, keepdims=0)
    pairs = g("Mul", g("Sub", g("Mul", total, total), squares), g.constant(np.array(0.5, np.float32)))
    odds = g("Add", g("ReduceSum", lines, first, keepdims=0), g("MatMul", pairs, g.weights(FACTORS, 1)))
    seen, width = [g("Flatten", factors)], (USER + ITEM) * FACTORS
    if history:
        past = placed(g.input("history", "histories", HISTORY))
        candidate = g("Gather", factors, g.constant(np.array(USER, np.int64)), axis=1)
        interest = attention(g, candidate, g("Gather", table, past), past)
        both = g("Mul", interest, candidate)
        odds = g("Add", odds, g("MatMul", both, g.weights(FACTORS, 1)))
        seen, width = [*seen, interest, both], width + 2 * FACTORS
    layer = g("Concat", *seen, axis=1) if history else seen[0]
    for units in HIDDEN:
        layer, width = g("Relu", g("Gemm", layer, g.weights(width, units), g.weights(units))), units
    odds = g("Add", odds, g("MatMul", layer, g.weights(width, 1)))
    g.save(path, g("Sigmoid", g("Squeeze", odds, last)))


def attention(g: Graph, candidate: str, items: str, past: str) -> str:
    """As `Attention` of learn/deep/network.py."""
    beside = g("Unsqueeze", candidate, g.ints(2))
    mixed = g("Add", g("Mul", beside, g.weights(FACTORS, UNITS)), g.weights(FACTORS, UNITS))
    own = g("Unsqueeze", g("Gemm", candidate, g.weights(FACTORS, UNITS), g.weights(UNITS)), g.ints(1))
    hidden = g("Relu", g("Add", g("MatMul", items, mixed), own))
    alike = g("MatMul", items, g("Mul", beside, g.weights(FACTORS, 1)))
    weights = g("Squeeze", g("Add", g("MatMul", hidden, g.weights(UNITS, 1)), alike), g.ints(2))
    weights = g("Add", weights, g.weights(HISTORY))
    absent = g("Equal", past, g.ints(0))
    weights = g("Where", absent, g.constant(np.array(-1e9, np.float32)), weights)
    rest = g("Mul", g("Slice", weights, g.ints(0), g.ints(1), g.ints(1)), g.constant(np.array(0.0, np.float32)))
    shares = g("Softmax", g("Concat", weights, rest, axis=1), axis=1)
    shares = g("Slice", shares, g.ints(0), g.ints(-1), g.ints(1))
    return g("Squeeze", g("MatMul", g("Unsqueeze", shares, g.ints(1)), items), g.ints(1))


def session(path: Path) -> ort.InferenceSession:
    """With the threads that a served file has (models/runtimes/onnx.py)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def asked(candidates: int, calls: int, history: bool) -> list[dict[str, Array]]:
    """Requests of the flow: one user's tokens in each row, one row of history."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(calls):
        tokens = random.integers(1, 2**32, (candidates, USER + ITEM), np.uint32)
        tokens[:, :USER] = tokens[0, :USER]
        found.append({"tokens": tokens})
        if history:
            found[-1]["history"] = random.integers(1, 2**32, (1, HISTORY), np.uint32)
    return found


def repeated(inputs: dict[str, Array]) -> dict[str, Array]:
    """The same with a history for each row."""
    rows = len(inputs["tokens"])
    return {name: np.ascontiguousarray(np.broadcast_to(one, (rows, one.shape[1]))) for name, one in inputs.items()}


def once(inputs: dict[str, Array]) -> dict[str, Array]:
    """The same with one row of the user's tokens."""
    tokens = inputs["tokens"]
    own = {"user": np.ascontiguousarray(tokens[:1, :USER]), "tokens": np.ascontiguousarray(tokens[:, USER:])}
    return own | {name: one for name, one in inputs.items() if name == "history"}


def now() -> Any:
    """Seconds: wall, and processor time of all threads."""
    return np.array((time.perf_counter(), time.process_time()))


async def beside(engine: Engine, alone: Any, model: str, requests: list[dict[str, Array]]) -> tuple[Any, Any]:
    """Seconds [calls, 2] of the engine and of the runtime alone, call by call in turn, the first of a pair changing."""
    ours, pure = [], []
    for number, inputs in enumerate(requests):
        rows = len(inputs["tokens"])

        async def through(inputs: dict[str, Array] = inputs, rows: int = rows) -> Any:
            began = now()
            output = await engine.submit(Request(model, inputs, rows, leeway=Leeway(("history",), ("probability",))))
            ours.append(now() - began)
            return output.outputs["probability"]

        def run(inputs: dict[str, Array] = inputs) -> Any:
            began = now()
            (said,) = alone.run(["probability"], inputs)
            pure.append(now() - began)
            return said

        if number % 2:
            one, other = run(), await through()
        else:
            other, one = await through(), run()
        assert np.array_equal(one, other)
    return np.array(ours), np.array(pure)


class Sent:
    """Requests to a session, by number."""

    def __init__(self, to: ort.InferenceSession, requests: list[dict[str, Array]]) -> None:
        self.to, self.requests = to, requests

    def __call__(self, number: int) -> Any:
        return self.to.run(["probability"], self.requests[number])[0]


def paired(first: Sent, second: Sent, calls: int) -> tuple[Any, Any]:
    """Seconds [calls, 2] of two that answer the same, call by call in turn."""
    np.testing.assert_allclose(first(0), second(0), rtol=1e-4, atol=1e-6)
    times: tuple[list[Any], list[Any]] = [], []
    for number in range(calls):
        for which in (0, 1) if number % 2 else (1, 0):
            began = now()
            (first, second)[which](number)
            times[which].append(now() - began)
    return np.array(times[0]), np.array(times[1])


async def measure(folder: Path, candidates: int, calls: int) -> list[Shown]:
    repository, shown, warm = Repository(folder / "models"), list[Shown](), max(20, calls // 10)
    for model, history in (("deepfm", False), ("din", True)):
        ranker(folder / f"{model}.onnx", history, once=False)
        ranker(folder / f"{model}-once.onnx", history, once=True)
        file = (folder / f"{model}.onnx").read_bytes()
        batching = Batching(once=("history",) if history else ())
        repository.put(model, Manifest(format="onnx", file="model.onnx", batching=batching), {"model.onnx": file})
    engine = Engine(repository, SystemClock(), Meter())
    await engine.start()
    try:
        for model, history in (("deepfm", False), ("din", True)):
            alone, single = session(folder / f"{model}.onnx"), session(folder / f"{model}-once.onnx")
            requests = asked(candidates, calls + warm, history)
            ours, pure = (one[warm:] for one in await beside(engine, alone, model, requests))
            shown.append(row(model, "engine / ONNX Runtime", ours, pure))
            as_sent = Sent(alone, requests)
            if history:
                lean, full = paired(as_sent, Sent(alone, [repeated(one) for one in requests]), calls + warm)
                shown.append(row(model, "history once / repeated", lean[warm:], full[warm:]))
            lean, full = paired(Sent(single, [once(one) for one in requests]), as_sent, calls + warm)
            shown.append(row(model, "tokens once / repeated", lean[warm:], full[warm:]))
    finally:
        await engine.stop()
    return shown


def row(model: str, what: str, ours: Any, other: Any) -> Shown:
    (a50, a99), (b50, b99) = (1e3 * np.quantile(one[:, 0], (0.5, 0.99)) for one in (ours, other))
    cpu = float(np.median(ours[:, 1]) / np.median(other[:, 1]))
    return {"model": model, "what": what, "p50_ms": a50, "p99_ms": a99, "beside_p50_ms": b50, "beside_p99_ms": b99,
            "ratio_p50": a50 / b50, "ratio_p99": a99 / b99, "ratio_cpu": cpu}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--candidates", type=int, default=500)
    options.add_argument("--calls", type=int, default=400)
    options.add_argument("--json", action="store_true", help="one line of JSON, last")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = uvloop.run(measure(Path(name), chosen.candidates, chosen.calls))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ONNX Runtime {ort.__version__}, "
        f"one thread a call; {chosen.candidates} candidates, {USER + ITEM} tokens a row, history {HISTORY}\n"
    )
    heads = f"{'p50 ms':>9}{'p99 ms':>9}{'beside':>9}{'p99':>9}{'p50 / p50':>11}{'p99 / p99':>11}{'cpu':>8}"
    print(f"{'model':8}{'what':24}{heads}")
    for one in found:
        print(
            f"{one['model']:8}{one['what']:24}{one['p50_ms']:9.3f}{one['p99_ms']:9.3f}{one['beside_p50_ms']:9.3f}"
            f"{one['beside_p99_ms']:9.3f}{one['ratio_p50']:11.3f}{one['ratio_p99']:11.3f}{one['ratio_cpu']:8.3f}"
        )
    worst = max(float(one["ratio_p50"]) for one in found if "engine" in str(one["what"]))
    print(f"\nbound: at most {NEED} of ONNX Runtime; it is {worst:.2f}: {'kept' if worst <= NEED else 'NOT KEPT'}")
    for one in found:
        if "once" in str(one["what"]):
            gain = 1 - float(one["ratio_cpu"])
            named = f"{one['model']}, {str(one['what']).partition(' /')[0]}"
            print(f"{named}: {f'{gain:.0%} of the processor time gained' if gain > 0.1 else f'no gain ({gain:.0%})'}")
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
