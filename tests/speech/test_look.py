"""Signs of final texts without references: counted, and put up for a person where they are odd."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from speech_house import Desk, cuts, finals, live, pcm, read_all, talk

from millstream.clock import FakeClock
from millstream.flows.speech.kept import Kept
from millstream.flows.speech.look import AN_HOUR, Look, repeats, signs
from millstream.flows.speech.recognise import Settled
from millstream.flows.speech.wiring import Settling
from millstream.flows.speech.words.gate import Gate
from millstream.meter import Meter
from millstream.spoken import Edit, Edited, Segment, Speaker, Start, Word
from millstream.stream.event import decode, encode
from millstream.types import Review


def settling(text: str, speech_s: float = 3.0, confidence: float = 0.9, tokens: int = 0, **more: object) -> Settling:
    """A final of these words, evenly over so much speech."""
    zh = bool(text) and ord(text[0]) > 0x3000
    parts = list(text) if zh else text.split()
    step = speech_s / max(1, len(parts))
    words = [Word(one, i * step, (i + 1) * step, confidence, space=not zh) for i, one in enumerate(parts)]
    speaker = Speaker("S1", "Speaker 1", float(more.pop("score", 0.9)), bool(more.pop("overlap", False)))
    told = [
        Segment(seq=1, id="a", rev=1, state="final", start=0, end=speech_s, words=words, speaker=speaker,
                language="zh" if zh else "en")
    ]  # fmt: skip
    heard = Settled(words, tokens=tokens, problem=str(more.pop("problem", "")), timed=bool(more.pop("timed", True)))
    spans = [(words[0].start, words[0].end)] if more.pop("masked", False) else []
    return Settling("s1", told if words else [], heard, spans, speech_s, 0.0, lambda: np.zeros(100, np.float32))


RAIN = "we were walking along the river when it began to rain"


def look(meter: Meter | None = None, kept: Kept | None = None) -> tuple[Look, list[Review], Meter]:
    """A Look, what it puts up, and its meter."""
    found: list[Review] = []
    meter = meter or Meter()
    return Look(meter, FakeClock(), "whisper", lambda: "7", found.append, kept), found, meter


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (settling(RAIN), ""),
        (settling("我们今天下午开会讨论这个问题"), ""),
        (settling("yes"), "speech-thin"),
        (settling("好", 2.5), "speech-thin"),
        (settling("我们今天开", 2.5), ""),
        (settling("yes", 0.4), ""),
        (settling("", 3.0), ""),
        (settling("the rain the rain the rain the rain came down"), "speech-loop"),
        (settling("thank you for watching " * 12, tokens=60), "speech-loop"),
        (settling("we were walking along the river when it began", confidence=0.3), "speech-unsure"),
        (settling("we were walking along the river when it began", confidence=0.0), ""),  # it tells none
        (settling("we were walking along the river when it began", overlap=True), "speech-voices"),
        (settling("we were walking along the river when it began", score=0.5), "speech-voices"),
        (settling("we were walking along the river", problem="no answer"), "speech-failed"),
    ],
)
def test_what_a_person_should_see_and_why(seen: Settling, reason: str) -> None:
    watch, found, _ = look()
    watch(seen)
    assert [one.reasons for one in found] == ([[reason]] if reason else [])
    for one in found:
        assert isinstance(one, Review) and 0 < one.worth <= 1 and one.version == "7" and one.item == "a"
        assert one.shown["text"] == seen.told[0].text
        assert decode(encode(one)) == one, "the log takes it"


def test_counts_are_of_the_speech_that_was_heard() -> None:
    watch, _, meter = look()
    watch(settling("我们今天下午开会", 2.0, 0.8))
    watch(settling("it was was a day", 1.0, 0.5))
    zh, en = {"language": "zh"}, {"language": "en"}
    assert meter.values("millstream_speech_characters_total", zh) == [8]
    assert meter.values("millstream_speech_spoken_seconds_total", zh) == [2.0]
    assert meter.values("millstream_speech_characters_total", en) == [len("itwaswasaday")]
    assert meter.sum("millstream_speech_words_repeated_total") == 1
    assert meter.sum("millstream_speech_confidence_total") == pytest.approx(8 * 0.8 + 5 * 0.5)


@pytest.mark.parametrize(
    ("words", "again"),
    [("a b c d", 0), ("a a", 1), ("a b a b", 2), ("a b, A B. a b", 4), ("a b c d a b c d", 4), ("a b c a c b", 0)],
)
def test_words_that_say_again_what_stands_before_them(words: str, again: int) -> None:
    assert repeats(words.split()) == again


def test_of_nothing_there_are_no_signs() -> None:
    assert signs([], 3.0, 0).pace == 0.0


def test_an_hour_has_room_for_so_many_and_the_rest_is_counted() -> None:
    watch, found, meter = look()
    for _ in range(AN_HOUR + 5):
        watch(settling("yes"))
    assert len(found) == AN_HOUR and meter.sum("millstream_speech_reviews_passed_total") == 5


def test_audio_is_kept_for_what_is_put_up_and_for_nothing_else(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 1, Meter())
    watch, found, _ = look(kept=kept)
    watch(settling(RAIN))
    watch(settling(RAIN, confidence=0.3))
    watch(settling(RAIN, problem="no answer"))
    watch(settling("yes"))
    watch(settling("the rain the rain the rain the rain came down"))
    kept.close()
    assert [path.name for path in tmp_path.iterdir()] == [found[0].shown["audio"]]
    for one, why in zip(found[1:], ["speech-failed", "speech-thin", "speech-loop"], strict=True):
        assert (one.reasons, one.shown["audio"]) == ([why], ""), "nobody knows what else was said in it"


def test_audio_in_which_something_is_masked_is_kept_if_the_times_of_its_words_were_measured(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 1, Meter())
    watch, found, _ = look(kept=kept)
    for masked, timed in [(True, True), (True, False), (False, False)]:
        watch(settling(RAIN, confidence=0.3, masked=masked, timed=timed))
    kept.close()
    assert [bool(one.shown["audio"]) for one in found] == [True, False, True]


def test_an_edit_is_put_up_without_who_made_it() -> None:
    watch, found, _ = look()
    watch.edited("s1", Edited(seq=9, id="a", rev=4, by="anna@example.com", text="call [PHONE]"))
    assert found[0].reasons == ["speech-edited"] and found[0].shown["text"] == "call [PHONE]"
    assert "anna" not in str(found[0])


NUMBER = "four one five five five nine zero one two three"


def test_a_session_shows_no_digit_of_a_number_and_gives_its_finals_and_edits_to_who_looks(tmp_path: Path) -> None:
    """Through a session as it runs, its state on disk too, and what is put up for review."""
    watch, found, meter = look()
    told = []

    async def whole() -> None:
        hall = live(Desk(), folder=tmp_path, gate=Gate, look=watch, edited=watch.edited)
        session = await hall.open(Start())
        reader = asyncio.create_task(read_all(session, told))
        data = pcm(talk(f"hello world {NUMBER} hello again", "hello four", "five more hello"))
        for piece in cuts(data, (3200,)):
            await session.hear(piece)
        while len(finals(told)) < 3:
            await asyncio.sleep(0)
        await session.say(Edit(segment="1", text="call 415 555 0123"), "ann")
        files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"[PHONE]" in files and b"nine" not in files and b"0123" not in files
        session.finish()
        await reader
        await session.close()

    asyncio.run(whole())
    first = [one for one in told if isinstance(one, Segment) and one.id == "1"]
    assert len(first) > 5 and {word.text for one in first for word in one.words}.isdisjoint(NUMBER.split())
    assert finals(told)[0].text == "hello world [PHONE] hello again"
    assert [one.text for one in finals(told)[1:]] == ["hello four", "five more hello"], "few digits are no number"
    assert meter.sum("millstream_speech_masked_total") == 1
    assert [one.shown["text"] for one in found if one.reasons == ["speech-edited"]] == ["call [PHONE]"]
