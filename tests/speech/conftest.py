"""What the tests of speech share: clips with references, and the weights.

MILLSTREAM_AUDIO names the folder of clips, MILLSTREAM_SPEECH_MODELS a repository with what `millstream speech fetch`
gives; unset, the one beside this Python is taken, where `make` puts it.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from millstream.models.repository import Repository

RATE = 16_000


@pytest.fixture(scope="session")
def speech_models() -> Path:
    """The repository of weights; `weights("whisper-base")` asks for those that are not always there."""
    folder = Path(os.environ.get("MILLSTREAM_SPEECH_MODELS") or Path(sys.prefix) / "speech-models")
    missing = absent(folder, ("silero-vad", "wespeaker"))
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


def absent(folder: Path, names: tuple[str, ...]) -> str:
    """Those of `names` that a repository has no version of, with spaces between."""
    there = Repository(folder).models()
    return " ".join(name for name in names if name not in there)


def fetch(names: str, folder: Path) -> str:
    """The line that puts weights into a repository."""
    return f"millstream speech fetch {names} --models {folder}"


@pytest.fixture(scope="session")
def audio() -> Path | None:
    """The folder of clips, None where there is none."""
    named = os.environ.get("MILLSTREAM_AUDIO")
    return Path(named) if named else None


@pytest.fixture(scope="session")
def clip(audio: Path | None) -> Callable[[str], np.ndarray]:
    """`clip("librivox/0880")`: its sound as float32 [n], mono, 16 kHz. A test is skipped where there are no clips."""

    def read(name: str) -> np.ndarray:
        import soundfile
        from scipy.signal import resample_poly

        if audio is None:
            pytest.skip("no clips: set MILLSTREAM_AUDIO to their folder")
        path = audio / (name if name.endswith(".flac") else f"{name}.flac")
        sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
        sound = sound.mean(axis=1)
        if rate != RATE:
            sound = resample_poly(sound, RATE, rate)
        return np.ascontiguousarray(sound, np.float32)

    return read


@pytest.fixture(scope="session")
def speech(
    audio: Path | None, clip: Callable[[str], np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> np.ndarray:
    """Some ten seconds of somebody reading, float32 [n] at 16 kHz, for laws that want speech and no reference: where
    there are no clips, a recording that a package carries."""
    if audio is not None:
        return np.concatenate([clip("librivox/0870"), np.zeros(RATE // 2, np.float32), clip("librivox/0880")])
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
