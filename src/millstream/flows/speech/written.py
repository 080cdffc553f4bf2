"""A transcript as a file: text, captions (SubRip, WebVTT), JSON, and who spoke when (RTTM).

Rules of the room:
- A caption is at most ROWS rows of COLUMNS columns (a Chinese character takes two) and CAPTION_S long, and holds one
  speaker. It begins with its first word and ends with its last one; captions never overlap.
- What a person made of a line has no times of its own words: its text is laid over the line's time, by its length.
- Nothing that was said can end a caption or begin another, nor be read as markup where a format can say so: SubRip
  cannot, and players of it may take "<i>" for more than it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple, get_args
from unicodedata import east_asian_width

from millstream.spoken import Line, Word

Format = Literal["txt", "srt", "vtt", "json", "rttm"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
COLUMNS: Final = 42
ROWS: Final = 2
CAPTION_S: Final = 7.0
_SENTENCE = ".?!。？！…"
_PAUSE_S = 1.0  # a caption does not stand over a longer silence
Who = Callable[[Line], str]


class Caption(NamedTuple):
    """Rows of text from `start` to `end`, in seconds."""

    start: float
    end: float
    who: str
    rows: list[str]


def render(
    form: Format, lines: Sequence[Line], who: Who | None = None, name: str = "audio", language: str = "",
    seconds: float = 0.0,
) -> str:  # fmt: skip
    """`lines`, in their order, as a file. `who`: what a line's speaker is called, "" for nobody known; None: speakers
    are not told. `name`: of the recording, `seconds` its length."""
    called = who or (lambda line: "")
    match form:
        case "txt":
            return _text(lines, called)
        case "srt":
            return _srt(captions(lines, called))
        case "vtt":
            return _vtt(captions(lines, called))
        case "json":
            return _json(lines, who, name, language, seconds)
        case "rttm":
            return _rttm(lines, called, name)


def captions(lines: Sequence[Line], who: Who) -> list[Caption]:
    """What stands on the screen, in order of time."""
    found = [one for line in lines for one in _captions(line, _flat(who(line)))]
    found.sort(key=lambda one: (one.start, one.end))
    ends = [*(min(each.end, after.start) for each, after in pairwise(found)), *(each.end for each in found[-1:])]
    return [each._replace(end=max(end, each.start)) for each, end in zip(found, ends, strict=True)]


def timed(line: Line) -> list[Word]:
    """Its words with times, also where a person wrote them."""
    if line.edited is None:
        return line.words
    texts = _pieces(line.edited)
    total, at, made = sum(len(text) for text, _ in texts) or 1, 0, []
    for text, space in texts:
        start, at = at, at + len(text)
        lasts = line.end - line.start
        made.append(
            Word(text=text, start=line.start + lasts * start / total, end=line.start + lasts * at / total, space=space)
        )
    return made


def _pieces(text: str) -> list[tuple[str, bool]]:
    """The words of a text; of scripts without spaces its characters. Whether a space goes before each."""
    found: list[tuple[str, bool]] = []
    for word in text.split():
        parts = re.findall(r"[^\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]+|.", word)
        found += [(part, not at) for at, part in enumerate(parts)]
    return found


def _captions(line: Line, who: str) -> Iterator[Caption]:
    """One line's words, cut where the room, the time or a pause ends it; early behind a sentence that fills a row."""
    rows: list[str] = []
    words: list[Word] = []
    for word in timed(line):
        if not _flat(word.text):
            continue
        grown = _rows([*words, word], who)
        full = len(grown) > ROWS or (words and word.end - words[0].start > CAPTION_S)
        said = words and words[-1].text[-1:] in _SENTENCE and _width(_joined(words)) > COLUMNS
        over = words and word.start - words[-1].end > _PAUSE_S
        if words and (full or said or over):
            yield Caption(words[0].start, words[-1].end, who, rows)
            words, grown = [], _rows([word], who)
        words, rows = [*words, word], grown
    if words:
        yield Caption(words[0].start, words[-1].end, who, rows)


def _rows(words: Iterable[Word], who: str) -> list[str]:
    """The words in rows; the name, with a colon and a space, takes room of the first. A word that is wider than a row
    has one for itself."""
    rows: list[str] = []
    room = COLUMNS - (min(_width(who), COLUMNS // 2) + 2 if who else 0)
    for word in words:
        text = _flat(word.text)
        more = f" {text}" if word.space and rows else text
        if rows and _width(rows[-1] + more) <= room:
            rows[-1] += more
        else:
            room = COLUMNS if rows else room
            rows.append(text)
    return rows


def _width(text: str) -> int:
    return sum(2 if east_asian_width(each) in "WF" else 1 for each in text)


def _joined(words: Iterable[Word]) -> str:
    return "".join(f" {word.text}" if word.space else word.text for word in words).strip()


def _flat(text: str) -> str:
    """On one row, without what controls anything."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _text(lines: Sequence[Line], who: Who) -> str:
    told = [(_flat(who(line)), _flat(line.text)) for line in lines]
    return "".join(f"{name}: {text}\n" if name else f"{text}\n" for name, text in told if text)


def _srt(found: Iterable[Caption]) -> str:
    made = []
    for number, each in enumerate(found, 1):
        rows = [row.replace("-->", "->") for row in each.rows]
        rows[0] = f"{each.who}: {rows[0]}".replace("-->", "->") if each.who else rows[0]
        made.append(f"{number}\n{_clock(each.start, ',')} --> {_clock(each.end, ',')}\n" + "\n".join(rows) + "\n")
    return "\n".join(made)


def _vtt(found: Iterable[Caption]) -> str:
    made = ["WEBVTT\n"]
    for each in found:
        text = "\n".join(map(_escaped, each.rows))
        text = f"<v {_escaped(each.who)}>{text}" if each.who else text
        made.append(f"{_clock(each.start, '.')} --> {_clock(each.end, '.')}\n{text}\n")
    return "\n".join(made)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    """To the nearest millisecond, as both kinds of captions write it."""
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{ms:03}"


def _json(lines: Sequence[Line], who: Who | None, name: str, language: str, seconds: float) -> str:
    told: list[dict[str, object]] = []
    for line in lines:
        one: dict[str, object] = {"id": line.id, "start": _ms(line.start), "end": _ms(line.end), "text": line.text}
        if who is not None:
            one |= {"speaker": who(line), "speaker_id": line.speaker.id, "overlap": line.speaker.overlap}
        one["words"] = [
            {
                "text": word.text, "start": _ms(word.start), "end": _ms(word.end), "space": word.space,
                "confidence": round(word.confidence, 4),
            }
            for word in timed(line)
        ]  # fmt: skip
        told.append(one)
    whole = {"name": name, "language": language, "seconds": _ms(seconds), "lines": told}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _ms(seconds: float) -> float:
    return round(seconds, 3)


def _rttm(lines: Sequence[Line], who: Who, name: str) -> str:
    """A line for each turn; nobody known is "unknown". https://catalog.ldc.upenn.edu/docs/LDC2004T12/RTTM-format-v13.pdf"""
    made = []
    for line in lines:
        called = _token(who(line)) or "unknown"
        start, end = round(line.start, 3), round(line.end, 3)
        made.append(f"SPEAKER {_token(name) or 'audio'} 1 {start:.3f} {end - start:.3f} <NA> <NA> {called} <NA> <NA>\n")
    return "".join(made)


def _token(text: str) -> str:
    """A text as one field of a line of fields."""
    return "_".join(_flat(text).split())
