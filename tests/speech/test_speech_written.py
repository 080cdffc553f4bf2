"""Transcripts as files, read back by others' parsers."""

import io
import json
import re
from datetime import timedelta
from itertools import pairwise
from unicodedata import east_asian_width

import pytest
import srt
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from millstream.flows.speech.written import CAPTION_S, COLUMNS, FORMATS, ROWS, captions, render, timed
from millstream.spoken import Line, Speaker, Word


def said(text, start, each=0.3, ident="1", who="S1", name="unknown", **more):
    words = [
        Word(text=word, start=round(start + each * k, 3), end=round(start + each * (k + 1), 3), confidence=0.9)
        for k, word in enumerate(text.split())
    ]
    end = words[-1].end if words else start
    return Line(
        id=ident, rev=1, state="final", start=start, end=end, words=words, speaker=Speaker(id=who, name=name), **more
    )


def han(text, start, each=0.2, ident="1"):
    words = [
        Word(text=one, start=start + each * k, end=start + each * (k + 1), space=False) for k, one in enumerate(text)
    ]
    return Line(id=ident, rev=1, start=start, end=words[-1].end, words=words, speaker=Speaker(id="S2", name="法官"))


def nobody(line):
    return ""


def called(line):
    return line.speaker.name if line.speaker.id else ""


def seconds(clock):
    hours, minutes, rest = re.fullmatch(r"(\d+):(\d\d):(\d\d[.,]\d{3})", str(clock)).groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


AMERICANS = (
    "And so my fellow Americans, ask not what your country can do for you. Ask what you can do --> for <b>it</b> & me."
)
LINES = [
    said(AMERICANS, 0.5, name="JFK & co"),
    han("广州市房地产中介协会分析欢迎大家来体验达摩院推出的语音识别模型，谢谢大家。", 3599.9, ident="2"),
    said("helo", 3700.0, each=2.0, ident="3", who="", edited="hello\n\n5\n00:00:01,000 --> 00:00:02,000\nworld 你好吗"),
]  # fmt: skip


def plain(text):
    """A caption's rows as words: rows of Chinese are joined without a space."""
    return re.sub(r"\s+", "", text)


def test_others_read_the_captions_back():
    cues = captions(LINES, called)
    vtt = webvtt.from_buffer(io.StringIO(render("vtt", LINES, called))).captions
    subtitles = list(srt.parse(render("srt", LINES, nobody)))
    assert [(seconds(one.start), seconds(one.end)) for one in vtt] == [
        (round(cue.start, 3), round(cue.end, 3)) for cue in cues
    ]
    escaped = [one.text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for one in vtt]
    assert escaped == ["\n".join(cue.rows) for cue in cues]
    assert [one.voice for one in vtt] == [cue.who.replace("&", "&amp;") or None for cue in cues]
    every = "".join(line.text for line in LINES).replace("-->", "->")
    assert plain("".join(one.content for one in subtitles)) == plain(every)
    assert [one.index for one in subtitles] == list(range(1, len(subtitles) + 1))
    assert subtitles[0].start == timedelta(seconds=0.5) and subtitles[-1].end == timedelta(seconds=3702)
    assert "JFK & co: And so" in render("srt", LINES, called)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=("Cs",)), max_size=200),
            st.floats(0, 4), st.floats(0.01, 12), st.booleans(), st.text(max_size=30),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_whatever_was_said_captions_keep_their_form(told):
    lines, at = [], 0.0
    for number, (text, gap, lasts, edited, who) in enumerate(told):
        at = round(at + gap, 3)
        line = said(text, at, each=round(lasts / max(len(text.split()), 1), 3), ident=f"{number}", name=who)
        if edited:
            line.edited, line.end = text, max(line.end, at + 0.5)
        lines.append(line)
        at = line.end
    cues = captions(lines, called)
    for cue, after in pairwise(cues):
        assert cue.end <= after.start
    for cue in cues:
        assert 0 <= cue.start <= cue.end
        assert 1 <= len(cue.rows) <= ROWS and all("\n" not in row and row == row.strip() for row in cue.rows)
    vtt = webvtt.from_buffer(io.StringIO(render("vtt", lines, called))).captions
    assert len(vtt) == len(list(srt.parse(render("srt", lines, called)))) == len(cues)
    for one, cue in zip(vtt, cues, strict=True):
        assert seconds(one.start) == pytest.approx(cue.start, abs=0.0006)
    assert len(render("rttm", lines, called).splitlines()) == len(lines)
    assert all(len(row.split(" ")) == 10 for row in render("rttm", lines, called, "a b").splitlines())
    assert len(json.loads(render("json", lines, called))["lines"]) == len(lines)
    assert len(render("txt", lines, called).splitlines()) <= len(lines)


def test_rows_are_no_wider_and_captions_no_longer_than_one_can_read():
    long = " ".join(f"word{k}" for k in range(200))
    cues = captions([said(long, 0), han("你好世界" * 40, 100, ident="2"), said("x" * 300, 200, ident="3")], nobody)
    for cue in cues[:-1]:
        width = max(sum(2 if east_asian_width(one) in "WF" else 1 for one in row) for row in cue.rows)
        assert width <= COLUMNS and cue.end - cue.start <= CAPTION_S
    assert cues[-1].rows == ["x" * 300]  # a word is never cut
    first = cues[0]
    assert len(first.rows) == ROWS and min(map(len, first.rows)) > COLUMNS // 2


def test_a_caption_begins_and_ends_with_its_words_and_spans_no_pause():
    line = said("one two", 1.0)
    line.words += said("three", 5.0).words
    line.end = 5.3
    assert [(cue.start, cue.end, cue.rows) for cue in captions([line], nobody)] == [
        (1.0, 1.6, ["one two"]), (5.0, 5.3, ["three"]),
    ]  # fmt: skip


def test_captions_of_two_who_speak_at_once_do_not_overlap():
    cues = captions([said("one two three four", 0.0), said("no", 0.5, ident="2", who="S2")], nobody)
    assert [(cue.start, cue.end) for cue in cues] == [(0.0, 0.5), (0.5, 0.8)]


def test_what_a_person_wrote_is_laid_over_the_time_of_the_line():
    line = said("um", 2.0, each=3.0, edited="ab cdef 你好")
    assert [(word.text, word.start, word.space) for word in timed(line)] == [
        ("ab", 2.0, True), ("cdef", 2.75, True), ("你", 4.25, True), ("好", 4.625, False),
    ]  # fmt: skip
    assert timed(line)[-1].end == 5.0


def test_text_rttm_and_json():
    assert render("txt", LINES, called).splitlines()[1].startswith("法官: 广州市")
    assert render("txt", LINES).splitlines()[2] == "hello 5 00:00:01,000 --> 00:00:02,000 world 你好吗"
    rttm = [row.split(" ") for row in render("rttm", LINES, called, "my file").splitlines()]
    assert [(row[0], row[1], float(row[3]), row[7]) for row in rttm] == [
        ("SPEAKER", "my_file", 0.5, "JFK_&_co"), ("SPEAKER", "my_file", 3599.9, "法官"),
        ("SPEAKER", "my_file", 3700.0, "unknown"),
    ]  # fmt: skip
    told = json.loads(render("json", LINES, called, "x", "en", 12.3456))
    assert told["seconds"] == 12.346 and told["language"] == "en"
    assert told["lines"][0]["text"] == LINES[0].text and told["lines"][0]["speaker"] == "JFK & co"
    assert told["lines"][0]["words"][1] == {"text": "so", "start": 0.8, "end": 1.1, "space": True, "confidence": 0.9}
    assert "speaker" not in json.loads(render("json", LINES))["lines"][0]


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_said_is_no_error(form):
    assert isinstance(render(form, []), str)
