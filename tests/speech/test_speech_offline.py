"""Recordings become text: whole, in order, each by itself, and as a live session would have cut them."""

import asyncio
import io
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from recordings import TONES, WORDS, models, said
from sound_files import encoded, wav

from millstream.app.transcribing import Source, offline
from millstream.errors import BadInput, Failed, Misconfigured, NotFound
from millstream.flows.speech.offline import Offline, Walk
from millstream.flows.speech.recognise import FINAL, FINAL_TIMEOUT_S, STEP
from millstream.flows.speech.settings import Profile
from millstream.flows.speech.wiring import OpenGate
from millstream.flows.speech.words.gate import Gate
from millstream.models.speech.turns import Spoken

ONE, TWO = "alpha bravo charlie", "delta echo"


@pytest.fixture
def folder(tmp_path):
    return models(tmp_path / "models")


def run(folder, work, profile=None, **of):
    """What `work(offline)` gives."""

    async def main():
        source = Source(models=folder, **({"voice": ""} | of))
        async with offline(source, **({"profile": profile} if profile else {})) as through:
            return await work(through)

    return asyncio.run(main())


def texts(recording):
    return [line.text for line in recording.lines]


def test_a_recording_is_its_sentences_at_their_times(folder, tmp_path):
    path = wav(tmp_path / "a.wav", said(ONE, TWO))
    recording = run(folder, lambda through: through.transcribe(path, "a"))
    assert texts(recording) == [ONE, TWO] and recording.language == "en"
    assert recording.seconds == pytest.approx(len(said(ONE, TWO)) / 16000, abs=1e-6)
    first, second = recording.lines
    assert [round(word.start, 1) for word in first.words] == [1.3, 1.6, 2.0]
    gap = len(said(ONE)) / 16000 - 1.2  # the first sentence, and the pause behind it
    assert second.words[0].start - first.words[0].start == pytest.approx(gap, abs=0.05)
    assert first.start <= first.words[0].start + 0.05 and first.words[-1].end <= first.end + 0.05
    assert 0 < recording.speech_s < recording.seconds and recording.segments == 2


def test_rate_channels_and_form_of_the_file_change_nothing(folder, tmp_path):
    sound = said(ONE, TWO)
    slow = np.interp(np.arange(0, len(sound), 16000 / 44100), np.arange(len(sound)), sound)
    stereo = np.stack([slow, slow])
    sources = [wav(tmp_path / "a.wav", stereo.T, 44100), io.BytesIO(encoded("flac", "flac", stereo, 44100))]

    async def work(through):
        return [await through.transcribe(one, "a") for one in sources]

    for recording in run(folder, work):
        assert texts(recording) == [ONE, TWO]


def test_recordings_beside_each_other_are_as_if_they_were_alone(folder, tmp_path):
    random = np.random.default_rng(0)
    scripts = [[" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(random.integers(1, 5))]
               for _ in range(12)]  # fmt: skip
    paths = [wav(tmp_path / f"{k}.wav", said(*script)) for k, script in enumerate(scripts)]

    async def work(through):
        return await asyncio.gather(*(through.transcribe(path, path.stem) for path in paths))

    assert [texts(recording) for recording in run(folder, work)] == scripts


def test_no_more_segments_are_under_way_than_there_is_room_for(folder, tmp_path):
    path = wav(tmp_path / "a.wav", said(*[TWO] * 12, pause_s=0.8))
    most = under_way = 0

    async def work(through):
        nonlocal most, under_way

        async def submit(request):
            nonlocal most, under_way
            under_way += 1
            most = max(most, under_way)
            output = await through.wiring.submit(request)
            await asyncio.sleep(0.02)
            under_way -= 1
            return output

        few = Offline(replace(through.wiring, submit=submit), through.profile, at_once=3)
        return texts(await few.transcribe(path, "a", "en"))

    assert run(folder, work) == [TWO] * 12 and most == 3


def test_the_language_is_that_of_the_first_words_unless_it_is_said(folder, tmp_path):
    path = wav(tmp_path / "a.wav", said("alpha", ONE, TWO, TWO))

    async def work(through):
        asked = []

        def submit(request):
            asked.append(str(request.inputs["language"][0]))
            return through.wiring.submit(request)

        of = Offline(replace(through.wiring, submit=submit), through.profile)
        await of.transcribe(path, "a")
        await of.transcribe(path, "a", "zh-CN")
        await of.transcribe(path, "a", "zh")
        return asked

    whether_it_knows = ["zh"]
    assert run(folder, work) == ["", "", "en", "en", *whether_it_knows, *["zh"] * 8]


@pytest.mark.parametrize("language", ["zz", "zz-Latn", "klingon", "en\n", "e" * 10_000])
def test_a_language_that_is_not_known_is_the_clients_mistake_and_nothing_is_heard(folder, tmp_path, language):
    path = wav(tmp_path / "a.wav", said(ONE, TWO))

    async def work(through):
        asked = []

        def submit(request):
            asked.append(request)
            if str(request.inputs["language"][0]) == "zz":
                raise BadInput("language 'zz' is not known to this model; it knows: en")
            return through.wiring.submit(request)

        with pytest.raises(BadInput, match="language"):
            await Offline(replace(through.wiring, submit=submit), through.profile).transcribe(path, "a", language)
        return len(asked)

    assert run(folder, work) == (1 if language.startswith("zz") else 0)


def test_a_recogniser_that_is_away_is_not_asked_for_the_rest_of_a_recording(folder, tmp_path):
    path = wav(tmp_path / "a.wav", said(*[ONE] * 40, pause_s=0.8))

    async def work(through):
        asked = []

        def submit(request):
            asked.append(request)
            raise Failed("away")

        of = Offline(replace(through.wiring, submit=submit), through.profile)
        for language in ("", "en"):
            with pytest.raises(Failed, match=r"a: .* of the first .* segments were not recognised"):
                await of.transcribe(path, "a", language)
        return len(asked)

    assert run(folder, work) < 2 * 40


def test_each_channel_is_a_speaker_by_itself(folder, tmp_path):
    one, other = said(ONE, "golf"), said(TWO, pause_s=2.5)
    both = np.zeros((max(len(one), len(other)), 2))
    both[: len(one), 0], both[: len(other), 1] = one, other
    path = wav(tmp_path / "a.wav", both)
    recording = run(folder, lambda through: through.transcribe(path, "a", split=True))
    assert [(recording.who(line), line.text) for line in recording.lines] == [
        ("channel 1", ONE), ("channel 2", TWO), ("channel 1", "golf"),
    ]  # fmt: skip


def test_a_number_goes_on_in_its_own_channel_whatever_is_said_on_another(folder, tmp_path):
    means = {"alpha": "pin", "bravo": "four", "charlie": "two", "golf": "nine", "delta": "four", "echo": "thanks"}

    class Dictated(Gate):
        def final(self, words, onset, end):
            return super().final([msgspec.structs.replace(one, text=means[one.text]) for one in words], onset, end)

    one, other = said(ONE, "golf echo"), said(TWO, pause_s=2.5)
    both = np.zeros((max(len(one), len(other)), 2))
    both[: len(one), 0], both[: len(other), 1] = one, other
    path = wav(tmp_path / "a.wav", both)

    async def work(through):
        of = Offline(replace(through.wiring, gate=Dictated), through.profile)
        return await of.transcribe(path, "a", split=True)

    assert texts(run(folder, work)) == ["pin [ID]", "four thanks", "[ID] thanks"]


def test_voices_are_told_apart_and_the_last_word_counts(folder, tmp_path):
    """An embedding that tells low from high tones: two speakers in turn."""
    low, high = "alpha bravo alpha bravo alpha bravo alpha bravo", "golf hotel golf hotel golf hotel golf hotel"
    path = wav(tmp_path / "a.wav", said(low, high, low, high))
    random = np.random.default_rng(0)
    centres = np.linalg.qr(random.standard_normal((256, 2)))[0].T

    async def embed(sounds):
        rows = []
        for sound in sounds:
            spectrum = np.abs(np.fft.rfft(sound))
            hertz = np.argmax(spectrum) * 16000 / len(sound)
            row = centres[int(hertz > 450)] + 0.03 * random.standard_normal(256)
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, np.float32)

    async def turns(sounds):
        """Two speak in the first second of a low turn."""
        return [Spoken([(0, 16000)] if await low_alone(sound) else [], []) for sound in sounds]

    async def failing(sounds):
        raise RuntimeError("no more memory")

    async def low_alone(sound):
        return bool((await embed([sound])) @ centres[0] > 0.5)

    async def work(through):
        of = Offline(replace(through.wiring, embed=embed, listen=turns), through.profile)
        without = Offline(replace(through.wiring, embed=embed, listen=failing), through.profile)
        neither = Offline(replace(through.wiring, embed=failing, listen=failing), through.profile)
        return [
            await of.transcribe(path, "a", speakers=True),
            await of.transcribe(path, "a", speakers=False),
            await without.transcribe(path, "a", speakers=True),
            await neither.transcribe(path, "a", speakers=True),
        ]

    told, plain, poor, least = run(folder, work)
    who = [told.who(line) for line in told.lines]
    assert texts(least) == texts(told) and {least.who(line) for line in least.lines} == {""}
    assert texts(poor) == texts(told) and [poor.who(line) for line in poor.lines] == who
    assert texts(told) == [low, high, low, high] and who[0] == who[2] != who[1] == who[3] and all(who)
    assert [line.speaker.overlap for line in told.lines] == [True, False, True, False]
    assert {plain.who(line) for line in plain.lines} == {""} and not any(line.speaker.overlap for line in plain.lines)


def test_a_recording_that_ends_in_a_word_has_it(folder, tmp_path):
    sound = said(ONE, TWO)
    path = wav(tmp_path / "a.wav", sound[: -int(1.2 * 16000)])  # without the pause at the end
    assert texts(run(folder, lambda through: through.transcribe(path, "a"))) == [ONE, TWO]


def test_what_is_personal_goes_no_further(folder, tmp_path):
    path, seen = wav(tmp_path / "a.wav", said(ONE, TWO)), []

    class Masking(OpenGate):
        def final(self, words, onset, end):
            seen.extend(words)
            return [msgspec.structs.replace(word, text="[X]") if word.text == "echo" else word for word in words], []

    async def work(through):
        return await Offline(replace(through.wiring, gate=Masking), through.profile).transcribe(path, "a")

    assert texts(run(folder, work)) == [ONE, "delta [X]"]
    assert [word.text for word in seen] == [*ONE.split(), *TWO.split()]  # in the order of the audio


def test_a_segment_that_fails_fails_its_recording_and_no_other(folder, tmp_path):
    path = wav(tmp_path / "a.wav", said(ONE, TWO))

    async def work(through):
        def submit(request):
            if request.inputs["audio"].shape[1] < 1.7 * 16000:  # the shorter sentence
                raise Failed("out of order")
            return through.wiring.submit(request)

        broken = Offline(replace(through.wiring, submit=submit), through.profile)
        with pytest.raises(Failed, match=r"a: 1 of the first 2 segments were not recognised \(out of order\)"):
            await broken.transcribe(path, "a")
        again = await asyncio.gather(*(broken.transcribe(wav(tmp_path / "b.wav", said(ONE)), "b") for _ in range(20)))
        return [texts(one) for one in again]

    assert run(folder, work) == [[ONE]] * 20


def test_a_damaged_file_stops_nothing_but_itself(folder, tmp_path):
    data = encoded("adts", "aac", said(*[TWO] * 6)[None], 16000)

    async def work(through):
        with pytest.raises(BadInput, match="damaged"):
            await through.transcribe(io.BytesIO(data[: len(data) // 2]), "a", "en")
        return texts(await through.transcribe(io.BytesIO(data), "a"))

    assert run(folder, work) == [TWO] * 6


def test_silence_is_an_empty_text(folder, tmp_path):
    path = wav(tmp_path / "a.wav", np.zeros(16000 * 4))
    recording = run(folder, lambda through: through.transcribe(path, "a"))
    assert recording.lines == [] and recording.language == "" and recording.seconds == 4


def test_a_streaming_recogniser_is_asked_in_sessions_of_length_one(tmp_path):
    folder = models(tmp_path / "models", msgspec.structs.replace(TONES, kind="streaming"))
    path = wav(tmp_path / "a.wav", said(ONE, TWO))
    assert texts(run(folder, lambda through: through.transcribe(path, "a"))) == [ONE, TWO]


@pytest.mark.parametrize("kind", ["windowed", "streaming"])
def test_live_speech_goes_before_recordings_which_wait_for_long(tmp_path, kind):
    folder = models(tmp_path / "models", msgspec.structs.replace(TONES, kind=kind))
    path = wav(tmp_path / "a.wav", said(ONE, TWO))

    async def work(through):
        asked = []

        def submit(request):
            asked.append((request.priority, request.timeout_s))
            return through.wiring.submit(request)

        await Offline(replace(through.wiring, submit=submit), through.profile).transcribe(path, "a")
        return asked

    asked = run(folder, work)
    assert len(asked) == 2
    assert all(priority > max(STEP, FINAL) and timeout_s > FINAL_TIMEOUT_S for priority, timeout_s in asked)


def test_long_speech_is_cut_and_no_word_is_lost(folder, tmp_path):
    many = " ".join(WORDS * 6)
    path = wav(tmp_path / "a.wav", said(many))
    profile = Profile(partials=False, segment_s_max=6, speakers="none")
    recording = run(folder, lambda through: through.transcribe(path, "a"), profile)
    heard = [word.text for line in recording.lines for word in line.words]
    assert recording.segments > 2 and len(heard) >= len(many.split())
    assert max(line.end - line.start for line in recording.lines) <= 6.1


def test_memory_of_a_walk_does_not_grow_with_the_recording(folder):
    async def work(through):
        walk = Walk(through.wiring.vad, through.profile)
        most = 0
        for _ in range(30):
            walk.feed(said(ONE))
            walk.feed(np.zeros(16000 * 5, np.float32))
            most = max(most, len(walk._kept))
        return most

    assert run(folder, work) < 16000 * 8


def test_what_is_missing_is_named_with_the_line_that_fetches_it(folder, tmp_path):
    async def work(through):
        return None

    with pytest.raises(NotFound, match="speech fetch wespeaker --models"):
        run(folder, work, voice="wespeaker")
    with pytest.raises(NotFound, match=r"millstream models add .* FILE"):
        run(folder, work, recogniser="other")
    with pytest.raises(Misconfigured, match="speech fetch whisper-base --models"):
        run(tmp_path / "nothing", work)
    with pytest.raises(Misconfigured, match="silero-vad makes no words of speech: it takes c, h, input"):
        run(folder, work, recogniser="silero-vad")
    models(folder, name="others")
    with pytest.raises(Misconfigured, match="others, tones make words of speech"):
        run(folder, work)
