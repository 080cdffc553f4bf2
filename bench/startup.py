"""What a start costs: importing the package, and from `millstream up` to the first ready answer, with the compiled
kernels cached (as the install leaves them) and without.

    python bench/startup.py [--repeats N] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from millstream.demo.data import simulated
from millstream.demo.run import Demo, free_port

IMPORT_S_MAX, READY_S_MAX = 0.5, 2.0


def import_s() -> float:
    code = "import time; t = time.perf_counter(); import millstream; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def compile_s() -> float:
    """Every kernel from nothing: an empty cache folder."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "NUMBA_CACHE_DIR": empty}
        began = time.perf_counter()
        command = [sys.executable, "-m", "millstream", "doctor", "--warm"]
        subprocess.run(command, env=environment, capture_output=True, check=True)
        return time.perf_counter() - began


async def ready_s(folder: Path) -> float:
    demo = Demo(folder, simulated(2000), free_port(0), lists=False)
    demo.prepare()
    seconds = await demo.start()
    await demo.stop()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ready = [asyncio.run(ready_s(Path(name) / str(n))) for n in range(args.repeats)]
    figures: dict[str, Any] = {
        "import_s": round(statistics.median(import_s() for _ in range(args.repeats)), 4),
        "import_s_bound": IMPORT_S_MAX,
        "ready_s": round(statistics.median(ready), 2),
        "ready_s_bound": READY_S_MAX,
        "ready_s_all": [round(one, 2) for one in ready],
        "kernels_compiled_cold_s": round(compile_s(), 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for key, value in figures.items():
        print(f"{key:>28}  {value}")
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
