"""Personal data leaves free text before anything is written: phone, e-mail, ID, card and account numbers.

Rules of the room:
- What has a checksum must pass it (card, resident ID, IBAN); what has none must be *written* like what it is, or follow
  a word that says so ("call", "电话"). A bare run of digits is an order, a time or a price, and stays.
- Matching sees full-width forms, odd dashes and the digits of every script as their ASCII twins; the text around a
  match is kept as it was.
- Time is linear in the text. A pattern is tried only on at most seven neighbouring runs of digits, or around one `@`.
- `redact(redact(x)) == redact(x)`: a label is a wall that no match and no word of context crosses.
- Not found: names, places, addresses, passports, quoted local parts, spelled-out forms ("a at b dot c").

Sources: ISO/IEC 7812 (cards, Luhn), GB 11643-1999 (resident ID), ISO 13616 (IBAN), E.164, NANP, SSA number rules.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import date
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple, NewType

Redacted = NewType("Redacted", bytes)
"""Bytes that came through this gate. The log takes nothing else."""

Span = tuple[int, int, str]
"""Start, end (exclusive) and label of something personal."""

_LABEL = re.compile(r"\[(?:PHONE|EMAIL|ID|CARD|IBAN)(?:#[0-9a-f]{12})?\]")
_WORTH_A_LOOK = re.compile(r"\d(?:\D{0,3}\d){6}")
_OTHER_DIGIT = re.compile(r"[^\D0-9]")  # of other scripts: Arabic, Devanagari ...
_PLAIN = {0xFEE0 + code: code for code in range(0x21, 0x7F)}  # full-width forms, U+FF01 to U+FF5E
_PLAIN |= dict.fromkeys((0x00A0, 0x2007, 0x2009, 0x202F, 0x3000), 0x20)
_PLAIN |= dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212), 0x2D)


def redact(text: str) -> str:
    """`text` with what identifies a person replaced by [PHONE] [EMAIL] [ID] [CARD] [IBAN]. Never raises."""
    if "@" not in text and "＠" not in text and _WORTH_A_LOOK.search(text) is None:
        return text
    parts: list[str] = []
    at = 0
    for start, stop, label in personal(text):
        parts += (text[at:start], f"[{label}]")
        at = stop
    return "".join(parts) + text[at:] if parts else text


_REMEMBERED_MAX = 256  # characters of a name


VISITOR = "visitor:"


def visitor(name: str) -> str:
    """How the log knows somebody without an account: no user has this name, whatever ids visitors have."""
    return VISITOR + pseudonym(name)


def pseudonym(identifier: str) -> str:
    """An identifier that is itself personal becomes a stable `[EMAIL#1a2b3c4d5e6f]`; any other comes back unchanged.

    The hash has no key, so equal identifiers stay equal across processes and years. It keeps an address out of files
    and screens; it does *not* withstand someone who can guess the address and hash the guess.
    """
    return _remembered(identifier) if len(identifier) <= _REMEMBERED_MAX else _pseudonym(identifier)


def _pseudonym(identifier: str) -> str:
    found = next(iter(personal(identifier)), None)
    if found is None:
        return identifier
    told_apart = blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"[{found[2]}#{told_apart}]"


_remembered = lru_cache(maxsize=65_536)(_pseudonym)


def plain(text: str) -> str:
    """As long as `text`, with full-width forms, odd dashes and spaces and all decimal digits as their ASCII twins."""
    if text.isascii():
        return text
    return _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text.translate(_PLAIN))


def personal(text: str) -> Iterator[Span]:
    """Everything personal in `text`, in order. Walls (labels, then each kind found) cut the text for the next kind."""
    seen = plain(text)
    start = 0
    for wall in (*_LABEL.finditer(seen), None):
        stop = wall.start() if wall else len(seen)
        yield from _between_walls(seen, start, stop)
        start = wall.end() if wall else stop


def _between_walls(text: str, start: int, stop: int) -> list[Span]:
    found: list[Span] = []
    for find in (_emails, _ibans, _checked, _telephones):
        edges = [start, *(edge for span in found for edge in span[:2]), stop]
        free = zip(edges[::2], edges[1::2], strict=True)
        found = sorted([*found, *(span for a, b in free for span in find(text, a, b))])
    return found


# -- e-mail and IBAN: found by their anchors --------------------------------------------------------------------------

_CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_LOCAL = re.compile(rf"(?:[^\W{_CJK}]|[.%+\-]|['&#!$*~^](?=\w))+")  # read backwards from the @
_LOCAL_CJK = re.compile(r"[\w.%+\-]+")
_DOMAIN = re.compile(rf"(?:(?:[^\W{_CJK}]|-)+\.|[{_CJK}]+\.)+(?:(?=[^\W\d_])(?:[^\W{_CJK}]|-){{2,}}|[{_CJK}]{{2,}})")


def _emails(text: str, start: int, stop: int) -> Iterator[Span]:
    """Around each @: a local part and a dotted domain, each Latin or CJK: Chinese meets an address without a space."""
    at = text.find("@", start, stop)
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1, stop)
        backwards = text[start:at][::-1]
        local = _LOCAL.match(backwards) or _LOCAL_CJK.match(backwards)
        start = at + 1
        if domain and local:
            start = domain.end()
            yield at - local.end(), start, "EMAIL"
        at = text.find("@", start, stop)


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FO FI GL NL SD", 19: "MK SI", 20: "AT BA EE KZ XK LT LU MN",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def _ibans(text: str, start: int, stop: int) -> Iterator[Span]:
    match = _IBAN.search(text, start, stop)
    while match:
        end = _iban_end(text, match, stop)
        if end:
            yield match.start(), end, "IBAN"
        match = _IBAN.search(text, end or match.start() + 1, stop)


def _iban_end(text: str, match: re.Match[str], stop: int) -> int:
    """Where the account number ends by its country's length, if its check digits hold; else 0."""
    at = [i for i, char in enumerate(match[0], 1) if char != " "]
    length = _IBAN_LENGTHS.get(match[0][:2], 99)
    if len(at) < length or _alnum(text, match.start() + at[length - 1], stop):
        return 0
    account = match[0][: at[length - 1]].replace(" ", "")
    value = int("".join(str(int(char, 36)) for char in account[4:] + account[:4]))
    return match.start() + at[length - 1] if value % 97 == 1 else 0


# -- numbers: neighbouring whole runs of digits -----------------------------------------------------------------------

_RUN = re.compile(r"[0-9]+")
_GAPS = frozenset((" ", "-", ".", "(", ")", "/", "  ", ") ", " (", ")-", "-(", " - ", ") - "))
_RUNS_MAX, _DIGITS_MAX = 7, 19
_Cues = dict[re.Pattern[str], list[int]]  # where the words begin that announce a number
_CUE_REACH = 28  # characters that an announcing word may stand before its number


class _Number(NamedTuple):
    """Up to seven whole runs of digits with known gaps. `floor` and `ceiling` bound what may be read around it."""

    text: str
    digits: str
    shape: tuple[int, ...]
    gaps: tuple[str, ...]
    start: int
    stop: int
    floor: int
    ceiling: int
    cues: _Cues

    @property
    def before(self) -> str:
        """Up to two characters before; fewer at a wall."""
        return self.text[max(self.floor, self.start - 2) : self.start]

    @property
    def after(self) -> str:
        """Up to two characters after; fewer at a wall."""
        return self.text[self.stop : min(self.ceiling, self.stop + 2)]

    @property
    def word_before(self) -> str:
        """Up to 16 characters that touch the number from the left as one word."""
        at = self.start
        while at > max(self.floor, self.start - 16) and _alnum(self.text, at - 1, self.ceiling):
            at -= 1
        return self.text[at : self.start]

    def follows(self, cue: re.Pattern[str]) -> bool:
        """Whether one of the announcing words stands close in front."""
        begins = self.cues[cue]
        nearest = bisect_left(begins, self.start) - 1
        return nearest >= 0 and begins[nearest] >= self.start - _CUE_REACH


def _alnum(text: str, at: int, ceiling: int) -> bool:
    return at < ceiling and (text[at] == "_" or (text[at].isascii() and text[at].isalnum()))


def _numbers(
    text: str,
    start: int,
    stop: int,
    digits_min: int,
    words: tuple[re.Pattern[str], ...],
    judge: Callable[[_Number], Span | None],
) -> Iterator[Span]:
    """What `judge` takes, left to right, the longest candidate first; one that is taken is a wall for the next."""
    runs = [match.span() for match in _RUN.finditer(text, start, stop)]
    digits = [text[a:b] for a, b in runs]
    sizes = tuple(map(len, digits))
    if sum(sizes) < digits_min:
        return
    gaps = tuple(text[a[1] : b[0]] for a, b in pairwise(runs))
    # Searched in a copy of the piece: a look-behind must not see over the wall.
    cues = {word: [start + match.start() for match in word.finditer(text[start:stop])] for word in words}
    first, floor = 0, start
    while first < len(runs):
        for last in _reach(sizes, gaps, first, digits_min):
            written = "".join(digits[first : last + 1]), sizes[first : last + 1], gaps[first:last]
            span = judge(_Number(text, *written, runs[first][0], runs[last][1], floor, stop, cues))
            if span is not None:
                yield span
                first, floor = last, span[1]
                break
        first += 1
        while first < len(runs) and runs[first][0] < floor:  # an extension belongs to its number
            first += 1


def _reach(sizes: tuple[int, ...], gaps: tuple[str, ...], first: int, digits_min: int) -> list[int]:
    """Indices of the last run of every candidate that begins at `first`, the longest first."""
    fitting: list[int] = []
    digits = 0
    for last in range(first, min(first + _RUNS_MAX, len(sizes))):
        digits += sizes[last]
        if digits > _DIGITS_MAX or (last > first and gaps[last - 1] not in _GAPS):
            break
        if digits >= digits_min:
            fitting.append(last)
    return fitting[::-1]


def _checked(text: str, start: int, stop: int) -> Iterator[Span]:
    """Numbers that prove themselves by a checksum (or, the old resident ID, by place and date)."""
    return _numbers(text, start, stop, 12, (_CARD_WORD,), _judge_checked)


def _judge_checked(number: _Number) -> Span | None:
    size, stop = len(number.digits), number.stop
    if min(number.shape[:-1], default=3) < 3 or not all(gap in (" ", "-") for gap in number.gaps):
        return None
    word = number.word_before
    if word and (not word.isalpha() or not word.lower().strip("abcdef")):  # part of a code or a hex string
        return None
    if size == 17 and number.after[:1] in ("X", "x"):
        stop += 1
    if _alnum(number.text, stop, number.ceiling):
        return None
    digits = number.digits
    if size in (17, 18) and number.shape in ((size,), (6, size - 6), (6, 8, size - 14)):
        whole = digits if size == 18 else digits + "X" * (stop - number.stop)
        if _resident(whole):
            return number.start, stop, "ID"
    if stop == number.stop and _luhn(digits) and (_issued(digits) or number.follows(_CARD_WORD)):
        return None if _international(number) else (number.start, stop, "CARD")
    if number.shape == (15,) and digits[:2] in _PROVINCES and _day("19" + digits[6:12]):
        return number.start, stop, "ID"
    return None


_PROVINCES = frozenset(
    str(code)
    for first, last in ((11, 15), (21, 23), (31, 37), (41, 46), (50, 54), (61, 65), (71, 71), (81, 83), (91, 91))
    for code in range(first, last + 1)
)
_MOD_11_2 = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def _resident(number: str) -> bool:
    """GB 11643: place, birthday, and an ISO 7064 MOD 11-2 check character."""
    if len(number) != 18 or number[:2] not in _PROVINCES or not _day(number[6:14]):
        return False
    return "10X98765432"[sum(int(d) * w for d, w in zip(number, _MOD_11_2, strict=False)) % 11] == number[17]


def _day(yyyymmdd: str) -> bool:
    year, month, day = int(yyyymmdd[:4]), int(yyyymmdd[4:6]), int(yyyymmdd[6:])
    try:
        return 1800 <= date(year, month, day).year < 2100
    except ValueError:
        return False


_CARD_WORD = re.compile(r"\bcard|信用卡|银行卡|卡号", re.IGNORECASE)
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:3(?:0[0-5]|095|6\d|[89]\d)\d{11,16})"  # Diners
    r"|(?:6011|64[4-9]\d|65\d\d|62\d\d|81\d\d)\d{12,15}"  # Discover, UnionPay
    r"|35(?:2[89]|[3-8]\d)\d{12,15}|(?:1800|2131)\d{11}"  # JCB
    r"|(?:5018|5020|5038|5893|56\d\d|57\d\d|58\d\d|6304|6759|676[1-3])\d{8,15}"  # Maestro
)


def _issued(digits: str) -> bool:
    """Whether an issuer hands out numbers that begin like this and are this long."""
    return _ISSUED.fullmatch(digits) is not None


def _luhn(digits: str) -> bool:
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(int("0246813579"[int(d)]) for d in even)) % 10 == 0


# -- telephones and social security numbers: no checksum, so the way they are written must say it ---------------------

_CALL = re.compile(
    r"phone|mobile|\bcell|\bcall|\btel|\bfax|\btext me|\bsms\b|whatsapp|wechat|\bdial|\bdesk:|answering|messages? to"
    r"|registered|reach (?:me|us)|电话|手机|座机|联系|致电|拨打|号码|微信|传真|热线",
    re.IGNORECASE,
)
_TOUCHING = re.compile(r"(?:phone|mobile|mob|cell|tel|fax|whatsapp|wechat|wx|vx|qq)$", re.IGNORECASE)
_SSN = re.compile(r"\bssn\b|social security", re.IGNORECASE)
_EXTENSION = re.compile(r" ?(?:x|ext\.?|extension|转|#) ?[0-9]{1,6}(?![0-9A-Za-z])", re.IGNORECASE)
_MOBILE = re.compile(r"(?:(?:00)?86)?1[3-9][0-9]{9}")
_MOBILE_SHAPES = frozenset(
    ((11,), (3, 4, 4), (3, 8), (7, 4), (4, 3, 4), (4, 4, 3), (3, 3, 5), (5, 6), (6, 5), (5, 3, 3))
)


def _telephones(text: str, start: int, stop: int) -> Iterator[Span]:
    return _numbers(text, start, stop, 7, (_CALL, _SSN), _judge_written)


def _judge_written(number: _Number) -> Span | None:
    if _social_security(number):
        return None if _part_of_code(number, None) else (number.start, number.stop, "ID")
    if not (_international(number) or _mobile(number) or _national(number) or _called(number)):
        return None
    extension = _EXTENSION.match(number.text, number.stop, number.ceiling)
    if _part_of_code(number, extension):
        return None
    start = number.start
    while start > number.floor and number.text[start - 1] in "+(":
        start -= 1
    return start, extension.end() if extension else number.stop, "PHONE"


def _part_of_code(number: _Number, extension: re.Match[str] | None) -> bool:
    """A price, a decimal, a version, the address of a machine, or letters and digits in one word."""
    before, after, word = number.before, number.after, number.word_before
    if before.endswith(("$", "€", "£", "¥", "_")) or (word and not _TOUCHING.search(word)):
        return True
    if (before[1:] == "." and before[:1].isdigit()) or (after[:1] == "." and after[1:].isdigit()):
        return True
    return extension is None and _alnum(number.text, number.stop, number.ceiling)


def _social_security(number: _Number) -> bool:
    """Area, group and serial as they are handed out; dashes in their places, or the words in front."""
    digits = number.digits
    if number.shape not in ((3, 2, 4), (9,)) or not (number.gaps == ("-", "-") or number.follows(_SSN)):
        return False
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def _international(number: _Number) -> bool:
    """E.164 after a plus sign; the two plans with a fixed length get exactly theirs, so that no neighbour is eaten."""
    digits = number.digits
    if number.before == "+(":
        return 8 <= len(digits) <= 15
    if not number.before.endswith("+") or digits[0] == "0":
        return digits[:2] == "00" and digits[2:3] not in ("", "0") and len(number.shape) > 1 and 11 <= len(digits) <= 16
    if digits[0] == "1":
        return len(digits) == 11
    return 11 <= len(digits) <= 13 if digits.startswith("86") else 8 <= len(digits) <= 14


def _mobile(number: _Number) -> bool:
    """Chinese mobile, with or without 86 in front, in the groups people write."""
    if _MOBILE.fullmatch(number.digits) is None or not all(gap.strip() in ("", "-", ")") for gap in number.gaps):
        return False
    prefix = len(number.digits) - 11
    if prefix and number.shape[0] == prefix:
        return number.shape[1:] in _MOBILE_SHAPES
    return (number.shape[0] - prefix, *number.shape[1:]) in _MOBILE_SHAPES


def _national(number: _Number) -> bool:
    """North American 3-3-4, or a leading zero and groups (Chinese landlines, most of Europe), never a date."""
    digits, shape, gaps = number.digits, number.shape, number.gaps
    if shape[-3:] == (3, 3, 4) and (shape[:-3], digits[:-10]) in (((), ""), ((1,), "1"), ((3,), "001")):
        area, exchange = digits[-10], digits[-7]
        return (area in "23456789" and exchange in "23456789") or any(gap.strip() for gap in gaps)
    if shape == (3, 7) and number.before.endswith("(") and gaps[0].startswith(")"):
        return digits[0] in "23456789"
    if digits[0] != "0" or digits[1] == "0" or len(shape) < 2 or min(shape) < 2 or not 9 <= len(digits) <= 12:
        return False
    return shape != (5, 4) and shape[:3] != (2, 2, 4) and "/" not in gaps


def _called(number: _Number) -> bool:
    """After a word that announces a telephone number: 7 to 12 digits in groups, or 10 to 12 in one run."""
    size, shape = len(number.digits), number.shape
    if size > 12 or (size < 10 and (len(shape) == 1 or min(shape) < 2)):
        return False
    if shape in ((2, 2, 4), (4, 2, 2)) or "/" in number.gaps:
        return False
    return number.follows(_CALL)
