"""Who speaks, in recordings of people: by the model that tells voices, where its weights and the clips are."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from made_voices import Listener, partition
from scipy.signal import resample_poly

from millstream.app import voices
from millstream.errors import BadInput, Misconfigured, NotFound
from millstream.flows.speech.settings import RATE, SpeechSettings
from millstream.flows.speech.speakers import Speakers, Voiced
from millstream.models.speech.voice import Voice

BENCH = Path(__file__).parents[2] / "bench" / "speech" / "speakers.py"


@pytest.fixture(scope="module")
def embed(newest):
    return Voice(newest("wespeaker")).embed


def listen(speakers, embed, sounds):
    """Each sound is a segment; who is shown with each in the end."""
    listener, at = Listener(), 0
    for number, sound in enumerate(sounds):
        start, at = at, at + len(sound)
        windows = speakers.wants(start, at, True)
        rows = embed([sound[a - start : b - start] for a, b in windows])
        heard = [Voiced(a, b, row) for (a, b), row in zip(windows, rows, strict=True)]
        now = at + RATE
        listener.tell(speakers.due(now))
        listener.final(f"s{number}", start / RATE, at / RATE, speakers.hear(f"s{number}", start, at, heard, now))
        at = now
    listener.tell(speakers.end(at))
    return listener.whos()


def test_one_voice_with_shifted_level_and_pitch_is_one_speaker_beside_another(embed, clip):
    one = clip("librispeech/2609-156975-0002")[: 10 * RATE]
    other = clip("librispeech/367-130732-0002")[: 4 * RATE]
    faster, slower = (resample_poly(one, up, 100).astype(np.float32) for up in (94, 106))
    takes = [
        one[: 4 * RATE],
        other,
        one[4 * RATE : 8 * RATE] * np.float32(0.1),
        faster[: 4 * RATE],
        slower[-4 * RATE :],
    ]
    assert partition(listen(Speakers("correctable"), embed, takes)) == partition([0, 1, 0, 0, 0])


def test_voices_are_enrolled_from_recordings_and_known_again(speech_models, audio, clip, embed, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "models").symlink_to(speech_models)
    config = tmp_path / "millstream.toml"
    config.write_text('[speech]\nvoice = "wespeaker"\n')
    settings = SpeechSettings(voice="wespeaker")
    assert voices.known(tmp_path, voices.stamp(tmp_path, settings)) == []
    folder = audio / "librispeech"
    made = voices.enrol(config, "法官", [folder / "2609-156975-0002.flac"], 1.0)
    assert made.seconds > 8 and made.alike > 0.4
    with pytest.raises(BadInput, match="sounds like 法官"):
        voices.enrol(config, "原告", [folder / "2609-156975-0008.flac"], 1.0)
    known = voices.known(tmp_path, voices.stamp(tmp_path, settings))
    sounds = [clip(f"librispeech/{name}")[: 4 * RATE] for name in ("2609-156975-0005", "367-130732-0002")]
    assert listen(Speakers("enrolled", known=known), embed, sounds) == ["法官", "unknown"]
    with pytest.raises(NotFound, match="no such file"):
        voices.enrol(config, "x", [folder / "absent.flac"], 1.0)
    config.write_text("")
    with pytest.raises(Misconfigured, match=r'voice = "wespeaker"'):
        voices.enrol(config, "x", [], 1.0)
    assert voices.known(tmp_path, voices.stamp(tmp_path, SpeechSettings())) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("mix/mix2a", 0.02), ("pyannote-sample/sample", 0.05)])
def test_confusion_after_the_end_is_within_its_bound(embed, audio, clip, name, most):
    sound = clip(name)[: 57 * RATE]
    spec = importlib.util.spec_from_file_location("bench_speakers", BENCH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    made = bench.Clip(name, sound, [t for t in bench.rttm(audio / f"{name}.rttm") if t.end <= len(sound) / RATE], {})
    speakers = Speakers("correctable")
    said = bench.session(made, bench.regions(made), lambda _, sound, a, b: embed([sound[a:b]])[0], speakers)
    assert len(made.turns) >= 10 and bench.confusion(made.turns, said.last)[0] < most
