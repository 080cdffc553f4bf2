"""`millstream serve` beside the fixed floor, raw gRPC, ONNX Runtime alone and the servers people use instead.

    python bench/serving [--quick] [--peers a,b] [--cases deepfm:1:64,tiny:1:8:binary] [--seconds S] [--repeats N]
                         [--plot FILE.svg] [--json]

Every server has the same two models, the same requests and the same load; each in an environment of its own, which
the first run makes under .bench/envs (a few GB). We, the floor and the echoes take turns within a repeat; the others
come one after the other. A server that cannot be installed or started is a row with its error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import environments
import load
import measure
import report
import servers
from measure import Case
from process import Died
from servers import Entry, Running

ALONE = (("deepfm", 1), ("deepfm", 32), ("deepfm", 100), ("tiny", 1))


def main() -> None:
    arguments = parsed()
    models = arguments.models or servers.made_models(arguments.floor)
    known = {entry.name: entry for entry in servers.entries()}
    names = arguments.peers.split(",") if arguments.peers else servers.QUICK if arguments.quick else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = [known[name] for name in names]
    result: dict[str, Any] = {
        "machine": report.machine(), "runtime": environments.runtime_version(), "seconds": arguments.seconds,
        "repeats": arguments.repeats, "decisive_repeats": arguments.repeats + measure.MORE_REPEATS,
        "model_mb": (models / "deepfm.onnx").stat().st_size / 1e6,
        "rows": [], "alone": {}, "boot_s": {}, "memory": {}, "failed": {},
    }  # fmt: skip
    bench = Bench(arguments, models, result)
    bench.group([entry for entry in chosen if entry.deep])
    for model, rows in ALONE:
        bench.runtime(model, rows)
    for entry in chosen:
        if not entry.deep:
            bench.group([entry])
    if arguments.plot and report.plot(result, arguments.plot):
        result["plot"] = arguments.plot.name
    elif arguments.plot:
        print("no plot: matplotlib is not installed here", file=sys.stderr)
    print(json.dumps(result) if arguments.json else report.markdown(result))


class Bench:
    """One run: which cases, how long, and where figures go."""

    def __init__(self, arguments: argparse.Namespace, models: Path, result: dict[str, Any]) -> None:
        self.arguments, self.models, self.result = arguments, models, result
        self.alone: dict[str, list[float]] = {}
        self.wanted = [tuple(one.split(":")) for one in arguments.cases.split(",")] if arguments.cases else None

    def runtime(self, model: str, rows: int) -> None:
        """ONNX Runtime alone takes its turn too; the median so far counts."""
        samples = self.alone.setdefault(f"{model}:{rows}", [])
        samples.append(measure.runtime_us(self.models, model, rows, self.arguments.seconds / 4))
        self.result["alone"][f"{model}:{rows}"] = statistics.median(samples)

    def group(self, entries: list[Entry]) -> None:
        """Start these, measure them in turns, stop them."""
        running: list[Running] = []
        try:
            for entry in entries:
                one = self.start(entry)
                if one is not None:
                    running.append(one)
            cases = {one: measure.cases_of(one.entry, self.wanted, self.arguments.quick) for one in running}
            for case in dict.fromkeys(case for many in cases.values() for case in many):
                self.case(case, [one for one in running if case in cases[one]])
        finally:
            for one in running:
                one.server.stop()

    def start(self, entry: Entry) -> Running | None:
        cases = measure.cases_of(entry, self.wanted, self.arguments.quick)
        names = list(dict.fromkeys(case.model for case in cases))
        if not names:
            return None
        print(f"starting {entry.title}", file=sys.stderr, flush=True)
        try:
            running = servers.start(entry, self.models, names, self.arguments.floor)
        except (servers.Unavailable, Died, OSError) as error:
            print(f"  {error}", file=sys.stderr)
            self.result["failed"][entry.name] = str(error)
            return None
        self.result["boot_s"][entry.name] = running.server.boot_s
        return running

    def case(self, case: Case, running: list[Running]) -> None:
        decisive = case in measure.DECISIVE and all(one.entry.deep for one in running)
        repeats = self.arguments.repeats + measure.MORE_REPEATS * decisive
        samples: dict[str, list[measure.Figures]] = {one.entry.name: [] for one in running}
        failed: dict[str, str] = {}
        for _ in range(repeats):
            if decisive:
                self.runtime(case.model, 32 if case.protocol == "grpc" else case.rows)
            for one in running:
                name = one.entry.name
                if name in failed:
                    continue
                try:
                    warm_s = max(self.arguments.seconds / 4, one.entry.warm_s if not samples[name] else 0.0)
                    samples[name].append(measure.once(one, case, self.arguments.seconds, warm_s))
                except (load.LoadFailed, Died) as error:
                    failed[name] = str(error)
        for name, many in samples.items():
            row: dict[str, Any] = {"server": name, **vars(case)}
            row |= measure.medians(many) if many else {"error": failed[name]}
            self.result["rows"].append(row)
            self.result["memory"].setdefault(name, row.get("memory_mb"))
            said = f"{row['cpu_us']:9.1f} us" if many else row["error"]
            print(f"  {case}: {name} {said}", file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python bench/serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="we, the floor and the echoes; the common cases")
    parser.add_argument("--peers", help="which servers, with commas (default: all)")
    parser.add_argument("--cases", help="MODEL:ROWS:CONNECTIONS[:PROTOCOL], with commas, for every server")
    parser.add_argument("--seconds", type=float, help="of each window (default: 4; 2 when quick)")
    parser.add_argument("--repeats", type=int, default=2, help="windows a case (default: 2)")
    parser.add_argument("--models", type=Path, help="folder with deepfm.onnx and tiny.onnx; made when left out")
    parser.add_argument("--floor", type=Path, default=servers.FLOOR, help="folder of the fixed floor")
    parser.add_argument("--plot", type=Path, help="draw the one-row costs into this SVG")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the tables")
    arguments = parser.parse_args()
    arguments.seconds = arguments.seconds or (2.0 if arguments.quick else 4.0)
    return arguments


if __name__ == "__main__":
    main()
