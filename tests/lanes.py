"""Every test and the lint, in two lanes at once: `python tests/lanes.py`, which is what `make test-all` runs.

- Tests wait a lot: for processes that come up, for browsers, for clocks. What a core has left meanwhile is for the lane
  of work. It runs at a lower priority, so that whoever waits finds the machine nearly as if it were alone.
- WORK names the tests that no clock decides: they compute, and come to the same however long it takes. The lint is
  with them.
- All others are in the first lane, new ones too: none is left out because nobody named it.
- The last line is a closing line as pytest writes it, of both lanes together, for who counts what was skipped.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
NICE = 10
LIMIT_S = 900  # of a test in the lane of work: a bound for what hangs, where others may go first for minutes
WORK = (
    "tests/features", "tests/learn",
    "tests/front/grpc/test_service.py", "tests/front/grpc/test_transport_fuzz.py",
    "tests/front/grpc/test_transport_hpack.py",
    "tests/formats/test_keras.py", "tests/formats/test_tensorflow.py", "tests/formats/test_to_onnx.py",
    "tests/formats/test_torch.py",
    "tests/models/test_archive.py", "tests/models/test_environment.py", "tests/models/test_learners.py",
    "tests/models/test_sklearn.py",
    "tests/recall/test_build.py",
    "tests/speech/test_pocketsphinx.py", "tests/speech/test_recognisers.py", "tests/speech/test_speakers.py",
    "tests/speech/test_speakers_clips.py", "tests/speech/test_whisper.py", "tests/speech/test_words_gate.py",
    "tests/stream/test_join.py", "tests/stream/test_log.py", "tests/stream/test_tasks.py",
    "tests/test_dags.py", "tests/test_golden.py", "tests/test_loop.py", "tests/test_report.py", "tests/test_towers.py",
    "tests/watch/test_reading.py", "tests/watch/test_rules.py",
)  # fmt: skip
PYTEST = (sys.executable, "-m", "pytest")
WORDS = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")
CLOSING = re.compile(r"^[= ]*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s", re.M)


def summed(outputs: list[str], seconds: float) -> str:
    """The closing lines of all these runs as one; "" where a run has none."""
    total: Counter[str] = Counter()
    for said in outputs:
        if not (found := CLOSING.findall(said)):
            return ""
        for part in found[-1].split(", "):
            number, word = part.split()
            total[word.removesuffix("s")] += int(number)
    told = [f"{total[word]} {word}" for word in WORDS if total[word]]
    return f"{', '.join(told)} in {seconds:.2f}s (of two lanes, {seconds / 60:.1f} minutes)"


def main(root: Path = ROOT, work: tuple[str, ...] = WORK, lint: tuple[str, ...] = ("make", "lint")) -> int:
    """What the process ends with: 0 when the lint and every test in both lanes passed."""
    with tempfile.TemporaryFile() as out:
        return both(root, work, lint, out)


def both(root: Path, work: tuple[str, ...], lint: tuple[str, ...], out: IO[bytes]) -> int:
    """As `main`. The lane of work writes to `out`, and is shown once the first lane has ended."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lanes end with this one
    line = f"{shlex.join(lint)} && exec {shlex.join([*PYTEST, f'--timeout={LIMIT_S}', *work])}"
    lower = ["nice", "-n", str(NICE), "sh", "-c", line]
    beside = subprocess.Popen(lower, cwd=root, stdout=out, stderr=subprocess.STDOUT)
    first = subprocess.Popen([*PYTEST, *(f"--ignore={one}" for one in work)], cwd=root, stdout=subprocess.PIPE)
    said = b""
    try:
        while part := os.read(first.stdout.fileno(), 1 << 16):
            said += part
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
        ends = [first.wait(), beside.wait()]
    finally:
        for one in (first, beside):
            if one.poll() is None:
                one.terminate()
                one.wait()
    out.seek(0)
    outputs = [each.decode(errors="replace") for each in (said, out.read())]
    print(f"\nthe lane of work:\n{outputs[1]}")
    print(closing := summed(outputs, time.monotonic() - began))
    return ends[0] or ends[1] or int(not closing)


if __name__ == "__main__":
    sys.exit(main())
