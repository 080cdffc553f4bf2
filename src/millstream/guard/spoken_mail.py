"""E-mail addresses as people say them: "john dot smith at gmail dot com", "zhang 艾特 163 点 com", beside written ones.

Rules of the room:
- The local part is the last word before "at" with what "dot" and its like join to it; letters and digits said one by
  one are one part. Behind a word that announces an address it may have two words more.
- What an address is depends on its tokens, on those before, and on the one behind it.
- `begins` never decreases as text grows: what came before it can be shown, whatever follows.
- A site ("find us at example dot com") is no address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from millstream.guard.spoken_numbers import Token, words

REACH: Final = 24
"""Tokens that a local part has at most."""
_CUE_REACH: Final = 10
_EXTRA: Final = 2
_AT = frozenset(("at", "@", "艾"))
_AFTER_AT = frozenset(("sign", "the", "rate", "特"))
_DOT = frozenset(("dot", ".", "点"))
_JOIN = words("dot underscore dash hyphen minus plus point . - _ + % 点 杠")
_MARKS = frozenset(".-_+%")  # these join only where nothing stands between
_CUE = frozenset(("email", "emails", "mail", "mails", "邮", "e-mail"))
_ZH = frozenset("零〇一二两三四五六七八九幺")
_NUMBERS = words("zero oh one two three four five six seven eight nine ten")
_STOPS = _CUE | words(
    "is are was be address to at on in me my the an by with of or and it it's its us we look up out find online "
    "today more here site website page available store shop login sign check yeah yes okay ok um uh so that's"
)


class Mail(NamedTuple):
    """An address, tokens [first, stop); `open`: more of it may follow."""

    first: int
    stop: int
    open: bool


def _part(of: Sequence[Token], at: int) -> bool:
    """Latin letters or digits, Chinese ones too."""
    return 0 <= at < len(of) and of[at].text[0].isalnum() and (of[at].text[0] < "\u2e80" or of[at].text in _ZH)


def _letters(of: Sequence[Token], at: int) -> bool:
    """What a domain ends in: no digits."""
    return _part(of, at) and not of[at].text[0].isdigit() and of[at].text not in _NUMBERS and of[at].text not in _ZH


def begins(of: Sequence[Token], at: int) -> int:
    """Where a local part begins that would end before token `at`; `at` itself where there is none."""
    last = at
    while last > 0 and at - last < REACH and _join(of, last - 1):
        last -= 1
    if not _atom(of, last - 1):
        return at
    first = last - 1
    while first > 0 and at - first < REACH:
        if _join(of, first - 1) and _atom(of, first - 2):
            first -= 2
        elif _part(of, first - 1) and (of[first].joined or (_spelled(of[first]) and _spelled(of[first - 1]))):
            first -= 1
        else:
            break
    if _announced(of, first):
        for _ in range(_EXTRA):
            first -= _atom(of, first - 1) and not _stop(of, first - 1)
    elif of[first].text.isdigit() and _atom(of, first - 1):
        first -= 1  # "john 99 at"
    return first


def mails(of: Sequence[Token], ended: bool, going_on: bool = False) -> list[Mail]:
    """Every address, in order. `ended`: no more text follows; `going_on`: the text goes on with what may have been the
    local part of one."""
    found: list[Mail] = []
    for at, token in enumerate(of):
        if token.text not in _AT or (found and at < found[-1].stop):
            continue
        first = begins(of, at)
        if first == at and not (at == 0 and going_on):
            continue
        mail = _mail(of, first, at, ended)
        if mail is not None:
            found.append(mail)
    return found


def undecided(of: Sequence[Token], going_on: bool = False) -> int:
    """The first token that may be of an address, whatever follows; their number where none may."""
    first = begins(of, len(of))
    for at in range(max(0, len(of) - 2 * REACH), len(of)):
        begun = of[at].text in _AT and (at > begins(of, at) or (at == 0 and going_on))
        if begun and _may_go_on(of, _domain(of, at)[0]):
            return min(first, begins(of, at))
    return first


def unsaid(of: Sequence[Token]) -> int:
    """The first token of an end that is not to be shown yet: a name behind an "at"; all of an address where something
    joins its parts or announces it."""
    tail = begins(of, len(of))
    first = len(of) if tail >= len(of) - 1 and not _announced(of, tail) else tail
    for at in range(max(0, len(of) - 2 * REACH), len(of)):
        if of[at].text in _AT and _may_go_on(of, _domain(of, at)[0]):
            local = begins(of, at)
            plain = local >= at - 1 and not _announced(of, local)
            first = min(first, len(of), at + 1 if plain else local)
    return first


def _mail(of: Sequence[Token], first: int, at: int, ended: bool) -> Mail | None:
    stop, dots = _domain(of, at)
    begun = stop > at + 1
    written = of[at].text == "@" and of[at].joined and begun
    if dots or written or (ended and stop == len(of) and begun and _announced(of, first)):
        return Mail(first, stop, _may_go_on(of, stop))
    return None


def _may_go_on(of: Sequence[Token], stop: int) -> bool:
    """Whether a domain that ends here may have more names, whatever comes."""
    return stop == len(of) or (stop + 1 == len(of) and (_dash(of, stop) or _dot(of, stop)))


def _domain(of: Sequence[Token], at: int) -> tuple[int, int]:
    """Where a domain behind an "at" ends, and how many dots with a name behind them it has."""
    stop = at + 1
    while stop < len(of) and stop - at <= 3 and of[stop].text in _AFTER_AT:
        stop += 1
    stop, dots = _name(of, stop), 0
    while stop + 1 < len(of) and stop - at < REACH and _dot(of, stop) and _letters(of, stop + 1):
        if of[stop].text == "." and not of[stop + 1].joined:
            break
        stop, dots = _name(of, stop + 1, _letters), dots + 1
    return stop, dots


def _name(of: Sequence[Token], at: int, part: Callable[[Sequence[Token], int], bool] = _part) -> int:
    """Where a name of a domain that begins here ends: a word, or letters and digits said one by one."""
    stop = at + part(of, at)
    while stop > at and stop < len(of) and stop - at < REACH:
        if part(of, stop) and (of[stop].joined or (_spelled(of[stop]) and _spelled(of[stop - 1]))):
            stop += 1
        elif _dash(of, stop) and part(of, stop + 1):
            stop += 2
        else:
            break
    return stop


def _announced(of: Sequence[Token], first: int) -> bool:
    return any(token.text in _CUE for token in of[max(0, first - _CUE_REACH) : first])


def _stop(of: Sequence[Token], at: int) -> bool:
    """A word before addresses that is not of them, unless something joins it."""
    return of[at].text in _STOPS and not (at > 1 and _join(of, at - 1) and _part(of, at - 2))


def _atom(of: Sequence[Token], at: int) -> bool:
    return _part(of, at) and not _stop(of, at) and not _join(of, at)


def _join(of: Sequence[Token], at: int) -> bool:
    if not 0 <= at < len(of) or of[at].text not in _JOIN:
        return False
    return of[at].text not in _MARKS or of[at].joined


def _dot(of: Sequence[Token], at: int) -> bool:
    return of[at].text in _DOT and (of[at].text != "." or of[at].joined)


def _dash(of: Sequence[Token], at: int) -> bool:
    return of[at].text in ("dash", "hyphen") or (of[at].text == "-" and of[at].joined)


def _spelled(token: Token) -> bool:
    return len(token.text) == 1 or token.text.isdigit() or token.text in _NUMBERS
