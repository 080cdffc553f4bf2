"""What an attribute of an item says, whoever wrote it and however.

Rules of the room:
- An item is never refused for one odd attribute: what cannot be read counts as not said, and nothing here raises.
- Of what forbids, the careful reading counts: an age that cannot be read is one that nobody has.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SEPARATOR: Final = "|"
"""Several texts in one, as in the columns of a file."""
AGE_MAX: Final = 120
_SINGLE_MAX: Final = float(np.finfo(np.float32).max)
_NO = frozenset(("false", "no", "none", "out", "off"))


def number(value: object) -> float:
    """A number that a float32 can hold, also one written as text; NaN for all else."""
    if isinstance(value, str | int | float):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            return math.nan
        return found if abs(found) <= _SINGLE_MAX else math.nan
    return math.nan


def truth(value: object, unsaid: bool = False) -> bool:
    """Whether it is true: a number above 0, a text that does not say no; `unsaid` where there is nothing."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN is not itself
        return unsaid
    if isinstance(value, str) and math.isnan(number(value)):
        return value.strip().lower() not in _NO
    return number(value) > 0 or value == math.inf


def texts(value: object, most: int) -> list[str]:
    """The texts of a list, or of one text with "|" between them; none empty, none twice, at most `most`."""
    if value is None:
        return []
    given = value if isinstance(value, list | tuple) else value.split(SEPARATOR) if isinstance(value, str) else [value]
    return list(dict.fromkeys(filter(None, map(_text, given[:most]))))


def when(value: object, arrival: float) -> float:
    """Unix seconds: a number, or a date as ISO 8601 writes it (UTC where it names no zone); `arrival` where it cannot
    be read, or says a time to come: who dates an item ahead does not lead what is new for ever."""
    seconds = number(value)
    if math.isnan(seconds) and isinstance(value, str):
        try:
            read = datetime.fromisoformat(value)
            seconds = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return arrival
    return min(seconds, arrival) if seconds > 0 else arrival


def vector(value: object) -> NDArray[np.float32] | None:
    """float32 [d], d > 0, all finite; None for all else."""
    if not isinstance(value, list | tuple) or not value:
        return None
    try:
        found: NDArray[Any] = np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        return None
    if found.ndim != 1 or not (found.min() >= -_SINGLE_MAX and found.max() <= _SINGLE_MAX):  # NaN is neither
        return None
    return found.astype(np.float32)


def age(value: object) -> float:
    """The whole years that somebody must have: 0 for none, infinite where it cannot be read or is over AGE_MAX."""
    if value is None or value == "":
        return 0.0
    years = number(value)
    return float(max(0, math.ceil(years))) if years <= AGE_MAX else math.inf


def _text(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, float):
        return "" if not math.isfinite(value) else str(int(value)) if value.is_integer() else repr(value)
    return str(value) if isinstance(value, int) else ""
