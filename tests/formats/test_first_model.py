"""docs/models.md, "Your first model": every section is run as it is written, against a real server, and what the
service answers is what the framework itself answers."""

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEAVY = ("PyTorch", "Keras", "TensorFlow")
START_S_MAX = 400.0


def sections() -> dict[str, str]:
    """Title -> text of the sections that ask a model."""
    parts = re.split(r"^## (.+)\n", PAGE.read_text(), flags=re.M)[1:]
    return {title: text for title, text in zip(parts[::2], parts[1::2], strict=True) if "client.predict" in text}


class Section:
    """What a section tells to write, to type and to ask."""

    def __init__(self, text: str) -> None:
        blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
        self.files = {found[1]: block for block in blocks if (found := re.match(r"# (\w+\.py)\n", block))}
        self.make, self.ask = [block for block in blocks if not re.match(r"# \w+\.py\n", block)]
        lines = [line.strip() for line in re.findall(r"^    millstream .+$", text, re.M)]
        self.add = [line for line in lines if line.startswith("millstream models add")]
        self.serve = [line for line in lines if line.startswith("millstream serve")]

    def prepare(self, folder: Path) -> np.ndarray:
        """Make the model and add it; what the framework itself answers."""
        for name, text in self.files.items():
            (folder / name).write_text(text)
        script = folder / "make.py"
        script.write_text(f"{self.make}\nimport numpy\nnumpy.save('answer.npy', answer)\n")
        run(folder, [sys.executable, script.name])
        for line in self.add:
            run(folder, [sys.executable, "-m", *shlex.split(line)])
        return np.load(folder / "answer.npy")


def run(folder: Path, command: list[str]) -> None:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@contextmanager
def serving(folder: Path, allow: bool):
    """A server over `models`, which was said to be listening: its address."""
    command = [sys.executable, "-m", "millstream", "serve", "models", "--http-port", "0", "--grpc-port", "0"]
    server = subprocess.Popen(
        [*command, *(["--allow-code"] if allow else [])], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    said: list[str] = []
    found = threading.Event()

    def listen() -> None:
        for line in server.stderr:
            said.append(line)
            if "serving at " in line:
                found.set()
        found.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        assert found.wait(START_S_MAX) and server.poll() is None, "".join(said)
        yield next(line for line in said if "serving at " in line).split("serving at ")[1].split()[0]
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            raise


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder, and the answers of the sections that were prepared in it, by title: each of them once."""
    return tmp_path_factory.mktemp("first"), {}


@pytest.fixture(scope="module")
def served(request, prepared):
    """All sections of a kind in one repository, beside each other in one server: (address, answers by title)."""
    folder, answers = prepared
    for title, text in sections().items():
        if title not in answers and (request.param or not title.startswith(HEAVY)):
            answers[title] = Section(text).prepare(folder)
    with serving(folder, allow=True) as address:
        yield address, answers


def check(served, title: str) -> None:
    """The section's request gets the framework's own answer."""
    address, answers = served
    names: dict[str, np.ndarray] = {}
    exec(textwrap.dedent(Section(sections()[title]).ask).replace("http://127.0.0.1:8000", address), names)
    expected = answers[title]
    assert names["answer"].shape == expected.shape
    np.testing.assert_allclose(names["answer"], expected, rtol=1e-4, atol=1e-6)


LIGHT = [title for title in sections() if not title.startswith(HEAVY)]


@pytest.mark.timeout(500)
@pytest.mark.parametrize("served", [False], indirect=True, ids=["light"])
@pytest.mark.parametrize("title", LIGHT)
def test_a_first_model_is_answered_as_by_its_framework(served, title):
    check(served, title)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("served", [True], indirect=True, ids=["side by side"])
@pytest.mark.parametrize("title", list(sections()))
def test_all_formats_side_by_side_in_one_server(served, title):
    check(served, title)


def test_every_section_says_how_it_is_served():
    for title, text in sections().items():
        section = Section(text)
        allow = " --allow-code" if title != "ONNX" else ""
        assert section.serve == [f"millstream serve models{allow}"], title
        assert section.add and all(("--allow-code" in line) == bool(allow) for line in section.add), title
    assert len(sections()) == 12
