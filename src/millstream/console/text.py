"""Numbers and times as people read them, the same in every language."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def number(value: float) -> str:
    """At most four digits: 12, 1,234, 12.3 k, 4.5 M; of a fraction three that count."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            step = 1e3 if unit == "k" else bound
            return f"{value / step:.3g} {unit}" if value / step < 1000 else f"{value / step:,.0f} {unit}"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}" if size >= 0.001 or not size else f"{value:.1e}"


def share(value: float) -> str:
    """Of one, as a percentage."""
    return "–" if not math.isfinite(value) else f"{value * 100:.3g} %"


def seconds(value: float) -> str:
    """A length of time, in the unit that suits it."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    for bound, step, unit in ((1e-3, 1e-6, "µs"), (1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min")):
        if size < bound:
            return f"{value / step:.3g} {unit}"
    return f"{value / 3600:.3g} h" if size < 172800 else f"{value / 86400:.3g} d"


def size(value: float) -> str:
    """Bytes."""
    for bound, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= bound:
            return f"{value / bound:.3g} {unit}"
    return f"{value:.0f} B"


def clock(unix_s: float) -> str:
    """A time of day, UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%H:%M:%S") if 0 < unix_s < 4e9 else "–"


def moment(unix_s: float) -> str:
    """Day and time, UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S") if 0 < unix_s < 4e9 else "–"
