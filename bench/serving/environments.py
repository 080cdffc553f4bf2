"""An environment of its own for each server under test, made once under .bench/envs/NAME.

Versions are pinned. ONNX Runtime is the same version everywhere, ours included, so that the model costs the same. An
environment counts as made when its stamp holds the same pins; a failed install leaves no stamp and says why.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SCRATCH = ROOT / ".bench"
INSTALL_S = 1200.0
TOOLS = ("numpy", "orjson")  # what every small server script of ours uses

PINS: dict[str, tuple[str, ...]] = {
    "echo": ("grpcio==1.85.1",),
    "mlserver": ("mlserver==1.7.1",),
    "kserve": ("kserve==0.21.0",),
    "litserve": ("litserve==0.2.19",),
    "bentoml": ("bentoml==1.4.40",),
    "ray": ("ray[serve]==2.60.0",),
    "torchserve": ("torchserve==0.12.0", "torch==2.13.0", "setuptools<81", "psutil", "pyyaml", "packaging", "requests"),
    "triton": ("nvidia-pytriton==0.7.0",),
    "models": ("torch==2.13.0", "onnx"),
    "onnx": ("onnx==1.23.2",),
}
# Requirements of a peer that its version of the day asks for and an index may not have yet: any version will do, they
# change nothing that is measured.
RELAXED = {"bentoml": ("certifi",)}
REQUIRES = "import importlib.metadata as m, json, sys; print(json.dumps(m.requires(sys.argv[1])))"


class Failed(Exception):
    """An environment that could not be made; the text is the last of what the installer said."""


def runtime_version() -> str:
    return importlib.metadata.version("onnxruntime")


def python_of(name: str) -> Path:
    """The interpreter of environment `name`; makes the environment when it is not there. Raises Failed."""
    folder = SCRATCH / "envs" / name
    python, stamp = folder / "bin" / "python", folder / "pins.json"
    pins = [*PINS[name], *TOOLS, f"onnxruntime=={runtime_version()}"]
    wanted = json.dumps(pins)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making {folder.relative_to(ROOT)} (once): {' '.join(pins)}", file=sys.stderr)
    if not python.exists():
        venv.create(folder, with_pip=True)
    if name in RELAXED:
        package, rest = pins[0], pins[1:]
        _install(python, ["--no-deps", package])
        pins = [*_relaxed(python, package.partition("==")[0], RELAXED[name]), *rest]
    _install(python, pins)
    stamp.write_text(wanted)
    return python


def _install(python: Path, pins: list[str]) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise Failed(f"the install took more than {INSTALL_S:.0f} s") from None
    if done.returncode != 0:
        raise Failed(done.stderr.strip().splitlines()[-1])


def _relaxed(python: Path, package: str, names: tuple[str, ...]) -> list[str]:
    """What `package` requires, without the version bounds of `names` and without extras."""
    said = subprocess.run([python, "-c", REQUIRES, package], capture_output=True, text=True, check=True).stdout
    found = []
    for one in json.loads(said):
        if "extra ==" in one:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", one)[0]
        found.append(name if name in names else one)
    return found
