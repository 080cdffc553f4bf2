"""One segment as a recogniser hears it: windows that are cut behind stable words, and final texts."""

import asyncio

import numpy as np
from speech_house import DIGITS, RATE, SCRIPT, Desk, talk

from millstream import errors
from millstream.flows.speech.cut import Ended
from millstream.flows.speech.recognise import BEAM, FINAL, WINDOW_S, Asker, Windowed, dreamt, heard_words
from millstream.flows.speech.ribbon import Ribbon
from millstream.flows.speech.settings import Profile
from millstream.models.speech.heard import Heard, HeardWord, told
from millstream.spoken import written
from millstream.types import Output

SENTENCE = " ".join(DIGITS * 5)


def heard(sentence, first=8000, every=RATE, **desk):
    """The hypotheses of a sentence, a second apart, its final text, and what the model was asked."""

    async def run():
        sound = np.concatenate([np.zeros(first, "f4"), talk(sentence, lead_s=0.0)])
        ribbon, asked = Ribbon(), Desk(SCRIPT, **desk)
        ribbon.append(sound)
        segment = Windowed(Asker(asked.submit, "fake"), Profile(look_ahead_ms=0), first)
        found = [await segment.step(ribbon.cut, at) for at in range(first + every, len(sound), every)]
        ended = Ended(len(sound), first, first, len(sound), len(sound) - RATE, 1, "silence")
        return found, await segment.final(ribbon.cut, ended), asked.asked

    return asyncio.run(run())


def test_a_window_that_grows_is_cut_behind_stable_words_and_says_the_same():
    found, final, asked = heard(SENTENCE)
    assert max(inputs["audio"].shape[1] for inputs, priority in asked if not priority) <= (WINDOW_S + 1) * RATE
    assert found[-1].stable >= len(SENTENCE.split()) - 1
    assert written(found[-1].words) == SENTENCE == written(final.words)
    times = [(word.start, word.end) for word in found[-1].words]
    assert times == sorted(times)
    for word, again in zip(found[-1].words, final.words, strict=True):
        assert abs(word.start - again.start) < 0.02


def test_every_hypothesis_goes_on_from_the_stable_words_before():
    found, final, asked = heard(SENTENCE)
    before = []
    for one in found:
        assert [word.text for word in one.words[: len(before)]] == before
        before = [word.text for word in one.words[: one.stable]]
    prefixes = [str(inputs["prefix"][0]) for inputs, priority in asked if priority != FINAL]
    assert prefixes[0] == "" and prefixes[-1]
    assert prefixes[-1] in written(final.words[: final.stable])
    assert [str(inputs["prefix"][0]) for inputs, priority in asked if priority == FINAL] == [""]


def test_what_was_heard_in_a_pause_is_the_final_text_if_nobody_speaks_on():
    async def run(speech_end, why="silence"):
        sound, asked, ribbon = talk("one two three", lead_s=0.0), Desk(SCRIPT), Ribbon()
        ribbon.append(sound)
        segment = Windowed(Asker(asked.submit, "fake"), Profile(), 0)
        guess = await segment.draft(ribbon.cut, len(sound) - RATE, len(sound) - 2 * RATE)
        end = Ended(len(sound), 0, 0, len(sound), speech_end or len(sound) - 2 * RATE, RATE, why)
        settled = await segment.final(ribbon.cut, end)
        assert written(guess.words) == written(settled.words) == "one two three"
        return [(int(inputs["beam"][0]), priority) for inputs, priority in asked.asked]

    assert asyncio.run(run(0)) == [(BEAM, FINAL)]
    assert asyncio.run(run(RATE * 3)) == [(BEAM, FINAL)] * 2, "somebody spoke on"
    assert asyncio.run(run(0, "length")) == [(BEAM, FINAL)] * 2, "its audio ends elsewhere"


def said(text, each, timed):
    """What is heard of a text with words of so many seconds each."""
    words = [HeardWord(word, n * each, (n + 1) * each, 0.9) for n, word in enumerate(text.split())]
    return Heard(words, "en", timed=timed)


def ended(answers, seconds=4, step=1):
    """The final text where a recogniser answers so, one step after the other and then for good."""

    async def run():
        waiting = list(answers)

        async def submit(request):
            return Output({"heard": np.array([told(waiting.pop(0))], object)}, "fake", "1")

        segment, ribbon, end = Windowed(Asker(submit, "fake"), Profile(look_ahead_ms=0), 0), Ribbon(), seconds * RATE
        ribbon.append(np.zeros(end, "f4"))
        for n in range(1, len(answers)):
            await segment.step(ribbon.cut, n * step * RATE)
        return await segment.final(ribbon.cut, Ended(end, 0, 0, end, end, end, "silence"))

    return asyncio.run(run())


def test_times_are_measured_where_the_final_hearing_begins_with_the_stable_words():
    guesses = [said("my pin is four eight", 0.1, False)] * 2
    same = ended([*guesses, said("My pin is four eight two", 0.5, True)])
    assert (written(same.words), same.words[3].start, same.timed) == ("my pin is four eight two", 1.5, True)
    other = ended([*guesses, said("my bin is four eight two", 0.5, True)])
    assert (written(other.words), other.words[3].start, other.timed) == ("my pin is four eight two", 0.3, False)
    assert not ended([*guesses, said("my pin is four eight two", 0.5, False)]).timed, "by its own word"


def test_times_of_words_before_the_window_are_measured_where_their_step_was():
    text = "my pin is four eight two"
    for timed in (True, False):
        steps = [said(text, 0.5, False), said(text, 0.5, timed)]  # the second one's window is cut
        final = ended([*steps, said("one now", 0.5, True)], seconds=9, step=3)
        assert (written(final.words), final.timed) == ("my pin is four eight two one now", timed)


def test_words_have_times_of_the_session():
    found = heard_words(Heard([HeardWord("a", 0.25, 0.5, 0.5), HeardWord("", 1, 1), HeardWord("b", 0.7, 0.6)]), 16_000)
    assert [(word.text, word.start, word.end) for word in found] == [("a", 1.25, 1.5), ("b", 1.7, 1.7)]


def test_a_text_on_silence_is_told_by_two_signs():
    words = [HeardWord("thanks", 0, 1, 0.3)]
    assert dreamt(Heard(words, no_speech=0.9))
    assert not dreamt(Heard(words, no_speech=0.1))
    assert not dreamt(Heard([HeardWord("thanks", 0, 1, 0.9)], no_speech=0.9))


def test_a_final_that_fails_twice_is_what_was_stable_and_says_why():
    _, final, _ = heard("one two three four", fails=lambda inputs, priority: errors.Late("late") if priority else None)
    assert (written(final.words), final.problem) == ("one two three four", "late")
    _, final, _ = heard("one two three four five", fails=lambda inputs, priority: errors.Late("late"), every=10 * RATE)
    assert (final.words, final.problem) == ([], "late")


def test_words_said_long_after_speech_has_ended_are_left_out():
    async def run():
        sound = talk("one two three", lead_s=0.0)
        ribbon = Ribbon()
        ribbon.append(sound)
        segment = Windowed(Asker(Desk().submit, "fake"), Profile(), 0)
        return await segment.final(ribbon.cut, Ended(0, 0, 0, len(sound), 6400, 1, "silence"))

    final = asyncio.run(run())
    assert (written(final.words), final.suppressed) == ("one two", 1)
