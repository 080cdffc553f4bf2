"""Speech in sound: the same numbers however frames are grouped, and those of the model that goes frame by frame."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.errors import Misconfigured
from millstream.models.manifest import Manifest
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.speech.shelf import SHELF, File, Piece, fetch
from millstream.models.speech.vad import FRAME, Hearing, Vad


@pytest.fixture(scope="module")
def vad(speech_models):
    return Vad(load(Repository(speech_models), "silero-vad", Repository(speech_models).versions("silero-vad")[-1]))


def noisy(seconds):
    """Hum that comes and goes in noise: float32, whole frames."""
    count = int(seconds * 16_000) // FRAME * FRAME
    at = np.arange(count) / 16_000
    voice = np.sin(2 * np.pi * 140 * at) * (np.sin(2 * np.pi * 0.7 * at) > 0)
    return (0.2 * voice + 0.02 * np.random.default_rng(3).standard_normal(count)).astype(np.float32)


@given(cuts=st.lists(st.integers(1, 124), max_size=12))
@settings(max_examples=25, deadline=None)
def test_the_numbers_are_the_same_to_the_last_bit_however_frames_are_grouped(vad, cuts):
    sound = noisy(4)
    whole, after = vad.probabilities(sound, vad.fresh())
    hearing, parts = vad.fresh(), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(sound) // FRAME], strict=True):
        some, hearing = vad.probabilities(sound[start * FRAME : end * FRAME], hearing)
        hearing = Hearing.restored(hearing.save())  # as a session that goes on elsewhere
        parts.append(some)
    assert np.array_equal(np.concatenate(parts), whole)
    for name in ("h", "c", "before"):
        assert np.array_equal(getattr(hearing, name), getattr(after, name))


def test_long_sound_is_cut_into_calls_of_a_bound(vad):
    sound = noisy(40)
    whole, _ = vad.probabilities(sound, vad.fresh())
    hearing, parts = vad.fresh(), []
    for at in range(0, len(sound), FRAME):
        some, hearing = vad.probabilities(sound[at : at + FRAME], hearing)
        parts.append(some)
    assert len(whole) == len(sound) // FRAME and np.array_equal(np.concatenate(parts), whole)
    assert vad.probabilities(sound[:0], hearing)[0].shape == (0,)


def test_what_is_not_whole_frames_or_no_state_is_refused(vad):
    with pytest.raises(ValueError, match="whole frames of 512"):
        vad.probabilities(np.zeros(100, np.float32), vad.fresh())
    with pytest.raises(ValueError, match="lacks 'before'"):
        Hearing.restored({name: bytes(512) for name in ("h", "c")})


def test_another_model_is_refused_with_the_line_to_type(speech_models):
    repository = Repository(speech_models)
    other = load(repository, "wespeaker", repository.versions("wespeaker")[-1])
    with pytest.raises(Misconfigured, match="millstream speech fetch silero-vad"):
        Vad(other)


def test_speech_is_heard_and_silence_is_not(vad, speech):
    sound = speech[:48_000]
    found, _ = vad.probabilities(sound[: len(sound) // FRAME * FRAME], vad.fresh())
    assert (found > 0.5).mean() > 0.4
    assert vad.probabilities(np.zeros(100 * FRAME, np.float32), vad.fresh())[0].max() < 0.1


@pytest.mark.slow
def test_it_is_the_model_that_goes_frame_by_frame(vad, speech, tmp_path):
    item = SHELF["silero-vad"]
    frames = File(
        "model.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        (Piece(item.wheels[0], "silero_vad/data/silero_vad.onnx"),),
    )
    fetch(["frames"], Repository(tmp_path), lambda line: None, {"frames": _with(item, "frames", frames)})
    model = load(Repository(tmp_path), "frames", "1")
    assert isinstance(Repository(tmp_path).manifest("frames", "1"), Manifest)
    sound = speech[: len(speech) // FRAME * FRAME]
    state, before, expected = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
    for at in range(0, len(sound), FRAME):
        frame = np.concatenate([before, sound[at : at + FRAME]])[None]
        out = model.predict({"input": frame, "state": state, "sr": np.array(16_000, np.int64)})
        expected.append(float(out["output"][0, 0]))
        state, before = out["stateN"], sound[at + FRAME - 64 : at + FRAME]
    found, _ = vad.probabilities(sound, vad.fresh())
    assert np.abs(found - np.array(expected)).max() < 1e-5


def _with(item, name, file):
    import msgspec

    return msgspec.structs.replace(item, name=name, files=(file,))
