"""What an install weighs: the core, which serves ONNX, and what each extra adds to it.

    python bench/sizes.py [--extras a,b] [--anew] [--json]

Each is installed from this tree by pip into an environment of its own under .bench/envs, as a user would, and its
site-packages are measured, pip's own aside. torch comes from the index that pip is told of: the plain one has the build
with CUDA, whose libraries are most of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVS = ROOT / ".bench" / "envs"
CORE_MB = 200.0
INSTALL_S = 900.0
PINS = {"torch": ("torch==2.13.0",)}  # as the tests have it
NOT_SERVED = ("dev", "bench", "frameworks")  # what nobody installs to serve
TOOLS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")  # of the environment, not of the install


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", help="which, separated by commas (default: all that serve)")
    parser.add_argument("--anew", action="store_true", help="make environments again that are there already")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout instead of the table")
    arguments = parser.parse_args()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = arguments.extras.split(",") if arguments.extras else [name for name in known if name not in NOT_SERVED]
    rows = [row(name, arguments.anew) for name in ("", *extras)]
    print(json.dumps(rows) if arguments.json else markdown(rows))


def row(extra: str, anew: bool) -> dict[str, Any]:
    """Size of an extra with the core, in MB, and its three largest packages; or why it cannot be installed."""
    folder = ENVS / f"size-{extra or 'core'}"
    stamp = folder / "whole"
    print(f"{extra or 'core'} ...", file=sys.stderr, flush=True)
    if anew or not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        source = f"{ROOT}[{extra}]" if extra else str(ROOT)
        command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", source]
        command += PINS.get(extra, ())
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            return {"extra": extra, "why": f"the install took more than {INSTALL_S:.0f} s"}
        if done.returncode:
            return {"extra": extra, "why": (done.stderr.strip().splitlines() or ["?"])[-1]}
        stamp.touch()
    packages = {path.name: size(path) for path in next(folder.glob("lib/python*/site-packages")).iterdir()}
    ours = {name: mb for name, mb in packages.items() if not name.startswith(TOOLS)}
    largest = sorted(ours, key=lambda name: -ours[name])[:3]
    return {"extra": extra, "mb": sum(ours.values()), "largest": {name: ours[name] for name in largest}}


def size(path: Path) -> float:
    """What a file or a folder takes on the disk, in MB."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(one.lstat().st_blocks * 512 for one in files) / 1e6


def markdown(rows: list[dict[str, Any]]) -> str:
    core = rows[0].get("mb", float("nan"))
    lines = ["| install | MB on disk | over the core | largest |", "|---|---|---|---|"]
    for one in rows:
        name = f"millstream[{one['extra']}]" if one["extra"] else "millstream (core, ONNX)"
        if "why" in one:
            lines.append(f"| {name} | - | - | {one['why']} |")
            continue
        largest = ", ".join(f"{package} {mb:.0f}" for package, mb in one["largest"].items())
        lines.append(f"| {name} | {one['mb']:.0f} | {one['mb'] - core:.0f} | {largest} |")
    verdict = "ok" if core < CORE_MB else "**missed**"
    bound = f"| core + ONNX, installed | < {CORE_MB:.0f} MB | {core:.0f} MB | {verdict} |"
    return "\n".join([*lines, "", "| bound | limit | measured | |", "|---|---|---|---|", bound])


if __name__ == "__main__":
    main()
