"""The house keeps its shape: imports point downward, and importing the package stays cheap."""

import subprocess
import sys
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent


def test_imports_point_downward(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, millstream; print([m for m in ('numpy', 'numba', 'onnxruntime', 'asyncio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_serving_onnx_never_imports_the_learner():
    code = "import sys, millstream.engine, millstream.front.http, millstream.models; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
