"""The kernels of the state: what an event changes in it, and what it says at a time. Layouts are those of plan.py.

Rules of the room:
- `base` and `output` are rows of a Plan's tables; `row`, `counts` and `registers` are an entity's parts of the three
  arrays. `number` counts hops since 1970; `tile` is a place in a ring.
- Dividing is dear and done once a hop; memory is read by the line, so what every event looks at stands together.
- Entities lie all over a memory much larger than any cache: the rows of the next few are touched together, so that
  they come together.
- `totals` int64 is scratch, a number for each entry of the widest `top_k`.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from millstream.features.plan import (
    AT,
    BASE,
    BINS,
    BYTES,
    COLUMN,
    COUNT,
    COUNTS,
    DISTINCT,
    ENTRIES,
    FLOATS,
    GAMMA,
    HALF,
    HLL,
    HOP,
    KIND,
    LATEST,
    LATEST_TILE,
    MASK,
    MAX,
    MIN,
    NEVER,
    OP,
    OPS,
    QUANTILE,
    QUANTILE_AT,
    REGISTERS,
    SMALLEST,
    SUM,
    TILES,
    TOKEN,
    TOP,
    VAR,
    WINDOW,
    N,
)
from millstream.native import f64 as f8
from millstream.native import given, i64, inner, kernel, u8, u32, void

FOREVER: Final = 2**62
_TOGETHER, _LINE = 8, 8  # entities; numbers of a line of memory

# What happens to a base when an event comes.

_ROW, _WORDS, _OCTETS = f8[:, ::1], u32[:, ::1], u8[:, ::1]
_LOG_GAMMA: Final = math.log(GAMMA)
_ALPHA_M: Final = 0.7213 / (1 + 1.079 / REGISTERS)


@inner
def _clear(first: Any, last: Any, base: Any, row: Any, counts: Any, registers: Any) -> None:
    """Empty the tiles from `first` to `last`."""
    kind, tiles = base[KIND], base[TILES]
    wide = 1 if kind == COUNT or kind == MIN or kind == MAX else 2 if kind == SUM else 3  # noqa: SIM109
    empty = np.inf if kind == MIN else -np.inf if kind == MAX else 0.0
    tile = first % tiles
    for _ in range(first, last + 1):
        if kind <= MAX:
            for at in range(base[FLOATS] + wide * tile, base[FLOATS] + wide * (tile + 1)):
                row[at] = empty
        elif kind == TOP:
            for entry in range(base[ENTRIES]):
                counts[base[COUNTS] + entry * tiles + tile] = 0
        elif kind == QUANTILE:
            start = base[COUNTS] + tile * (2 * BINS + 1)
            counts[start : start + 2 * BINS + 1] = 0
        else:
            start = base[BYTES] + tile * REGISTERS
            registers[start : start + REGISTERS] = 0
        tile = tile + 1 if tile + 1 < tiles else 0


@inner
def _tile(number: Any, base: Any, row: Any, counts: Any, registers: Any) -> Any:
    """Where in its ring a tile is, -1 when it has left; those that it leaves behind are emptied."""
    tiles, latest = base[TILES], row[base[LATEST_TILE]]
    if number > latest:
        if latest != NEVER:
            _clear(max(np.int64(latest) + 1, number - tiles + 1), number, base, row, counts, registers)
        row[base[LATEST_TILE]] = number
    elif number <= latest - tiles:
        return -1
    return number % tiles


@inner
def _to_latest(time: Any, value: Any, base: Any, row: Any) -> None:
    """Keep the latest entries, newest first; of one time the one that came later is newer."""
    first, n = base[FLOATS], base[ENTRIES]
    at = n
    while at > 0 and row[first + 2 * (at - 1)] <= time:
        at -= 1
    if at == n:
        return
    for one in range(n - 1, at, -1):
        row[first + 2 * one] = row[first + 2 * (one - 1)]
        row[first + 2 * one + 1] = row[first + 2 * (one - 1) + 1]
    row[first + 2 * at], row[first + 2 * at + 1] = time, value


@inner
def _to_distinct(time: Any, value: Any, base: Any, row: Any) -> None:
    """Keep the values that came latest, each at its latest time."""
    first, n = base[FLOATS], base[ENTRIES]
    was = n - 1  # the entry that goes
    for one in range(n):
        if row[first + 2 * one] != NEVER and row[first + 2 * one + 1] == value:
            was = one
            break
    if row[first + 2 * was] > time:
        return
    while was > 0 and row[first + 2 * (was - 1)] <= time:
        row[first + 2 * was] = row[first + 2 * (was - 1)]
        row[first + 2 * was + 1] = row[first + 2 * (was - 1) + 1]
        was -= 1
    row[first + 2 * was], row[first + 2 * was + 1] = time, value


@inner
def _to_top(tile: Any, value: Any, base: Any, row: Any, counts: Any) -> None:
    """Count a value; when all entries are taken, it gets the one with the fewest."""
    first, tiles, chosen, fewest = base[FLOATS], base[TILES], -1, np.int64(2**62)
    for entry in range(base[ENTRIES]):
        if row[first + entry] == value:
            chosen = entry
            break
        total = np.int64(0)
        at = base[COUNTS] + entry * tiles
        for one in range(tiles):
            total += counts[at + one]
        if total < fewest:
            chosen, fewest = entry, total
    at = base[COUNTS] + chosen * tiles
    if row[first + chosen] != value:
        row[first + chosen] = value
        counts[at : at + tiles] = 0
    counts[at + tile] += 1


@inner
def _bin(value: Any) -> Any:
    """The bin of a value: negative ones, nothing, positive ones."""
    size = abs(value)
    if size < SMALLEST:
        return BINS
    step = min(max(math.ceil(math.log(size / SMALLEST) / _LOG_GAMMA), 0), BINS - 1)
    return BINS + 1 + step if value > 0 else BINS - 1 - step


@inner
def _to_registers(tile: Any, value: Any, base: Any, registers: Any) -> None:
    bits = np.float64(value + 0.0).view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    bits ^= bits >> np.uint64(33)
    at = base[BYTES] + tile * REGISTERS + np.int64(bits & np.uint64(REGISTERS - 1))
    bits >>= np.uint64(8)
    rank = 1
    while rank <= 56 and (bits & np.uint64(1)) == np.uint64(0):
        rank += 1
        bits >>= np.uint64(1)
    registers[at] = max(registers[at], rank)


@inner
def _to_decay(time: Any, value: Any, base: Any, row: Any) -> None:
    at, half = base[FLOATS], float(base[HALF])
    if row[at + 2] == 0.0:
        row[at], row[at + 1] = value, time
    elif time >= row[at + 1]:
        row[at] = row[at] * 2.0 ** (-(time - row[at + 1]) / half) + value
        row[at + 1] = time
    else:
        row[at] += value * 2.0 ** (-(row[at + 1] - time) / half)
    row[at + 2] += 1.0


@inner
def _to_tile(kind: Any, tile: Any, value: Any, base: Any, row: Any) -> None:
    at = base[FLOATS]
    if kind == COUNT:
        row[at + tile] += 1.0
    elif kind == SUM:
        row[at + 2 * tile] += 1.0
        row[at + 2 * tile + 1] += value
    elif kind == VAR:  # Welford, 1962
        at += 3 * tile
        row[at] += 1.0
        apart = value - row[at + 1]
        row[at + 1] += apart / row[at]
        row[at + 2] += apart * (value - row[at + 1])
    elif kind == MIN:
        row[at + tile] = min(row[at + tile], value)
    else:
        row[at + tile] = max(row[at + tile], value)


@inner
def _take(
    time: Any, values: Any, masks: Any, bases: Any, used: Any, row: Any, counts: Any, registers: Any
) -> None:  # fmt: skip
    """One event of an entity."""
    hop, number = np.int64(-1), np.int64(0)
    for u in range(len(used)):
        base = bases[used[u]]
        if base[MASK] >= 0 and masks[base[MASK]] == 0:
            continue
        value = 0.0
        if base[COLUMN] >= 0:
            value = values[base[COLUMN]]
            if math.isnan(value):
                continue
        kind = base[KIND]
        if kind == LATEST:
            _to_latest(time, value, base, row)
        elif kind == DISTINCT:
            _to_distinct(time, value, base, row)
        elif kind > QUANTILE:
            _to_decay(time, value, base, row)
        else:
            if base[HOP] != hop:  # dividing is dear, and bases of one hop stand together
                hop = base[HOP]
                number = time // hop if hop else np.int64(0)
            tile = _tile(number, base, row, counts, registers)
            if tile < 0:
                continue
            if kind == TOP:
                _to_top(tile, value, base, row, counts)
            elif kind == QUANTILE:
                counts[base[COUNTS] + tile * (2 * BINS + 1) + _bin(value)] += 1
            elif kind == HLL:
                _to_registers(tile, value, base, registers)
            else:
                _to_tile(kind, tile, value, base, row)


@inner
def _touched(places: Any, floats: Any) -> Any:
    """Read a number of each line of these rows."""
    seen = 0.0
    for at in places:
        if at >= 0:
            for one in range(0, floats.shape[1], _LINE):
                seen += abs(floats[at, one])
    return seen


_TAKEN = (given(i64), given(i64, 1, "A"), given(f8, 2), given(u8, 2), given(i64, 2), given(i64))


@kernel(void(*_TAKEN, _ROW, _WORDS, _OCTETS))
def apply(
    places: Any, times: Any, values: Any, masks: Any, bases: Any, used: Any, floats: Any, counts: Any, registers: Any
) -> None:
    seen = 0.0
    for i in range(len(places)):
        if i % _TOGETHER == 0:
            seen += _touched(places[i : i + _TOGETHER], floats)
        at = places[i]
        if at >= 0:
            _take(times[i], values[i], masks[i], bases, used, floats[at], counts[at], registers[at])
    if seen == NEVER:  # it never is; but what nobody looks at would not be read
        floats[0, 0] = seen


# What a base says at a time.

_COUNT, _SUM, _MEAN, _STD = OPS["count"], OPS["sum"], OPS["mean"], OPS["std"]
_SINCE = OPS["since"]


@inner
def _total(row: Any, at: Any, wide: Any, tile: Any, tiles: Any, count: Any) -> Any:
    """The sum of one number of `count` tiles of `wide` numbers each, from `tile` on, round the ring."""
    total = 0.0
    straight = min(count, tiles - tile)
    for one in range(straight):
        total += row[at + wide * (tile + one)]
    for one in range(count - straight):
        total += row[at + wide * one]
    return total


@inner
def _empty(row: Any, at: Any, wide: Any, tile: Any, tiles: Any, count: Any) -> Any:
    """How many of `count` tiles of `wide` numbers each, from `tile` on, come before the first that counts anything."""
    straight = min(count, tiles - tile)
    for one in range(straight):
        if row[at + wide * (tile + one)] != 0.0:
            return one
    for one in range(count - straight):
        if row[at + wide * one] != 0.0:
            return straight + one
    return count


@inner
def _spread(row: Any, at: Any, tile: Any, tiles: Any, count: Any) -> Any:
    """The variance over tiles of (n, mean, sum of squares around it): Chan, Golub, LeVeque, 1979. NaN of nothing."""
    n, mean, total = 0.0, 0.0, 0.0
    for _ in range(count):
        more = row[at + 3 * tile]
        if more > 0:
            apart = row[at + 3 * tile + 1] - mean
            total += row[at + 3 * tile + 2] + apart * apart * n * more / (n + more)
            n += more
            mean += apart * more / n
        tile = tile + 1 if tile + 1 < tiles else 0
    return total / n if n > 0 else np.nan


@inner
def _extreme(kind: Any, row: Any, at: Any, tile: Any, tiles: Any, count: Any) -> Any:
    """The least, or greatest, of tiles; NaN of nothing."""
    best = np.inf if kind == MIN else -np.inf
    for _ in range(count):
        best = min(best, row[at + tile]) if kind == MIN else max(best, row[at + tile])
        tile = tile + 1 if tile + 1 < tiles else 0
    return best if not math.isinf(best) else np.nan


@inner
def _of_tiles(op: Any, kind: Any, first: Any, last: Any, base: Any, row: Any) -> Any:
    """Of the tiles from `first`, which is not empty unless all are, to `last`."""
    at, tiles, count = base[FLOATS], base[TILES], max(np.int64(0), last - first + 1)
    tile = first % tiles
    if kind == COUNT:
        return _total(row, at, 1, tile, tiles, count)
    if kind == SUM:
        if count == 0:
            return np.nan
        total = _total(row, at + 1, 2, tile, tiles, count)
        return total if op == _SUM else total / _total(row, at, 2, tile, tiles, count)
    if kind == VAR:
        spread = _spread(row, at, tile, tiles, count)
        return math.sqrt(spread) if op == _STD else spread
    return _extreme(kind, row, at, tile, tiles, count)


@inner
def _listed(first: Any, base: Any, row: Any, output: Any, out: Any) -> Any:
    """The entries of a list from time `first` on, into out; the oldest of their times, or -1."""
    missing = 0.0 if output[TOKEN] else np.nan
    oldest = -1
    for one in range(output[N]):
        time = row[base[FLOATS] + 2 * one]
        if time == NEVER or time < first:
            out[output[AT] + one] = missing
            continue
        oldest = int(time)
        out[output[AT] + one] = time if output[OP] == _SINCE else row[base[FLOATS] + 2 * one + 1]
    return oldest


@inner
def _most_frequent(
    first: Any, last: Any, base: Any, row: Any, counts: Any, output: Any, out: Any, totals: Any
) -> None:  # fmt: skip
    entries, tiles = base[ENTRIES], base[TILES]
    for entry in range(entries):
        totals[entry] = 0
        for number in range(first, last + 1):
            totals[entry] += counts[base[COUNTS] + entry * tiles + number % tiles]
    for one in range(output[N]):
        best = -1
        for entry in range(entries):
            if totals[entry] > 0 and (
                best < 0
                or totals[entry] > totals[best]
                or (totals[entry] == totals[best] and row[base[FLOATS] + entry] < row[base[FLOATS] + best])
            ):
                best = entry
        if best < 0:
            out[output[AT] + one] = 0.0 if output[TOKEN] else np.nan
        else:
            out[output[AT] + one] = row[base[FLOATS] + best]
            totals[best] = 0


@inner
def _of_bins(q: Any, first: Any, last: Any, base: Any, counts: Any) -> Any:
    """The value of the bin where at least `q` of the events are at or below it."""
    size = 2 * BINS + 1
    n = np.int64(0)
    for number in range(first, last + 1):
        for one in range(size):
            n += counts[base[COUNTS] + (number % base[TILES]) * size + one]
    if n == 0:
        return np.nan
    wanted, seen = max(1.0, math.ceil(q * n - 1e-9)), np.int64(0)
    for one in range(size):
        for number in range(first, last + 1):
            seen += counts[base[COUNTS] + (number % base[TILES]) * size + one]
        if seen >= wanted:
            if one == BINS:
                return 0.0
            step = one - BINS - 1 if one > BINS else BINS - 1 - one
            middle = SMALLEST * GAMMA**step * 2.0 / (1.0 + GAMMA)
            return middle if one > BINS else -middle
    return np.nan


@inner
def _of_registers(first: Any, last: Any, base: Any, registers: Any) -> Any:
    """HyperLogLog's estimate (Flajolet et al. 2007): linear counting while many registers are empty."""
    total, empty = 0.0, 0
    for one in range(REGISTERS):
        rank = 0
        for number in range(first, last + 1):
            rank = max(rank, registers[base[BYTES] + (number % base[TILES]) * REGISTERS + one])
        total += 2.0**-rank
        empty += rank == 0
    estimate = _ALPHA_M * REGISTERS * REGISTERS / total
    if estimate <= 2.5 * REGISTERS and empty > 0:
        return REGISTERS * math.log(REGISTERS / empty)
    return estimate


@inner
def _holds(kind: Any, tile: Any, base: Any, row: Any) -> Any:
    """Whether a tile may hold something."""
    at = base[FLOATS]
    if kind == COUNT:
        return row[at + tile] > 0.0
    if kind == SUM:
        return row[at + 2 * tile] > 0.0
    if kind == VAR:
        return row[at + 3 * tile] > 0.0
    if kind in (MIN, MAX):
        return not math.isinf(row[at + tile])
    return True


@inner
def _value(
    base: Any, output: Any, q: Any, at: Any, row: Any, counts: Any, registers: Any, out: Any, watch: Any, totals: Any
) -> Any:  # fmt: skip
    """Put the stored values of an output into `out`; with `watch`, when they change by themselves, or FOREVER."""
    kind, hop = base[KIND], base[HOP]
    edge = (at - output[WINDOW]) // hop if hop else -FOREVER  # the first tile of the window
    oldest = -FOREVER
    if kind in (LATEST, DISTINCT):
        time = _listed(edge * hop if hop else -FOREVER, base, row, output, out)
        if time >= 0 and hop:
            oldest = time // hop
    elif kind > QUANTILE:
        out[output[AT]] = row[base[FLOATS]] if row[base[FLOATS] + 2] else np.nan
        out[output[AT] + 1] = row[base[FLOATS] + 1]
    else:
        last = np.int64(row[base[LATEST_TILE]]) if row[base[LATEST_TILE]] != NEVER else -FOREVER
        first = max(edge, last - base[TILES] + 1)
        if kind == TOP:
            _most_frequent(first, last, base, row, counts, output, out, totals)
        elif kind == QUANTILE:
            out[output[AT]] = _of_bins(q, first, last, base, counts)
        elif kind == HLL:
            out[output[AT]] = _of_registers(first, last, base, registers)
        elif kind <= VAR:  # most tiles of most entities are empty: they are passed over once
            count = max(np.int64(0), last - first + 1)
            first += _empty(row, base[FLOATS], kind + 1, first % base[TILES], base[TILES], count)
            if hop and first <= last:
                oldest = first
            out[output[AT]] = _of_tiles(output[OP], kind, first, last, base, row)
        else:
            out[output[AT]] = _of_tiles(output[OP], kind, first, last, base, row)
        if hop and watch and kind > VAR:
            tile = first % base[TILES]
            for number in range(first, last + 1):
                if _holds(kind, tile, base, row):
                    oldest = number
                    break
                tile = tile + 1 if tile + 1 < base[TILES] else 0
    return (oldest + 1) * hop + output[WINDOW] if oldest != -FOREVER else FOREVER


@inner
def _values(
    at: Any, bases: Any, outputs: Any, quantiles: Any, row: Any, counts: Any, registers: Any, out: Any, watch: Any,
    totals: Any,
) -> Any:  # fmt: skip
    """The stored values of an entity as of `at`; with `watch`, when they change by themselves."""
    change = FOREVER
    for o in range(outputs.shape[0]):
        output = outputs[o]
        base = bases[output[BASE]]
        q = quantiles[output[QUANTILE_AT]]
        change = min(change, _value(base, output, q, at, row, counts, registers, out, watch, totals))
    return change


_STATE = (given(f8, 2), given(u32, 2), given(u8, 2))


@kernel(void(given(i64), i64, given(i64, 2), given(i64, 2), given(f8), *_STATE, _ROW, i64[::1], i64[::1]))
def read(
    places: Any, at: Any, bases: Any, outputs: Any, quantiles: Any, floats: Any, counts: Any, registers: Any, out: Any,
    until: Any, totals: Any,
) -> None:  # fmt: skip
    seen = 0.0
    for i in range(len(places)):
        if i % _TOGETHER == 0:
            seen += _touched(places[i : i + _TOGETHER], floats)
        place = places[i]
        row, words, octets = floats[place], counts[place], registers[place]
        until[i] = _values(at, bases, outputs, quantiles, row, words, octets, out[i], True, totals)
    if seen == NEVER:  # as above
        out[0, 0] = seen


@inner
def _begin(row: Any, words: Any, octets: Any, blank: Any) -> None:
    for one in range(len(row)):
        row[one] = blank[one]
    for one in range(len(words)):
        words[one] = 0
    for one in range(len(octets)):
        octets[one] = 0


@kernel(
    void(
        *_TAKEN, given(i64), given(i64, 1, "A"), given(i64), given(i64), given(i64), given(i64, 2), given(f8),
        given(f8), _ROW, _WORDS, _OCTETS, _ROW, i64[::1],
    )
)  # fmt: skip
def replay(
    places: Any, times: Any, values: Any, masks: Any, bases: Any, used: Any, order: Any, arrivals: Any, wanted: Any,
    at: Any, readings: Any, outputs: Any, quantiles: Any, blank: Any, floats: Any, counts: Any, registers: Any,
    out: Any, totals: Any,
) -> None:  # fmt: skip
    """Each entity in turn, in one row of state: its events (`order` sorts all of them by place), and between them its
    readings (`readings` sorts them by place and time) into their rows of `out`."""
    row, words, octets = floats[0], counts[0], registers[0]
    i, place = 0, np.int64(-1)
    for j in range(len(readings)):
        reading = readings[j]
        if wanted[reading] < 0:
            continue
        if wanted[reading] != place:
            place = wanted[reading]
            _begin(row, words, octets, blank)
            while i < len(order) and places[order[i]] < place:
                i += 1
        while i < len(order) and places[order[i]] == place and arrivals[order[i]] < at[reading]:
            event = order[i]
            _take(times[event], values[event], masks[event], bases, used, row, words, octets)
            i += 1
        _values(at[reading], bases, outputs, quantiles, row, words, octets, out[reading], False, totals)


@kernel(i64(given(i64), given(i64), i64[::1], i64[::1]))
def sort(places: Any, order: Any, starts: Any, out: Any) -> Any:
    """A counting sort; how many."""
    for place in places:
        starts[place + 1] += place >= 0
    for place in range(1, len(starts)):
        starts[place] += starts[place - 1]
    total = starts[len(starts) - 1]
    for one in order:
        if places[one] >= 0:
            out[starts[places[one]]] = one
            starts[places[one]] += 1
    return total
