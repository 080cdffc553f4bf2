"""What the tests of speech share: clips with references, and the weights.

MILLSTREAM_AUDIO names the folder of clips; unset, tests that want clips are left out, with a line that says so, and
laws are tried on a recording that a package carries. MILLSTREAM_SPEECH_MODELS names a repository with what `millstream
speech fetch` gives; unset, the one beside this Python is taken, where `make` puts it.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from millstream.models.model import Model, load
from millstream.models.repository import Repository

RATE = 16_000
CLIPS = os.environ.get("MILLSTREAM_AUDIO", "")
WANTING = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def speech_models() -> Path:
    """The repository of weights; `weights("whisper-base")` asks for those that are not always there."""
    folder = Path(os.environ.get("MILLSTREAM_SPEECH_MODELS") or Path(sys.prefix) / "speech-models")
    missing = absent(folder, ("silero-vad", "wespeaker", "pyannote"))
    if missing:
        pytest.skip(f"no {missing} in {folder}: {fetch(missing, folder)}")
    return folder


@pytest.fixture(scope="session")
def weights(speech_models: Path) -> Callable[..., Path]:
    """`weights("whisper-base")`: the repository, once it has these too. A test is skipped without."""

    def have(*names: str) -> Path:
        if missing := absent(speech_models, names):
            pytest.skip(f"no {missing} in {speech_models}: {fetch(missing, speech_models)}")
        return speech_models

    return have


@pytest.fixture(scope="session")
def newest(speech_models: Path) -> Callable[[str], Model]:
    """`newest("wespeaker")`: the latest version of a model of the repository, loaded."""
    repository = Repository(speech_models)
    return lambda name: load(repository, name, repository.versions(name)[-1])


def absent(folder: Path, names: tuple[str, ...]) -> str:
    """Those of `names` that a repository has no version of, with spaces between."""
    there = Repository(folder).models()
    return " ".join(name for name in names if name not in there)


def fetch(names: str, folder: Path) -> str:
    """The line that puts weights into a repository."""
    return f"millstream speech fetch {names} --models {folder}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what wants clips, where there are none."""
    if CLIPS:
        return
    wanting = [item for item in items if "audio" in getattr(item, "fixturenames", ())]
    config.stash[WANTING] = len(wanting)
    config.hook.pytest_deselected(items=wanting)
    items[:] = [item for item in items if item not in wanting]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say so."""
    if wanting := config.stash.get(WANTING, 0):
        terminalreporter.line(f"left out: {wanting} tests that want clips; set MILLSTREAM_AUDIO to their folder")


@pytest.fixture(scope="session")
def audio() -> Path:
    """The folder of clips. Where there is none, tests that ask for it, or for what asks for it, are left out."""
    return Path(CLIPS)


@pytest.fixture(scope="session")
def clip(audio: Path) -> Callable[[str], np.ndarray]:
    """`clip("librivox/0880")`: its sound as float32 [n], mono, 16 kHz."""
    return partial(read, audio)


def read(folder: Path, name: str) -> np.ndarray:
    """A clip of a folder."""
    import soundfile
    from scipy.signal import resample_poly

    sound, rate = soundfile.read(folder / f"{name.removesuffix('.flac')}.flac", dtype="float32", always_2d=True)
    sound = sound.mean(axis=1)
    if rate != RATE:
        sound = resample_poly(sound, RATE, rate)
    return np.ascontiguousarray(sound, np.float32)


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Some ten seconds of somebody reading, float32 [n] at 16 kHz, for laws that want speech and no reference: where
    there are no clips, a recording that a package carries."""
    if CLIPS:
        one, other = (read(Path(CLIPS), f"librivox/{number}") for number in ("0870", "0880"))
        return np.concatenate([one, np.zeros(RATE // 2, np.float32), other])
    import soundfile
    from scipy.signal import resample_poly

    from millstream.models.speech.packages import SHELF, File, Item, Piece
    from millstream.models.speech.shelf import fetch as put

    (wheel,) = SHELF["wespeaker"].wheels
    piece = Piece(wheel, "moonshine_voice/assets/beckett.wav")
    file = File("beckett.wav", "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61", (piece,))
    item = Item(name="recording", what="", licence="MIT", source="", files=(file,), format="onnx", file="beckett.wav")
    repository = Repository(tmp_path_factory.mktemp("recording"))
    put(["recording"], repository, lambda line: None, {"recording": item})
    sound, rate = soundfile.read(repository.folder("recording", "1") / "beckett.wav", dtype="float32", always_2d=True)
    return np.ascontiguousarray(resample_poly(sound.mean(axis=1), RATE, rate), np.float32)
