"""What a recogniser is found to take: against recognisers whose cost is known."""

import asyncio
import time

import numpy as np
import pytest
from msgspec.structs import replace
from speech_house import SCRIPT, STREAM, Desk, ticking

from millstream import errors
from millstream.clock import FakeClock
from millstream.flows.speech.pressure import fits, follows
from millstream.flows.speech.recognise import Asker, windowed
from millstream.flows.speech.settings import PROFILES, RATE
from millstream.flows.speech.trial import HERE, LONG_S, PAUSE_S, TOKENS_S, hush, listening, syllables, trial
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.speech.heard import read
from millstream.models.speech.turns import Spoken


class Costly(Desk):
    """Each call takes `call_s` of the clock, and `audio_s` for each second of its audio; the first `busy` ones more."""

    def __init__(self, script, call_s, audio_s=0.0, busy=0):
        super().__init__(script, FakeClock())
        self.call_s, self.audio_s, self.busy = call_s, audio_s, busy

    async def answer(self, request):
        self.busy -= 1
        self.cost_s = self.call_s + self.audio_s * request.inputs["audio"].shape[1] / RATE + 0.5 * (self.busy >= 0)
        return await super().answer(request)


def tried(desk, profile="caption"):
    async def test():
        async with ticking(desk.clock, 0.001):
            asker = Asker(desk.submit, "fake")
            return await trial(asker, PROFILES[profile], desk.slots is not None, (desk.clock.monotonic,))

    return asyncio.run(test())


def near(seconds):
    return pytest.approx(seconds, abs=0.003)


def test_a_call_and_what_its_length_adds_are_found():
    desk = Costly(SCRIPT, 0.020, 0.010)
    cost = tried(desk)
    assert cost.first_s == near(0.0294)  # .94 s of audio; words cost nothing
    assert cost.step_s == near((0.0294 + 0.070) / 2)
    assert cost.final_s == near(0.070) and cost.segment_s == LONG_S == 5.0
    assert {priority for _, priority in desk.asked} == {0, 1}
    assert {one["beam"][0] for one, _ in desk.asked} == {1, 5}
    assert {one["language"][0] for one, _ in desk.asked} == {"en"}


def test_a_recogniser_whose_final_text_fails_is_refused_in_words():
    def fails(inputs, priority):
        return errors.Failed("it is gone") if inputs["end"][0] else None

    with pytest.raises(errors.Misconfigured, match="fake: it cannot be measured: it is gone"):
        tried(Desk(STREAM, FakeClock(), 0.01, fails))


def test_words_have_their_price():
    """A recogniser that takes 10 ms for each word: of long audio it is asked for what people say in it."""

    class Wordy(Costly):
        async def answer(self, request):
            output = await super().answer(request)
            await self.clock.sleep(0.010 * read(output.outputs["heard"][0]).tokens)
            return output

    cost = tried(Wordy(SCRIPT, 0.020))
    assert cost.first_s == pytest.approx(0.020 + TOKENS_S * 0.640 * 0.010, abs=0.01)
    assert cost.final_s == pytest.approx(0.020 + TOKENS_S * LONG_S * 0.010, abs=0.05)
    assert cost.first_s < cost.step_s < cost.final_s


def test_a_streaming_recogniser_is_bounded_by_what_it_takes():
    desk = Costly(STREAM, 0.020)
    cost = tried(desk)
    assert (cost.step_s, cost.final_s) == (near(0.020), near(0.020))
    assert 22 <= follows(PROFILES["caption"], cost, 1) <= 25  # .7 / (.020 + .002 + .007)
    assert desk.left == set(desk.turns) or not desk.left
    for inputs, _ in desk.asked[1:5]:
        assert inputs["audio"].shape[1] == 992 * RATE // 1000  # steps as long as the profile's


def test_a_machine_that_was_busy_for_a_moment_refuses_nothing():
    caption = replace(PROFILES["caption"], first_token_ms_max=1200)
    assert fits(caption, tried(Costly(SCRIPT, 0.020, busy=5))) is None
    assert "takes 520 ms" in fits(caption, tried(Costly(SCRIPT, 0.020, busy=100)))


def test_what_is_made_is_like_speech_and_always_the_same():
    sound = syllables(2.0, 3)
    assert sound.dtype == np.float32 and sound.shape == (2 * RATE,)
    assert np.array_equal(sound, syllables(2.0, 3)) and not np.array_equal(sound, syllables(2.0, 4))
    frames = sound.reshape(-1, 400)
    loud = np.sqrt(np.einsum("ij,ij->i", frames, frames) / 400)
    assert np.quantile(loud, 0.9) > 0.05 > 4 * np.quantile(loud, 0.05)  # it comes and goes
    spectrum = np.abs(np.fft.rfft(sound)) ** 2
    assert spectrum[: 4000 * 2].sum() > 0.8 * spectrum.sum()  # most of it under 4 kHz
    assert 0 < np.abs(hush(1.0)).max() < 0.01


def test_telling_voices_apart_is_counted_by_the_second():
    clock = FakeClock()

    async def embed(sounds):
        assert [len(sound) for sound in sounds] == [round(1.6 * RATE)]
        clock.advance(0.02)
        return np.zeros((1, 256), np.float32)

    async def turns(sounds):
        assert [len(sound) for sound in sounds] == [10 * RATE]
        clock.advance(0.05)
        return [Spoken([], [])]

    clocks = (clock.monotonic,)
    assert asyncio.run(listening(None, None, clocks)) == 0
    assert asyncio.run(listening(embed, None, clocks)) == pytest.approx(0.025)
    assert asyncio.run(listening(embed, turns, clocks)) == pytest.approx(0.025 + 0.05 / PAUSE_S)


@pytest.mark.slow
def test_whisper_is_found_to_take_about_what_speech_takes_it(weights, speech):
    """Of the sound that is made no text comes that means anything, but its price is that of speech, within a factor."""
    repository = Repository(weights("whisper-base"))
    model = load(repository, "whisper-base", repository.policy("whisper-base").live)
    desk = Desk()
    desk.model = model
    cost = asyncio.run(trial(Asker(desk.submit, "whisper-base"), PROFILES["caption"], False, HERE))

    def took(seconds, beam):
        sound = speech[RATE // 2 : RATE // 2 + round(seconds * RATE)]
        inputs = windowed(sound, "en", "", beam, beam > 1) | {"samples": np.array([len(sound)], np.int32)}
        times = []
        for _ in range(3):
            began = time.process_time()
            model.predict(inputs)
            times.append(time.process_time() - began)
        return min(times)

    assert 0.4 < cost.first_s / took(1.3, 1) < 2.5
    assert 0.3 < cost.final_s / took(LONG_S, 5) < 3
