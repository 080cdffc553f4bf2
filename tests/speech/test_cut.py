"""Segments: what is cut is decided by frames alone, loses no speech, and ends in time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.flows.speech.cut import CLICK, Began, Cutter, Ended, Step, frames
from millstream.flows.speech.level import Level
from millstream.flows.speech.settings import FRAME, PROFILES, RATE, Profile

LABELLED = [f"vad/testset-audio-{n:02}" for n in range(1, 30, 2)]
PROFILE = Profile(segment_s_max=4.0)


def runs(*lengths):
    """Likelihoods: so many frames of silence, of speech, of silence ..."""
    return [p for n, count in enumerate(lengths) for p in [(0.02, 0.9)[n % 2]] * count]


def events(cutter, likely):
    return [*cutter.feed(likely), *cutter.finish()]


stretches = st.lists(st.integers(1, 60), min_size=1, max_size=14).map(lambda lengths: runs(*lengths))
noisy = st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.4, 0.6, 0.97]), max_size=400)


def test_a_segment_has_its_pre_roll_its_trailing_silence_and_ends_after_the_hangover():
    found = events(Cutter(Profile()), runs(40, 50, 40))
    onset, end = 40 * FRAME, 90 * FRAME
    assert found[0] == Began(onset + FRAME, onset - 10 * FRAME, onset)  # 300 ms are 10 frames
    assert [event for event in found if isinstance(event, Step)] == [
        Step(onset + 20 * FRAME), Step(onset + 31 * FRAME), Step(end + 9 * FRAME, pause=True)
    ]  # fmt: skip
    assert found[-1] == Ended(
        end + frames(608) * FRAME, onset - 10 * FRAME, onset, end + 13 * FRAME, end, 50 * FRAME, "silence"
    )


def test_speech_at_the_first_sample_has_all_of_its_audio():
    began, *_ = Cutter(Profile()).feed(runs(0, 20))
    assert (began.start, began.onset) == (0, 0)


def test_faint_frames_before_speech_belong_to_it():
    began = next(iter(Cutter(Profile()).feed([0.01] * 40 + [0.15] * 6 + [0.9] * 4)))
    assert began.onset == 40 * FRAME


def test_times_are_rounded_up_to_whole_frames():
    assert [frames(ms) for ms in (0, 1, 32, 33, 300, 608, 992)] == [0, 1, 1, 2, 10, 19, 31]


def test_a_click_is_no_word():
    ends = [event for event in events(Cutter(Profile()), runs(30, CLICK - 1, 60)) if isinstance(event, Ended)]
    assert [end.why for end in ends] == ["click"]


def test_a_full_stop_makes_a_shorter_silence_enough():
    def ended(full_stop):
        cutter, found = Cutter(Profile(punctuation_ms=192)), []
        for event in cutter.feed(runs(30, 40, 40)):
            found.append(event)
            cutter.full_stop = full_stop
        return found[-1]

    assert (ended(True).why, ended(True).at) == ("punctuation", (70 + 6) * FRAME)
    assert (ended(False).why, ended(False).at) == ("silence", (70 + 19) * FRAME)


def test_half_way_to_the_end_a_segment_is_heard_as_if_it_were_over():
    """Each time that somebody pauses for so long; a streaming recogniser is told only when it is over."""
    likely = runs(10, 40, 12, 31, 30)
    pauses = [event.at for event in events(Cutter(Profile()), likely) if isinstance(event, Step) and event.pause]
    assert pauses == [(50 + 9) * FRAME, (93 + 9) * FRAME]
    steps = [event for event in events(Cutter(Profile(), hindsight=False), likely) if isinstance(event, Step)]
    assert steps == [Step(30 * FRAME), Step(41 * FRAME), Step(72 * FRAME), Step(103 * FRAME)]


def test_no_more_than_the_final_text_is_asked_for_without_partials_and_nothing_of_a_click():
    quiet = events(Cutter(Profile(partials=False)), runs(10, 90, 40))
    assert not [event for event in quiet if isinstance(event, Step)]
    assert not [event for event in events(Cutter(Profile()), runs(30, CLICK - 1, 60)) if isinstance(event, Step)]


def test_long_speech_is_cut_where_it_is_least_likely_and_goes_on_there():
    likely = runs(10, 200)
    likely[100] = 0.6  # the cut is decided at 4 s, frame 125 of the segment's audio
    found = [event for event in events(Cutter(PROFILE), likely) if not isinstance(event, Step)]
    first, again = found[1], found[2]
    assert (first.why, first.end) == ("length", 100 * FRAME)
    assert (again.start, again.onset) == (100 * FRAME, 100 * FRAME)


def test_without_hindsight_long_speech_is_cut_at_its_first_pause_late_enough():
    likely = runs(10, 200)
    likely[20] = likely[60] = 0.2  # the last 3 s of the first segment's 4 begin with frame 31
    end = next(event for event in events(Cutter(PROFILE, hindsight=False), likely) if isinstance(event, Ended))
    assert (end.why, end.end, end.at) == ("length", 61 * FRAME, 61 * FRAME)


def test_what_is_stable_is_not_cut_off():
    likely = runs(10, 200)
    likely[100] = 0.6
    cutter, found = Cutter(PROFILE), []
    for event in cutter.feed(likely):
        found.append(event)
        cutter.stable_to = 110 * FRAME + 7
    end = next(event for event in found if isinstance(event, Ended))
    assert end.end >= 110 * FRAME + 7


@given(stretches | noisy, st.lists(st.integers(1, 50), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_grouping_changes_nothing(likely, groups):
    whole = events(Cutter(PROFILE), likely)
    cutter, found, at, n = Cutter(PROFILE), [], 0, 0
    while at < len(likely):
        size = groups[n % len(groups)]
        found += cutter.feed(likely[at : at + size])
        at, n = at + size, n + 1
    assert [*found, *cutter.finish()] == whole


@given(noisy)
@settings(max_examples=60, deadline=None)
def test_it_goes_on_from_wherever_a_segment_has_ended(likely):
    whole, fed = events(Cutter(PROFILE), likely), len(list(Cutter(PROFILE).feed(likely)))
    for n in [n for n, event in enumerate(whole[:fed]) if isinstance(event, Ended)]:
        cutter, again = Cutter(PROFILE), Cutter(PROFILE)
        feed = cutter.feed(likely)
        assert [next(feed) for _ in range(n + 1)] == whole[: n + 1]
        again.restore(cutter.save())
        begun = int(again.open)  # behind a cut for length the next segment is open already
        assert [*again.feed(likely[cutter.at // FRAME :]), *again.finish()] == whole[n + 1 + begun :]


@given(noisy)
@settings(max_examples=150, deadline=None)
def test_segments_lose_no_speech_overlap_none_and_are_never_too_long(likely):
    found = [event for event in events(Cutter(PROFILE), likely) if isinstance(event, Ended)]
    covered = np.zeros(len(likely), bool)
    before = 0
    for end in found:
        assert end.start <= end.onset <= end.speech_end <= end.end <= end.at
        assert end.end - end.start <= PROFILE.segment_s_max * RATE
        assert end.start >= before  # not into the speech of the segment before
        before = end.speech_end
        covered[end.start // FRAME : -(-end.end // FRAME)] = True
    assert all(covered[n] for n, p in enumerate(likely) if p >= 0.5)


@given(noisy)
@settings(max_examples=60, deadline=None)
def test_no_audio_is_asked_for_that_may_be_forgotten(likely):
    cutter, needed = Cutter(PROFILE), 0
    for p in likely:
        for event in cutter.feed([p]):
            if isinstance(event, Began | Ended):
                assert event.start >= needed
        needed = max(needed, cutter.needed_from)


def labelled(audio, name):
    (row,) = (audio / f"{name}.scv").read_text().splitlines()
    cells = row.split(",")[1:]
    marks = [(float(a), float(b), kind) for a, b, kind in zip(cells[::3], cells[1::3], cells[2::3], strict=True)]
    return [(a, b) for a, b, kind in marks if kind == "1"]


@pytest.fixture(scope="module")
def vad(speech_models):
    from millstream.models.model import load
    from millstream.models.repository import Repository
    from millstream.models.speech.vad import Vad

    repository = Repository(speech_models)
    return Vad(load(repository, "silero-vad", repository.versions("silero-vad")[-1]))


@pytest.mark.parametrize("gain_db", [0, -30])
@pytest.mark.parametrize("profile", ["caption", "assistant", "court"])
def test_no_first_syllable_is_lost_and_segments_end_in_time_on_labelled_clips(audio, clip, vad, profile, gain_db):
    lost, late, profile = [], [], PROFILES[profile]
    for name in LABELLED:
        sound = np.concatenate([clip(name) * np.float32(10 ** (gain_db / 20)), np.zeros(2 * RATE, "f4")])
        sound = Level().feed(sound)
        likely, _ = vad.probabilities(sound[: len(sound) // FRAME * FRAME], vad.fresh())
        found = [event for event in events(Cutter(profile), likely) if isinstance(event, Ended)]
        for onset, _ in labelled(audio, name):
            reach = max(onset - 0.1, 0.0) * RATE
            if not any(end.start <= reach and end.end > onset * RATE for end in found):
                lost.append((name, onset))
        for end in found:
            before = [b for _, b in labelled(audio, name) if end.start < b * RATE <= end.at]
            if before and end.why == "silence":
                late.append(end.at / RATE - max(before))
    assert not lost
    assert np.percentile(late, 95) < profile.hangover_ms / 1000 + 0.4
