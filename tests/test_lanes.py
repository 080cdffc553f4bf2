"""Two lanes of tests are one run: nothing is lost between them, and what failed in either fails both."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lanes import ROOT, WORK, summed

RUN = "import sys; from pathlib import Path; from lanes import main; sys.exit(main(Path('.'), ('of_work.py',), ({},)))"


def test_what_is_named_for_the_lane_of_work_is_there():
    assert [one for one in WORK if not (ROOT / one).exists()] == []


@pytest.mark.parametrize(
    ("one", "other", "line"),
    [
        ("5 passed in 1.00s", "7 passed in 2.00s", "12 passed in 3.00s"),
        (
            "5 passed in 1.00s\nnanobind: leaked 15 types!",
            "1 passed, 1 skipped in 2.00s",
            "6 passed, 1 skipped in 3.00s",
        ),
        (
            "= 1 failed, 5 passed in 1.00s (0:00:01) =",
            "7 passed, 1 warning in 2.00s",
            "1 failed, 12 passed, 1 warning in 3.00s",
        ),
        ("5 passed, 2 warnings in 1.00s", "1 passed, 2 errors in 2.00s", "6 passed, 2 warning, 2 error in 3.00s"),
        ("5 passed in 1.00s", "a line of mypy, and nothing more", ""),
    ],
)
def test_closing_lines_are_summed(one, other, line):
    assert summed([one, other], 3.0).partition(" (of two")[0] == line


@pytest.mark.parametrize(
    ("first", "work", "lint", "code", "line"),
    [
        ("assert 1", "assert 1", "true", 0, r"2 passed in [\d.]+s"),
        ("assert 1", "assert 0", "true", 1, r"1 failed, 1 passed in [\d.]+s"),
        ("assert 0", "assert 1", "true", 1, r"1 failed, 1 passed in [\d.]+s"),
        ("import pytest; pytest.skip()", "assert 1", "true", 0, r"1 passed, 1 skipped in [\d.]+s"),
        ("assert 1", "assert 1", "false", 1, ""),
    ],
)
def test_both_lanes_are_run_and_either_fails_the_whole(tmp_path, first, work, lint, code, line):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q -p pytest_timeout\npython_files = *.py\n")
    (tmp_path / "of_waiting.py").write_text(f"def test_one():\n    {first}\n")
    (tmp_path / "of_work.py").write_text(f"def test_two():\n    {work}\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_ADDOPTS": ""}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(repr(lint))], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    last = done.stdout.rstrip("\n").split("\n")[-1]
    assert re.match(line, last), done.stdout
    told = re.search(r"grep -E '(.*)' \"\$log\"", (ROOT / ".ci" / "run").read_text())
    assert not line or re.match(told[1], last), "what CI looks for"
