"""What is personal in what people say: telephone, card, ID and account numbers and e-mail addresses, word by word.

Rules of the room:
- A recogniser hears a digit wrong now and then, so no checksum must hold: seven digits that belong together are
  personal, unless what they are is plain (an amount, a date, years, times, counting, one number with its unit). What
  guard/pii.py finds in them, or in the digits that they stand for, says what they are.
- Behind words that announce such a number ("card number", "验证码") four digits are enough, behind "call" six.
- Everything is decided from what stands before, the number, and the one token behind it. So what is decided for a text
  is decided for every longer one; `Reading.undecided` is where the rest begins.
- Where a text ends for good in an open number (`ended`), less is enough, as the rest of it may follow in the next one:
  any digit that was announced, three digits said one by one, four written ones that are no year. Not where nothing
  can follow (`alone`).
- Not found: names, places, letters of licence plates and passports, numbers under seven digits that nothing announces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from millstream.guard.pii import personal, plain
from millstream.guard.spoken_mail import begins, mails, undecided, unsaid
from millstream.guard.spoken_numbers import GAPS_MAX, Run, Token, gap, runs, tokens, words

CONTEXT: Final = 48
"""Characters before a number in which something may announce it."""
_MANY: Final = 7
_PHONE_MOST: Final = 12

_STRONG: Final = (
    ("CARD", r"\bcards?\b|\bvisa\b|mastercard|信用卡|银行卡|储蓄卡|卡号|尾号"),
    (
        "ID",
        r"\bssn\b|social security"
        r"|\bpassport|\baccount (?:number|no\b|is\b)|\brouting|\bid (?:number|card|is\b)"
        r"|licen[cs]e|\bpass ?code|\bpassword|\bpin\b|\bcode is|verification|security code"
        r"|\bcvv|\bcvc|ending in|last four"
        r"|身份证|证件|护照|账号|账户|帐号|密码|验证码|社保|驾照|学号|工号",
    ),
    (
        "PHONE",
        r"(?:phone|mobile|cell|fax|contact|telephone) number|\bnumber(?: is|'s|:)|电话|手机|号码|座机|微信|传真|分机",
    ),
)
_STRONG_RE: Final = tuple((label, re.compile(words, re.IGNORECASE)) for label, words in _STRONG)
_WEAK_RE: Final = re.compile(
    r"phone|mobile|\bcell|\bcall|\btel\b|\bdial|\bfax|\btext me|whatsapp|wechat|\breach (?:me|us)|\bring me|\bnumber\b"
    r"|联系|致电|拨打|热线|\bqq\b",
    re.IGNORECASE,
)
_PUBLIC: Final = words("911 112 999 110 119 120 122 988 10086 10010 10000 12345 12306")
_UNITS: Final = words(
    "percent % dollars dollar bucks euros euro pounds pound yuan cents people years year months days hours minutes "
    "seconds miles meters metres kilometers feet degrees points votes times copies shares tons bytes records items "
    "元 块 人 年 月 日 度 次 个 名 米 吨 公 万 亿 岁 美 件 票 字 分 秒 小 天 %"
)
_DATE = re.compile(
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})(?:[ ,]+\d{1,2}:\d{2}(?::\d{2})?)?"
    r"|\d{1,2}:\d{2}(?::\d{2})?(?:[ ,–-]+(?:and )?\d{1,2}:\d{2}(?::\d{2})?)*"
)
_DECIMAL = re.compile(r"\d{1,2}\.\d+")
_ADDRESS = re.compile(r"\d{1,3}(?: ?(?:\.|dot) ?\d{1,3}){3}")


class Behind(NamedTuple):
    """What a text ended in, for the next one: digits of an open number, whether they were masked, and whether a word
    that may belong to an address came last. Nothing of what was said is in it."""

    digits: int = 0
    masked: bool = False
    word: bool = False


class Found(NamedTuple):
    """Something personal: tokens [first, stop)."""

    first: int
    stop: int
    label: str


class Reading(NamedTuple):
    """What a text holds. `found` in order; `undecided`: the first token that more text may make
    personal; `behind`: what it ended in."""

    tokens: list[Token]
    found: list[Found]
    undecided: int
    behind: Behind


def read(
    texts: Sequence[str], spaces: Sequence[bool], before: str, behind: Behind, ended: bool, alone: bool = False
) -> Reading:
    """What is personal in words that follow a text which was read: its end `before`, without what was personal, and
    what it ended in. `ended`: no word comes any more; `alone`: nor in another text. Time is linear in the words."""
    of = tokens(texts, spaces)
    flat = plain(
        "".join(f" {text}" if space and i else text for i, (text, space) in enumerate(zip(texts, spaces, strict=True)))
    )
    numbers, addresses = runs(of), mails(of, ended, behind.word)
    done = [mail for mail in addresses if ended or not mail.open]
    found = [Found(mail.first, mail.stop, "EMAIL") for mail in done]
    limit = len(of) if ended else undecided(of, behind.word)
    last = Behind(0, False, begins(of, len(of)) < len(of))
    said = next((number for number, token in enumerate(of) if not gap(token)), len(of))
    if said == len(of) <= GAPS_MAX:  # an "okay" by itself, and the number goes on behind it
        last = Behind(behind.digits, behind.masked, last.word)
    for run in numbers:
        if run.open and not ended:
            limit = min(limit, run.first)
            break
        if any(one.first <= run.first and run.stop <= one.stop for one in done):
            continue
        carried = behind if run.first <= said else Behind()
        context = _masked(before, flat, of, found, run.first)
        label = _judged(_Case(run, of, flat, context, carried, run.open and ended and not alone))
        if label:
            found.append(Found(run.first, run.stop, label))
            found.sort()
        if run.open:
            last = Behind(min(len(run.digits) + carried.digits, 99), bool(label), last.word)
    for one in found[::-1]:
        limit = one.first if one.first < limit < one.stop else limit
    return Reading(of, found, limit, last)


def unsure(of: Sequence[Token], behind: Behind) -> frozenset[int]:
    """The tokens that are not to be shown as long as what they are of is not decided: every digit, every address, and
    an end that is likely to become one."""
    hide = {token for run in runs(of) for one in run.elements for token in range(one.first, one.stop)}
    for mail in mails(of, False, behind.word):
        hide.update(range(mail.first, mail.stop))
    hide.update(range(unsaid(of), len(of)))
    return frozenset(hide)


def _masked(before: str, flat: str, of: Sequence[Token], found: Sequence[Found], stop: int) -> str:
    """The end of the text before a token, with a label in the place of what is personal. From its end on: what a text
    costs must not grow with its length twice."""
    parts: list[str] = []
    at, room = of[stop].start, CONTEXT
    for one in reversed(found):
        if room <= 0:
            break
        if one.stop <= stop:
            parts += (flat[max(of[one.stop - 1].stop, at - room) : at], f"[{one.label}]")
            at, room = of[one.first].start, room - len(parts[-2]) - len(parts[-1])
    parts += (flat[max(0, at - max(0, room)) : at], f"{before} ")
    return "".join(reversed(parts))[-CONTEXT:]


# -- one run of numbers ------------------------------------------------------------------------------------------------


class _Case(NamedTuple):
    """A run in its place. `context`: the text before, masked; `carried`: of a number that goes on from the text before;
    `cut`: the text ended in it."""

    run: Run
    of: Sequence[Token]
    flat: str
    context: str
    carried: Behind
    cut: bool

    @property
    def raw(self) -> str:
        return self.flat[self.of[self.run.first].start : self.of[self.run.stop - 1].stop]

    @property
    def after(self) -> Token | None:
        return self.of[self.run.stop] if self.run.stop < len(self.of) and not self.cut else None


def _judged(case: _Case) -> str:
    """The label of what is personal, else ""."""
    digits = case.run.digits
    if not digits or (digits in _PUBLIC and not case.carried.digits):
        return ""
    count = len(digits) + case.carried.digits
    announced, called = _announced(case.context)
    label = announced or _length(case.run, count)
    if case.carried.masked:
        return label
    known = _known(case)
    if known:
        return announced or known if known == "PHONE" else known
    if count >= _MANY and (announced or not _plain(case)):
        return label
    if case.cut and _cut(case, announced, called):
        return label
    if _date(case) or (len(case.run.elements) == 1 and case.run.elements[0].manner == "amount"):
        return ""
    return label if (announced and len(digits) >= 4) or (called and count >= 6) else ""


def _announced(context: str) -> tuple[str, bool]:
    """What the words before announce, a card first and a telephone last, and whether it may be a number to call."""
    near = [label for label, words in _STRONG_RE if words.search(context)]
    return near[0] if near else "", _WEAK_RE.search(context) is not None


def _length(run: Run, count: int) -> str:
    if "X" in run.digits or count == 18:
        return "ID"
    return "PHONE" if count <= _PHONE_MOST else "CARD"


def _known(case: _Case) -> str:
    """What guard/pii.py makes of it as it is written, or of its digits in the groups and in one."""
    context = case.context[-28:]
    groups = " ".join(_groups(case.run))
    after = case.after.text[:2] if case.after is not None and case.after.joined else ""
    for written in dict.fromkeys((case.raw + after, groups, groups.replace(" ", ""))):
        text = f"{context} {written}" if written != case.raw + after else context + written
        start = len(text) - len(written)
        for begin, stop, label in personal(text):
            if stop > start and begin < len(text) and not _plain(case):
                return label
    return ""


def _groups(run: Run) -> list[str]:
    """Digits as groups: those said one by one are one group as long as nothing else stands between."""
    groups: list[str] = []
    single = False
    for one in run.elements:
        if single and one.manner == "single":
            groups[-1] += one.digits
        elif one.digits:
            groups.append(one.digits)
        single = one.manner == "single" and bool(groups)
    return groups


def _cut(case: _Case, announced: str, called: bool) -> bool:
    """Whether an end of a text is masked because the rest of a number may follow."""
    if announced:
        return True
    digits = case.run.digits
    manners = {one.manner for one in case.run.elements}
    if called and len(digits) >= 3 and (manners != {"pair"} or len(digits) > 4):  # not "call me at ten thirty"
        return True
    if manners == {"single"}:
        return len(digits) >= 3 and not _counting(case.run)
    longest = max((one.digits for one in case.run.elements if one.manner == "written"), key=len, default="")
    return len(longest) >= 4 and not _year(longest) and not _money(case) and not _date(case) and not _decimal(case)


def _plain(case: _Case) -> bool:
    """Whether it is plain what such a long number is, and that it is no person's."""
    elements = case.run.elements
    if all(one.manner == "amount" for one in elements) or _date(case) or _decimal(case):
        return True
    if len(elements) == 1 and (_money(case) or (case.after is not None and case.after.text in _UNITS)):
        return True
    if _ADDRESS.fullmatch(case.raw) and all(int(one.digits) < 256 for one in elements):
        return True
    return _counting(case.run) or _years(case.run)


def _date(case: _Case) -> bool:
    return _DATE.fullmatch(case.raw) is not None


def _decimal(case: _Case) -> bool:
    return _DECIMAL.fullmatch(case.raw) is not None


def _money(case: _Case) -> bool:
    return case.context.rstrip().endswith(("$", "€", "£", "¥"))


def _counting(run: Run) -> bool:
    """1, 2, 3 and on, or tens, or down: the same step, not zero, between three numbers or more."""
    values = [int(one.digits) for one in run.elements if one.digits.isdigit() and len(one.digits) <= 4]
    steps = {later - earlier for earlier, later in pairwise(values)}
    return len(values) == len(run.elements) > 2 and len(steps) == 1 and steps != {0}


def _year(digits: str) -> bool:
    return len(digits) == 4 and 1500 <= int(digits) < 2100


def _years(run: Run) -> bool:
    """Years alone, written or as they are said in two halves."""
    if all(_year(one.digits) for one in run.elements):
        return True
    if any(one.manner != "pair" for one in run.elements) or len(run.elements) % 2:
        return False
    return all(_year(a.digits + b.digits) for a, b in zip(run.elements[::2], run.elements[1::2], strict=True))
