"""The laws of live speech on real clips, with the real detector, Whisper and voices: slow.

What a model answers is remembered by what it was asked, so that hearing a clip again in other pieces costs nothing:
whether answers depend on what else the model was asked is a law of its own below, where nothing is remembered.
"""

import asyncio
import os

import numpy as np
import pytest
from scipy.signal import resample_poly
from speech_house import RATE, Desk, cuts, finals, fold, live, pcm, said, ticking

from millstream.clock import FakeClock, SystemClock
from millstream.engine import Engine
from millstream.flows.speech.settings import PROFILES, ProfileSaid
from millstream.flows.speech.speakers import Speakers
from millstream.flows.speech.words.gate import Gate
from millstream.meter import Meter
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.runtimes.scripted import Script, speak
from millstream.models.speech.turns import Turns
from millstream.models.speech.vad import Vad
from millstream.models.speech.voice import Voice
from millstream.spoken import Correction, Segment, Start

pytestmark = pytest.mark.slow

QUIET = np.zeros(RATE, np.float32)
READ = "librispeech/3005-163389-0001"
CLIPS = [READ, "zh/funasr_example", "vad/testset-audio-25"] if os.environ.get("MILLSTREAM_AUDIO") else [""]
AT_EASE = {"degrade_queue_ms": 600_000}  # no hypothesis is left out where a machine is slow
LABELLED = [f"vad/testset-audio-{n:02}" for n in range(1, 30, 2)]
STEP_COST_S = 0.15
"""About what whisper-base takes of a quiet core for a hypothesis: bench/speech/wer.py measures it."""


class Remembers:
    """A model that computes each question once."""

    def __init__(self, model):
        self.model, self.known, self.computed = model, {}, 0

    def predict(self, inputs):
        key = tuple((name, one.tobytes() if one.dtype != object else tuple(one)) for name, one in inputs.items())
        if key not in self.known:
            self.known[key] = self.model.predict(inputs)
            self.computed += 1
        return dict(self.known[key])


class Paced(Desk):
    """The engine's submit over a model that takes its time for hypotheses, and none for final texts."""

    async def answer(self, request):
        self.cost_s = 0.0 if request.priority else STEP_COST_S
        return await super().answer(request)


class House:
    """What is loaded once for all of these tests."""

    def __init__(self, folder):
        self.repository = Repository(folder)
        self.vad = Vad(self.load("silero-vad"))
        self.whisper = Remembers(self.load("whisper-base"))
        self.voice = Voice(self.load("wespeaker"))
        self.turns = Turns(self.load("pyannote"))
        self.voices, self.looked = {}, {}

    def load(self, name):
        return load(self.repository, name, self.repository.policy(name).live)

    async def embed(self, sounds):
        for sound in sounds:
            if sound.tobytes() not in self.voices:
                (self.voices[sound.tobytes()],) = self.voice.embed([sound])
        return np.stack([self.voices[sound.tobytes()] for sound in sounds])

    async def spoken(self, sounds):
        for sound in sounds:
            if sound.tobytes() not in self.looked:
                (self.looked[sound.tobytes()],) = self.turns.spoken([sound])
        return [self.looked[sound.tobytes()] for sound in sounds]

    def hall(self, **more):
        desk = Desk()
        desk.model = self.whisper
        return live(desk, **{"vad": self.vad, "embed": self.embed, "listen": self.spoken, "speakers": who, **more})


def who(profile, saved):
    return Speakers(profile.speakers) if saved is None else Speakers.restored(saved)


@pytest.fixture(scope="module")
def house(weights):
    return House(weights("silero-vad", "whisper-base", "wespeaker", "pyannote"))


@pytest.fixture(scope="module", params=CLIPS)
def sound(request, speech):
    """Three clips between silences; where there are none, one recording."""
    if request.param == "":
        return np.concatenate([speech, QUIET, QUIET])
    return np.concatenate([QUIET[: RATE // 2], request.getfixturevalue("clip")(request.param), QUIET, QUIET])


def heard(house, data, sizes, **more):
    return asyncio.run(said(house.hall(**more), data, sizes, Start(speakers="correctable")))


def told(messages):
    """All that must not depend on how audio came: what is final and who spoke, and by segment and end what was stable
    (which hypotheses are told does: those that are old when their turn comes are left out)."""
    last = [(one.id, one.start, one.end, one.words, one.speaker) for one in finals(messages)]
    corrected = [(one.id, one.speaker, one.reason) for one in messages if isinstance(one, Correction)]
    stable = {(one.id, one.end): one.words[: one.stable] for one in messages if isinstance(one, Segment)}
    return (last, corrected), stable


def test_the_size_of_messages_changes_no_word_no_time_and_no_speaker(house, sound):
    data = pcm(sound)
    first, stable = told(heard(house, data, (640,)))
    assert any(words for *_, words, _ in first[0]) and any(stable.values())
    computed = house.whisper.computed
    random = np.random.default_rng(5)
    sizes = [(ms * 32,) for ms in (10, 37, 100, 320, 1000)]
    for size in [*sizes, *(tuple(random.integers(1, 40_000, 50).tolist()) for _ in range(3))]:
        again, words = told(heard(house, data, size))
        assert again == first
        assert {each: words[each] for each in words if each in stable} == {
            each: stable[each] for each in stable if each in words
        }
    assert house.whisper.computed == computed  # the recogniser was asked the very same


def test_where_two_speak_at_once_is_flagged_however_it_comes(house, speech):
    other = resample_poly(speech, 125, 100).astype(np.float32)  # a fifth deeper, and slower
    both = speech.copy()
    both[3 * RATE : 7 * RATE] += other[: 4 * RATE]
    data = pcm(np.concatenate([both, QUIET, speech, QUIET]))
    first, _ = told(heard(house, data, (640,)))
    flags = [(start, end) for _, start, end, _, speaker in first[0] if speaker.overlap]
    assert flags and all(start < 7 and end > 3 for start, end in flags)
    random = np.random.default_rng(6)
    for size in ((32_000,), tuple(random.integers(1, 40_000, 50).tolist())):
        assert told(heard(house, data, size))[0] == first


def test_no_stable_word_is_ever_taken_back(house, sound):
    some = False
    for profile in (ProfileSaid(), ProfileSaid(step_ms=512, look_ahead_ms=0)):
        stable = {}
        for one in heard(house, pcm(sound), (3200,), profiles={"caption": profile}):
            if isinstance(one, Segment):
                before = stable.get(one.id, [])
                assert [word.text for word in one.words[: len(before)]] == before
                stable[one.id] = [word.text for word in one.words[: one.stable]]
                some = some or (one.stable and one.state != "final")
    assert some


@pytest.mark.parametrize("name", ["whisper-base", "pocketsphinx"])
def test_neighbours_in_the_engine_change_no_word(weights, speech, tmp_path, name):
    """Sessions crossed in one engine, their calls in one batch or their slots side by side and used again."""
    repository = Repository(weights("silero-vad", name))
    sounds = [speech[: 5 * RATE], speech[2 * RATE : 6 * RATE], 0.3 * speech[-4 * RATE :], speech[RATE : 4 * RATE]]
    vad = Vad(load(repository, "silero-vad", repository.policy("silero-vad").live))
    ours = Repository(tmp_path)
    version = repository.policy(name).live
    kept, manifest = repository.folder(name, version), repository.manifest(name, version)
    ours.put(name, manifest, {file: kept / file for file in manifest.digests})

    async def run():
        clock, meter = SystemClock(), Meter()
        engine = Engine(ours, clock, meter)
        await engine.start()
        streaming = name == "pocketsphinx"
        desk = Desk()
        hall = live(desk, clock=clock, vad=vad, recogniser=name, submit=engine.submit, streaming=streaming, **AT_EASE)

        async def one(n):
            data = pcm(np.concatenate([sounds[n], QUIET]))
            return [(told.text, told.start, told.end) for told in finals(await said(hall, data, (3200 + 640 * n,)))]

        try:
            alone = [await one(n) for n in range(4)]
            assert sum(map(len, alone)) >= 4
            for _ in range(2 if streaming else 1):
                assert await asyncio.gather(*map(one, range(4))) == alone
        finally:
            await engine.stop()

    asyncio.run(run())


def test_a_first_word_at_the_first_sample_is_heard(house, clip):
    """No silence before it, as a client that opens the microphone late sends it."""
    whole = clip("librispeech/1688-142285-0003")
    loud = np.flatnonzero(np.abs(whole) > 0.02)[0]
    (first, *_) = finals(heard(house, pcm(np.concatenate([whole[loud:], QUIET])), (640,)))
    assert first.words[0].start < 0.5 and first.text.lower().startswith("i really like")


def labelled(audio, name):
    """The stretches of speech of a clip, in seconds."""
    (row,) = (audio / f"{name}.scv").read_text().splitlines()
    cells = row.split(",")[1:]
    stretches = zip(cells[::3], cells[1::3], cells[2::3], strict=True)
    return [(float(begin), float(end)) for begin, end, kind in stretches if kind == "1"]


async def paced(hall, clock, sound):
    """(when, what) is told of audio that comes as it is spoken, 20 ms a message."""
    session, found = await hall.open(Start(speakers="none")), []

    async def read():
        found.extend([(clock.monotonic(), one) async for one in session.messages()])

    async with ticking(clock):
        reader = asyncio.create_task(read())
        for n, piece in enumerate(cuts(pcm(sound), (640,))):
            await clock.sleep(0.02 * (n + 1) - clock.monotonic())
            await session.hear(piece)
        session.finish()
        await reader
    await session.close()
    return found


@pytest.mark.parametrize(("step_ms", "first_s"), [(992, 1.3), (512, 1.0)])
def test_words_and_ends_come_in_time_on_labelled_clips(house, audio, clip, step_ms, first_s):
    """From the labelled onset to the first words, and from the labelled end to the final text, on a clock of its own:
    audio at its pace, the real detector, and a recogniser that says a word each .32 s. What it takes for a final text
    is not in it: that comes on top."""
    firsts, ends = [], []
    for name in LABELLED:
        clock, marks = FakeClock(), labelled(audio, name)
        desk = Paced(Script(words=tuple("abcdefghijklmnopqrstuvwxyz"), by="turn"), clock)
        hall = live(desk, clock=clock, vad=house.vad, profiles={"caption": ProfileSaid(step_ms=step_ms)})
        shown, last = set(), 0.0
        for at, one in asyncio.run(paced(hall, clock, np.concatenate([clip(name), QUIET, QUIET]))):
            if not isinstance(one, Segment):
                continue
            inside = [mark for mark in marks if mark[0] < one.end + 0.1 and mark[1] > max(one.start - 0.1, last)]
            if one.words and one.id not in shown and inside and inside[0][0] >= last:
                firsts.append(at - inside[0][0])
            shown.add(one.id)
            if one.state == "final":
                if inside and inside[-1][1] < at:
                    ends.append(at - inside[-1][1])
                last = one.end
    p95, p99 = np.percentile(firsts, (95, 99))
    print(f"step {step_ms} ms: first words p95 {p95:.2f} p99 {p99:.2f} s of {len(firsts)}")
    assert len(firsts) >= 12 and p95 < first_s
    p95, p99 = np.percentile(ends, (95, 99))
    print(f"final text after the end of speech p95 {p95:.2f} p99 {p99:.2f} s of {len(ends)}")
    assert len(ends) >= 12 and p95 < PROFILES["caption"].hangover_ms / 1000 + 0.4


NUMBERS = ("call", "me", "at", "four", "one", "five", "two", "eight", "six", "seven", "thanks", "now")


@pytest.mark.parametrize("pause_s", [0.05, 0.3, 0.8])
def test_a_number_that_is_spoken_over_several_partials_is_shown_by_none(house, pause_s):
    """A telephone number, digit by digit, through sessions with every profile: words that a final masks were in no
    partial before it, nor in a final of the segment before."""
    script = Script(words=NUMBERS, by="tone")
    gap = np.zeros(int(pause_s * RATE), np.float32)
    number = [NUMBERS[n] for n in (3, 4, 5, 6, 7, 8, 9, 3, 4, 5)]
    sound = [QUIET, speak(script, ["call", "me", "at"])]
    for n, digit in enumerate(number):
        sound += [speak(script, [digit]), gap if n in (2, 5) else gap[:0]]
    sound += [speak(script, ["thanks", "now"]), QUIET, QUIET]
    data = pcm(np.concatenate(sound))
    for profile in ("caption", "assistant", "meeting", "court"):
        messages = asyncio.run(said(live(Desk(script), profile=profile, gate=Gate), data, (1600,)))
        last = [told.text for told in finals(messages)]
        assert "[PHONE]" in " ".join(last) and "thanks now" in last[-1]
        partials = [one for one in messages if isinstance(one, Segment)]
        assert len(partials) > len(last)
        for one in partials:
            assert not {word.text for word in one.words} & set(number), one


def test_a_number_in_real_speech_is_shown_by_no_partial(house, clip):
    """Digits read by somebody: no partial shows one more than the finals do."""
    data = pcm(np.concatenate([QUIET, clip("vosk-digits"), QUIET, QUIET]))
    messages = heard(house, data, (3200,), gate=Gate)
    shown = [one for one in messages if isinstance(one, Segment)]
    last = fold(messages).lines
    assert any("[" in line.text for line in last.values())
    for one in shown:
        assert digits(one.text) <= digits(last[one.id].text)


def digits(text):
    plain = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    ones = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "oh"}
    return sum(word in ones or any(letter.isdigit() for letter in word) for word in plain)
