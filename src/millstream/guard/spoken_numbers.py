"""Numbers as people say them, in English and Chinese, as digits: "four one one", "double seven", "nineteen eighty
four", "三百五十", "幺三八", beside written ones and mixed with them.

Rules of the room:
- What a run is depends on its own tokens alone, and on the one behind it: more text never changes one that has ended.
- A run goes over what people say between the groups of a number: commas, dashes, "um", "and then", "嗯".
- A run at the end of the text is open: whatever comes next may belong to it. "oh" and "double" open one.
- Words for numbers that are parts of other words ("一起", "第一") are none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from millstream.guard.pii import plain

Manner = Literal["single", "pair", "written", "amount"]
"""How digits were said: one by one; as a number under 100; as written groups; with hundreds, thousands and more."""

CJK: Final = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
GAPS_MAX: Final = 4
"""Tokens that may stand between two groups of one number."""
_PIECE = re.compile(
    r"\[[A-Z]+\]"  # a label, or what is like one
    r"|[0-9]+(?:st|nd|rd|th|s|am|pm)(?![0-9a-z])"  # 1st, 1980s, 7pm: no digits of a number
    rf"|[0-9]+|[{CJK}]|(?:[^\W\d_{CJK}])+(?:['’](?:[^\W\d_{CJK}])+)*|\S",
    re.IGNORECASE,
)


def words(text: str) -> frozenset[str]:
    """A set of words, written with spaces between them."""
    return frozenset(text.split())


class Token(NamedTuple):
    """A word, a run of digits, a Chinese character or a mark. `text` in lower case and ASCII forms; `word`: index of
    the word that it is of; `start`, `stop`: in the text as one reads it; `joined`: nothing stands between it and the
    token before."""

    text: str
    word: int
    start: int
    stop: int
    joined: bool


class Element(NamedTuple):
    """A number of a run: tokens [first, stop), its digits ("" of what only begins one) and how they were said."""

    first: int
    stop: int
    digits: str
    manner: Manner


class Run(NamedTuple):
    """Numbers with only gaps between them. Tokens [first, stop); `reach`: the token that ended it; `open`: none did."""

    first: int
    stop: int
    reach: int
    open: bool
    elements: tuple[Element, ...]

    @property
    def digits(self) -> str:
        """All of them."""
        return "".join(one.digits for one in self.elements)


def tokens(texts: Sequence[str], spaces: Sequence[bool]) -> list[Token]:
    """The tokens of words; `spaces`: whether one goes before each. Positions are in the words put together so."""
    found: list[Token] = []
    offset = 0
    for index, (text, space) in enumerate(zip(texts, spaces, strict=True)):
        offset += space and index > 0
        for match in _PIECE.finditer(plain(text)):
            start, stop = offset + match.start(), offset + match.end()
            joined = bool(found) and found[-1].stop == start
            found.append(Token(match[0].lower(), index, start, stop, joined))
        offset += len(text)
    return found


def runs(of: Sequence[Token]) -> list[Run]:
    """Every run, in order."""
    found: list[Run] = []
    at = 0
    while at < len(of):
        element = _element(of, at, 0, 0)
        if element is None:
            at += 1
            continue
        run = _run(of, element)
        found.append(run)
        at = run.reach
    return found


def _run(of: Sequence[Token], element: Element) -> Run:
    elements, at, digits = [element], element.stop, len(element.digits)
    gaps = 0
    while at < len(of):
        more = _element(of, at, digits, len(elements))
        if more is not None:
            elements.append(more)
            at, gaps, digits = more.stop, 0, digits + len(more.digits)
        elif gap(of[at]) and gaps < GAPS_MAX:
            at, gaps = at + 1, gaps + 1
        else:
            break
    return Run(element.first, elements[-1].stop, at, at == len(of), tuple(elements))


_GAP_WORDS = words(
    "um uh uhm erm er hmm mhm and then dash hyphen minus plus space point dot slash comma okay ok yeah yes right sorry "
    "extension ext"
)
_GAP_SIGNS = frozenset(".,-–—()/:;…?!'\"、，。：；！？·~")
_GAP_CHARS = frozenset("嗯呃额啊哦那个然后对好是的杠横空格点转再吧呢")


def gap(token: Token) -> bool:
    """Whether people say or write it between the groups of a number."""
    return token.text in _GAP_WORDS or token.text in _GAP_SIGNS or token.text in _GAP_CHARS


# -- one number --------------------------------------------------------------------------------------------------------

_ONES: Final = {
    word: digit
    for digit, words in enumerate(
        ("zero nought naught", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine niner")
    )
    for word in words.split()
}
_TEEN_WORDS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TEENS: Final = {word: value for value, word in enumerate(_TEEN_WORDS.split(), 10)}
_TENS: Final = {word: 10 * tens for tens, word in enumerate(_TEN_WORDS.split(), 2)}
_SCALES: Final = {"thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_TIMES: Final = {"double": 2, "triple": 3, "treble": 3, "quadruple": 4}
_OH: Final = frozenset(("oh", "o"))
_OHS_MAX: Final = 8  # before a number; whoever says more of them says none


def _element(of: Sequence[Token], at: int, digits: int, before: int) -> Element | None:
    """The number at a token; `digits`, `before`: so many of them, and of numbers, stand before it in its run."""
    text = of[at].text
    if text[0].isascii():
        if text.isdigit():
            return _written(of, at)
        if text in _TIMES:
            return _several(of, at)
        if text in _OH:
            return _oh(of, at, before)
        if text == "x" and digits == 17 and before:
            return Element(at, at + 1, "X", "single")
        return _english(of, at)
    if text == "叉" and digits == 17 and before:
        return Element(at, at + 1, "X", "single")
    return _chinese(of, at)


def _written(of: Sequence[Token], at: int) -> Element:
    """A run of digits, or several with commas between the thousands."""
    digits, stop = of[at].text, at + 1
    while (
        len(of[at].text) <= 3
        and stop + 1 < len(of)
        and of[stop].text == ","
        and of[stop].joined
        and of[stop + 1].joined
        and re.fullmatch("[0-9]{3}", of[stop + 1].text)
    ):
        digits += of[stop + 1].text
        stop += 2
    if stop < len(of) and of[stop].text in _SCALES:
        return Element(at, stop + 1, digits + str(_SCALES[of[stop].text])[1:], "amount")
    if stop > at + 1:
        return Element(at, stop, digits, "amount")
    return Element(at, stop, digits, "single" if len(digits) == 1 else "written")


def _several(of: Sequence[Token], at: int) -> Element | None:
    """ "double seven"; at the end of the text "double" alone, which may become one."""
    if at + 1 == len(of):
        return Element(at, at + 1, "", "single")
    digit = _digit(of[at + 1].text)
    return Element(at, at + 2, digit * _TIMES[of[at].text], "single") if digit else None


def _digit(text: str) -> str:
    if text in _ONES:
        return str(_ONES[text])
    if text in _OH:
        return "0"
    return text if len(text) == 1 and text in "0123456789" else ""


def _oh(of: Sequence[Token], at: int, before: int) -> Element | None:
    """A zero where numbers stand beside it; at the end of the text it may become one."""
    if before:
        return Element(at, at + 1, "0", "single")
    if at + 1 == len(of):
        return Element(at, at + 1, "", "single")
    beside = at + 1
    while beside - at < _OHS_MAX and beside + 1 < len(of) and of[beside].text in _OH:
        beside += 1
    text = of[beside].text
    number = text.isdigit() or text in _ONES or text in _TEENS or text in _TENS or text in _TIMES
    return Element(at, at + 1, "0", "single") if number else None


def _english(of: Sequence[Token], at: int, below: int = 0) -> Element | None:
    """A number in words at a token; `below`: of one behind a scale that must be less than it."""
    value, stop = _below_hundred(of, at)
    if stop == at and of[at].text != "hundred" and of[at].text not in _SCALES:
        return None
    amount, scales = value, 0
    if stop < len(of) and of[stop].text == "hundred":
        amount, stop, scales = (value or 1) * 100, stop + 1, 1
        linked = stop < len(of) and of[stop].text == "and"
        more, end = _below_hundred(of, stop + linked)
        dictated = not linked and 0 < more < 10 and end < len(of) and _digit(of[end].text)  # eight hundred, five, five
        if end > stop and more and not dictated:
            amount, stop = amount + more, end
    if stop < len(of) and of[stop].text in _SCALES:
        scale = _SCALES[of[stop].text]
        if below and scale >= below:
            return None
        amount, stop, scales = (amount or 1) * scale, stop + 1, 1
        linked = stop < len(of) and of[stop].text == "and"
        rest = _english(of, stop + linked, scale) if stop < len(of) - 1 else None
        if rest is not None and len(rest.digits) < len(str(scale)):
            amount, stop = amount + int(rest.digits), rest.stop
    if scales:
        return Element(at, stop, str(amount), "amount")
    return Element(at, stop, str(value), "single" if value < 10 else "pair")


def _below_hundred(of: Sequence[Token], at: int) -> tuple[int, int]:
    """A number under 100 at a token, and the token behind it; that token again where there is none."""
    if at >= len(of):
        return 0, at
    text = of[at].text
    if text in _ONES:
        return _ONES[text], at + 1
    if text in _TEENS:
        return _TEENS[text], at + 1
    if text not in _TENS:
        return 0, at
    stop = at + 1
    hyphen = stop + 1 < len(of) and of[stop].text == "-" and of[stop].joined
    if stop + hyphen < len(of) and _ONES.get(of[stop + hyphen].text, 0) > 0:
        return _TENS[text] + _ONES[of[stop + hyphen].text], stop + hyphen + 1
    return _TENS[text], stop


# -- Chinese -----------------------------------------------------------------------------------------------------------

_ZH_WORDS = "零〇○洞 一壹幺 二贰两 三叁 四肆 五伍 六陆 七柒拐 八捌 九玖勾"
_ZH_DIGITS: Final = {
    char: digit
    for digit, chars in enumerate(_ZH_WORDS.split())
    for char in chars
}  # fmt: skip
_ZH_RADIO: Final = frozenset("洞拐勾")  # said for digits over the radio, words of their own elsewhere
_ZH_UNITS: Final = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000, "万": 10_000, "亿": 100_000_000}
_ZH_BEHIND: Final = frozenset("起下些样直定般切边旦致种位名次会方共番向律面带再生") | frozenset("分姓川周夕卦金亚")
_ZH_BEFORE: Final = frozenset("第周期统唯之逐同每某另单专")
_ZH_LONGEST: Final = 32  # characters of a number with all of its units: three times nine, 亿, 万 and a 零 behind each
_ZH_TENS: Final = re.compile(r"(?:D千零?)?(?:D百零?)?(?:D?十)?D?".replace("D", "[一二两三四五六七八九]"))


def _chinese(of: Sequence[Token], at: int) -> Element | None:
    text = of[at].text
    if text not in _ZH_DIGITS and text not in _ZH_UNITS:
        return None
    follows = of[at + 1].text if at + 1 < len(of) else ""
    leads = of[at - 1].text if at else ""
    if text in _ZH_RADIO and leads not in _ZH_DIGITS and follows not in _ZH_DIGITS:
        return None
    alone = bool(follows) and follows not in _ZH_DIGITS and follows not in _ZH_UNITS
    if alone and (follows in _ZH_BEHIND or leads in _ZH_BEFORE or (text == "一" and follows in "个只")):
        return None
    if text == "万" and follows == "一":
        return None if at + 2 < len(of) and of[at + 2].text not in _ZH_DIGITS else Element(at, at + 2, "", "amount")
    stop = at
    while stop < min(len(of), at + _ZH_LONGEST) and (of[stop].text in _ZH_DIGITS or of[stop].text in _ZH_UNITS):
        stop += 1
    return _zh_number("".join(token.text for token in of[at:stop]), at)


def _zh_number(chars: str, at: int) -> Element:
    """The first number of such characters: one with units, read as one reads it, else one digit."""
    chars = chars.translate(_ZH_PLAIN)
    value, used, units = 0, 0, False
    for unit in ("亿", "万", ""):
        match = _ZH_TENS.match(chars, used)
        section = match[0] if match else ""
        if unit and not (section and chars[used + len(section) :].startswith(unit)):
            continue
        part = section if unit or set(section) & set("十百千") or units else ""
        value += _zh_value(part) * _ZH_UNITS.get(unit, 1)
        used += len(part) + len(unit)
        units = units or bool(unit) or bool(part)
        used += bool(units and unit and chars[used : used + 1] == "零" and chars[used + 1 : used + 2] in _ZH_SOME)
    if units:
        return Element(at, at + used, str(value), "amount" if value >= 100 else "pair")
    if chars[0] in _ZH_UNITS:
        return Element(at, at + 1, str(_ZH_UNITS[chars[0]]), "amount")
    return Element(at, at + 1, str(_ZH_DIGITS[chars[0]]), "single")


_ZH_PLAIN = str.maketrans("壹幺贰叁肆伍陆柒捌玖拾佰仟", "一一二三四五六七八九十百千")
_ZH_SOME = frozenset("一二两三四五六七八九")


def _zh_value(chars: str) -> int:
    """Under 10,000: 三千零五, 三百五 (350), 十二."""
    value, digit, unit, zero = 0, 0, 1, False
    for char in chars:
        if char in _ZH_UNITS:
            unit = _ZH_UNITS[char]
            value += (digit or 1) * unit
            digit, zero = 0, False
        elif char == "零":
            zero = True
        else:
            digit = _ZH_DIGITS[char]
    return value + (digit * unit // 10 if digit and unit >= 100 and not zero else digit)
