"""The house keeps its shape: imports point downward, and importing the package stays cheap."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_point_downward():
    # a process of its own: the linter switches off the loggers of the one it runs in
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, millstream; print([m for m in ('numpy', 'numba', 'onnxruntime', 'asyncio') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_serving_onnx_never_imports_the_learner():
    code = "import sys, millstream.app.plain, millstream.models.runtimes.onnx; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
