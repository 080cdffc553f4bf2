"""The laws of a session on real speech, with the real detector and Whisper: slow."""

import asyncio
from dataclasses import replace

import jiwer
import numpy as np
import pytest
from speech_house import RATE, Desk, finals, live, pcm, said

from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.speech.vad import Vad
from millstream.spoken import Segment

SAID = "i really liked that account of himself better than anything else he said"


class Real(Desk):
    """The engine's submit over a real windowed recogniser."""

    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.fixture(scope="module")
def heard(weights, clip):
    """What sessions tell of a clip between silences, its messages of each of two lengths."""
    repository = Repository(weights("silero-vad", "whisper-base"))
    vad, model = (load(repository, name, repository.policy(name).live) for name in ("silero-vad", "whisper-base"))
    quiet = np.zeros(RATE, np.float32)
    data = pcm(np.concatenate([quiet, clip("librispeech/1688-142285-0003"), quiet, quiet]))

    def told(size):
        hall = live(Real(model), language="en")
        hall._wiring = replace(hall._wiring, vad=Vad(vad))
        return asyncio.run(said(hall, data, (size,)))

    return told(640), told(32_000)


@pytest.mark.slow
def test_real_speech_is_heard_the_same_however_it_arrives(heard):
    small, large = ([(one.text, one.start, one.end, one.words) for one in finals(each)] for each in heard)
    assert small == large
    text = " ".join(text for text, *_ in small)
    plain = "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ")
    assert jiwer.wer(SAID, plain) <= 0.2


@pytest.mark.slow
def test_no_stable_word_of_real_speech_is_taken_back(heard):
    stable, some = {}, False
    for one in heard[0]:
        if isinstance(one, Segment):
            before = stable.get(one.id, [])
            assert [word.text for word in one.words[: len(before)]] == before
            stable[one.id] = [word.text for word in one.words[: one.stable]]
            some = some or (one.stable and one.state != "final")
    assert some


def test_noise_is_not_recognised(weights):
    repository = Repository(weights("silero-vad"))
    vad = Vad(load(repository, "silero-vad", repository.policy("silero-vad").live))
    noise = np.random.default_rng(0)
    sounds = [noise.normal(0, level, 8 * RATE) for level in (0.001, 0.03)]
    sounds.append(0.3 * np.sign(np.sin(np.arange(4 * RATE) / 20)) + 0.4)  # clipped, with an offset

    async def run():
        desk = Desk()
        hall = live(desk)
        hall._wiring = replace(hall._wiring, vad=vad)
        for sound in sounds:
            assert finals(await said(hall, pcm(sound))) == []
        return desk.asked

    assert asyncio.run(run()) == []
