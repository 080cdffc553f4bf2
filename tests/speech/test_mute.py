"""What is personal is not heard in audio that is kept, and nothing is kept where that is not sure."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.flows.speech.kept import Kept, forget
from millstream.flows.speech.settings import RATE
from millstream.flows.speech.words.gate import Gate
from millstream.flows.speech.words.mute import MARGIN_S, REACH_S, droppable, mute, widened
from millstream.meter import Meter
from millstream.spoken import Word

DAY = 86_400.0
seconds = st.floats(-1.0, 6.0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(seconds, st.floats(0.0, 2.0)), max_size=4), st.integers(0, 4 * RATE), st.floats(0, 2))
def test_nothing_is_left_within_a_span_and_its_margin_and_all_else_is_as_it_was(lengths, size, begin) -> None:
    audio = np.full(size, 0.5, np.float32)
    spans = [(start, start + length) for start, length in lengths]
    quiet = mute(audio, spans, begin)
    at = begin + np.arange(size) / RATE
    inside, near = np.zeros(size, bool), np.zeros(size, bool)
    for start, end in spans:
        inside |= (at >= start - MARGIN_S) & (at < end + MARGIN_S)
        near |= (at >= start - MARGIN_S - 0.011) & (at < end + MARGIN_S + 0.011)
    assert not quiet[inside].any()
    assert (quiet[~near] == 0.5).all() and (audio == 0.5).all() and quiet.dtype == np.float32
    assert np.abs(np.diff(quiet)).max(initial=0) < 0.02, "no click: it fades"


def test_words_beside_a_span_bound_how_far_it_is_widened() -> None:
    words = [Word("a", 0.0, 1.0), Word("[PHONE]", 1.05, 2.0), Word("b", 3.0, 3.4)]
    assert widened(words, [(1.05, 2.0)]) == [(1.05, pytest.approx(2.0 + REACH_S - MARGIN_S))]
    assert widened(words[1:2], [(1.05, 2.0)]) == [(pytest.approx(0.75 + MARGIN_S), pytest.approx(2.3 - MARGIN_S))]


@pytest.mark.parametrize(
    ("words", "spans", "drop"),
    [
        ([Word("a", 0, 1), Word("[PHONE]", 1, 2)], [(1, 2)], False),
        ([Word("a", 0, 1)], [], False),
        ([Word("[PHONE]", 1, 1)], [(1, 1)], True),
        ([Word("b", 5, 6), Word("[PHONE]", 1, 2)], [(1, 2)], True),
        ([Word("[PHONE]", 1, float("nan"))], [(1, float("nan"))], True),
    ],
)
def test_audio_without_times_that_can_be_trusted_is_not_kept(words, spans, drop) -> None:
    assert droppable(words, spans, True) is drop
    assert droppable(words, spans, False) is bool(spans), "times that are guesses mute something else"


def _read(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767


def test_a_number_that_was_said_is_not_in_the_file(tmp_path: Path) -> None:
    """From words as they were heard to the file: what lies under the number is silence, the rest is there."""
    heard = [Word(text, i / 2, i / 2 + 0.4) for i, text in enumerate(["call", "415", "555", "0123", "please", "now"])]
    words, spans = Gate().final(heard, 0.0, 2.9)
    sound = np.random.default_rng(3).normal(0, 0.1, 3 * RATE).astype(np.float32)
    kept = Kept(tmp_path / "audio", 30, Meter())
    name = kept.put("s/1", "a", lambda: sound, 0.0, words, spans, True, 1000.0)
    kept.close()
    path = tmp_path / "audio" / name
    assert path.stat().st_mode & 0o777 == 0o600 and name == "0000001000000-s_1-a.wav"
    left = _read(path)
    assert len(left) == 3 * RATE and not left[round(0.4 * RATE) : round(2.0 * RATE)].any()
    assert np.abs(left[: round(0.38 * RATE)] - sound[: round(0.38 * RATE)]).max() < 1e-4
    assert np.abs(left[round(2.2 * RATE) :] - sound[round(2.2 * RATE) :]).max() < 1e-4


def test_audio_goes_with_its_days_with_what_is_too_much_and_when_a_session_is_forgotten(tmp_path: Path) -> None:
    meter, sound = Meter(), np.zeros(RATE, np.float32)
    kept = Kept(tmp_path, 2, meter, bytes_max=150_000)
    words = [Word("hello", 0.0, 1.0)]
    for n in range(3):
        kept.put(f"s{n % 2}", f"g{n}", lambda: sound, 0.0, words, [], True, 100 * DAY + n)
    kept.close()
    assert forget(tmp_path, "s0".__eq__) == 2
    assert [name.split("-")[1] for name in os.listdir(tmp_path)] == ["s1"]
    kept = Kept(tmp_path, 2, meter, bytes_max=150_000)
    (tmp_path / "note.txt").write_text("not ours")
    for n in range(9):
        kept.put("s2", f"g{n}", lambda: sound, 0.0, words, [], True, 101 * DAY + n)
    kept.close()
    assert forget(tmp_path, "nobody".__eq__) == 0
    assert sorted(name.split("-")[2] for name in os.listdir(tmp_path) if name != "note.txt") == [
        f"g{n}.wav" for n in range(5, 9)
    ], "the oldest go first, as long as it is too much"
    assert kept.expire(104 * DAY) == 4 and os.listdir(tmp_path) == ["note.txt"]
    assert meter.sum("millstream_speech_audio_kept_total") == 12


def test_a_disk_that_takes_nothing_costs_the_audio_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    meter = Meter()
    kept = Kept(tmp_path / "file" / "below", 1, meter)
    kept.put("s", "g", lambda: np.zeros(9, np.float32), 0.0, [Word("a", 0, 1)], [], True, 0.0)
    assert kept.put("s", "h", lambda: np.zeros(9, np.float32), 0.0, [], [], True, 0.0) == "", (
        "no words: nobody knows what is in it"
    )
    kept.close()
    assert meter.sum("millstream_speech_audio_dropped_total") == 2
