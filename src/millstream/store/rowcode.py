"""The layout of a file of rows, and the compiled code that reads and writes it.

    head     4096 bytes: what the file is, who writes it, the vouched time (below, in words of 8 bytes)
    index    2^bits entries of 4 bytes, open addressing: low bits the row's number + 1, the rest a piece of the key
    rows     key 8, slot, slot; slot: stamp 8, payload (padded to whole words)

Rules of the room:
- One process writes, others read the same pages at the same time, without a lock. So nothing that a reader may stand on
  is moved or trusted: an index entry only says where to look; the key in the row and the slot's checksum decide.
- A slot's stamp is, from the top: seconds 32 bits (0: the slot is empty), sequence 1, checksum 31 over key, seconds,
  sequence and payload. Sequence numbers count modulo 4: the lower of their two bits is the slot itself. A put writes
  the slot that is not the newest, so that one stays whole, and the stamp last.
- The checksum mixes words of 8 bytes: 5 ns for 88 bytes, where CRC-32 by tables takes 34. A torn slot passes either
  with the same chance. Who reads beside a living writer also looks at the stamp again after the copy.
- A free row holds key 0, zeros, and the number of the next free row where its first stamp stands (seconds 0).
- Little-endian, as every machine that we run on.
- `words`: the whole file as uint64; `bits`: of its index; `rows`: how many are mapped; `w`: words of a payload; `at`:
  where a row begins. Positions are int64, what is stored is uint64.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from millstream.native import given, i64, inner, kernel, u64

HEAD: Final = 512
"""Words of the head. Its first 8 say what the file is. Readers look at MOVED with every `gather`, so it has a cache
line of its own, away from what each put changes."""
MOVED: Final = 8
USED, LIVE, ENTRIES, FREE, REFUSED = 16, 17, 18, 19, 20
CLEAN, BOOT, VOUCHED = 24, 25, 32  # 1 word, 2, and 4

_ONE, _32, _33 = np.uint64(1), np.uint64(32), np.uint64(33)
_LOW = np.uint64(0xFFFFFFFF)
_CHECK = np.uint64(0x7FFFFFFF)
_TURN = np.uint64(0x80000000)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LOOKS: Final = 100  # at a row that changes under the reader; a put takes some 50 ns
_BLOCK: Final = 64


@inner
def mixed(h: Any, word: Any) -> Any:
    h = (h ^ word) * _ODD
    return h ^ (h >> _32)


@inner
def start_of(bits: Any, w: Any, row: Any) -> Any:
    return HEAD + (1 << bits) // 2 + row * (3 + 2 * w)


@inner
def check_of(words: Any, slot: Any, w: Any, key: Any) -> Any:
    """The checksum that belongs to a slot's stamp and payload."""
    h = mixed(key, words[slot] & ~_CHECK)
    for j in range(slot + 1, slot + 1 + w):
        h = mixed(h, words[j])
    return h >> _33


@inner
def fits(words: Any, slot: Any, w: Any, key: Any) -> Any:
    return words[slot] >> _32 != 0 and check_of(words, slot, w, key) == words[slot] & _CHECK


@inner
def newest(words: Any, at: Any, w: Any) -> Any:
    """Where the slot begins that was put last, of a row at `at`, going by the stamps."""
    first, second = words[at + 1], words[at + 2 + w]
    if first >> _32 == 0:
        return at + 2 + w
    if second >> _32 == 0 or (first ^ second) & _TURN != 0:
        return at + 1
    return at + 2 + w


@inner
def entry(words: Any, place: Any) -> Any:
    return (words[HEAD + (place >> 1)] >> np.uint64((place & 1) * 32)) & _LOW


@inner
def set_entry(words: Any, place: Any, value: Any) -> Any:
    shift = np.uint64((place & 1) * 32)
    word = words[HEAD + (place >> 1)]
    words[HEAD + (place >> 1)] = (word & ~(_LOW << shift)) | (value << shift)


@inner
def home(key: Any, bits: Any) -> Any:
    return np.int64((key * _ODD) >> np.uint64(64 - bits))


@inner
def candidate(words: Any, bits: Any, key: Any, place: Any) -> Any:
    """The next place from `place` on whose entry may be this key's; -1 where the search ends."""
    mask = (1 << bits) - 1
    shift = np.uint64(bits)
    tag = (key & _LOW) >> shift
    for step in range(mask + 1):
        there = (place + step) & mask
        found = entry(words, there)
        number = np.int64(found) & mask
        if number == 0:
            return -1
        if number != mask and found >> shift == tag:
            return there
    return -1


@inner
def find(words: Any, bits: Any, rows: Any, w: Any, key: Any) -> Any:
    """The row of a key; -1: there is none; -2: it may lie beyond what is mapped here."""
    mask = (1 << bits) - 1
    place, missing = home(key, bits), -1
    for _ in range(mask + 1):
        place = candidate(words, bits, key, place)
        if place < 0:
            break
        row = (np.int64(entry(words, place)) & mask) - 1
        if row >= rows:
            missing = -2
        elif words[start_of(bits, w, row)] == key:
            return row
        place = (place + 1) & mask
    return missing


@inner
def copied(words: Any, at: Any, w: Any, key: Any, out: Any, i: Any) -> Any:
    """Copy the newest whole slot of a row into out[i]; its seconds, 0 if there is none."""
    for _ in range(_LOOKS):
        slot = newest(words, at, w)
        for _turn in range(2):
            stamp = words[slot]
            if stamp >> _32 != 0:
                h = mixed(key, stamp & ~_CHECK)
                for j in range(w):
                    word = words[slot + 1 + j]
                    out[i, j] = word
                    h = mixed(h, word)
                if h >> _33 == stamp & _CHECK and words[slot] == stamp:
                    return np.int64(stamp >> _32)
            slot = at + 1 if slot != at + 1 else at + 2 + w
        if words[at] != key:
            break
    return 0


@kernel(i64(given(u64), i64, i64, given(u64), u64[:, ::1], i64[::1]))
def gather(words: Any, bits: Any, rows: Any, keys: Any, out: Any, written: Any) -> Any:
    """Rows of `keys` into `out`, when they were put into `written` (microseconds; 0, and zeros, of a key without a
    row). 0, or 1: this file is no longer, or not all of, the one that is written.

    A key costs some four cache misses, so they are taken a block of keys at a time: first the places in the index, then
    the lines of the rows, each load independent of the last, and at the end the rows themselves.
    """
    w, mask = out.shape[1], (1 << bits) - 1
    stale = words[MOVED] != 0
    for start in range(0, len(keys), _BLOCK):
        end = min(start + _BLOCK, len(keys))
        seen = np.uint64(0)
        for i in range(start, end):
            seen ^= words[HEAD + (home(keys[i], bits) >> 1)]
        for i in range(start, end):
            place = candidate(words, bits, keys[i], home(keys[i], bits))
            row = -1 if place < 0 else (np.int64(entry(words, place)) & mask) - 1
            written[i] = row
            if 0 <= row < rows:
                at = start_of(bits, w, row)
                for line in range(at, at + 2 + 2 * w, 8):
                    seen ^= words[line]
                seen ^= words[at + 2 + 2 * w]
        out[start, 0] = seen  # or the loads above would be for nothing, and left out
        for i in range(start, end):
            key, row, seconds = keys[i], written[i], 0
            for look in range(3):  # a row may be taken away, and put anew elsewhere, while we look
                if key == 0 or (look == 0 and row == -1):
                    break
                if look > 0 or row >= rows or words[start_of(bits, w, row)] != key:
                    row = find(words, bits, rows, w, key)
                if row < 0:
                    stale |= row == -2
                    break
                seconds = copied(words, start_of(bits, w, row), w, key, out, i)
                if seconds != 0:
                    break
            if seconds == 0:
                out[i, :] = 0
            written[i] = seconds * 1_000_000
    return np.int64(stale)


@inner
def fill(words: Any, slot: Any, w: Any, key: Any, data: Any, i: Any, stamp: Any) -> Any:
    """Write a slot, its stamp last."""
    h = mixed(key, stamp)
    for j in range(w):
        words[slot + 1 + j] = data[i, j]
        h = mixed(h, data[i, j])
    words[slot] = stamp | (h >> _33)


@inner
def enlist(words: Any, bits: Any, key: Any, row: Any) -> Any:
    """Give a row an entry in the index."""
    mask = (1 << bits) - 1
    place = home(key, bits)
    for _ in range(mask + 1):
        number = np.int64(entry(words, place)) & mask
        if number == 0 or number == mask:
            break
        place = (place + 1) & mask
    if np.int64(entry(words, place)) & mask == 0:
        words[ENTRIES] += _ONE
    set_entry(words, place, (((key & _LOW) >> np.uint64(bits)) << np.uint64(bits)) | np.uint64(row + 1))


@inner
def strike(words: Any, bits: Any, key: Any, row: Any) -> Any:
    """Take a row's entry out of the index: a mark stays where a search must go on behind it."""
    mask = (1 << bits) - 1
    place = home(key, bits)
    for _ in range(mask + 1):
        number = np.int64(entry(words, place)) & mask
        if number == 0:
            return
        if number == row + 1:
            break
        place = (place + 1) & mask
    set_entry(words, place, np.uint64(mask))
    while np.int64(entry(words, place)) & mask == mask and np.int64(entry(words, (place + 1) & mask)) & mask == 0:
        set_entry(words, place, np.uint64(0))
        words[ENTRIES] -= _ONE
        place = (place - 1) & mask


@inner
def release(words: Any, bits: Any, w: Any, row: Any) -> Any:
    """Empty a row, all of its bytes, and keep it for another key."""
    at = start_of(bits, w, row)
    for j in range(at, at + 3 + 2 * w):
        if words[j] != 0:
            words[j] = np.uint64(0)
    words[at + 1] = words[FREE]
    words[FREE] = np.uint64(row + 1)


@kernel(i64(u64[::1], i64, i64, given(u64), given(u64, 2), i64, i64, i64))
def put(words: Any, bits: Any, rows: Any, keys: Any, data: Any, start: Any, seconds: Any, limit: Any) -> Any:
    """Put rows from `start` on; how far it came: to the end, or to a new key that there is no room for here. New keys
    beyond `limit` are counted (REFUSED) and left out."""
    w, most_entries = data.shape[1], (7 << bits) // 10
    when = np.uint64(seconds) << _32
    for i in range(start, len(keys)):
        key = keys[i]
        row = find(words, bits, rows, w, key)
        if row >= 0:
            at = start_of(bits, w, row)
            last = newest(words, at, w)
            if last == at + 1:  # the second slot is newer than the first when their bits are equal
                fill(words, at + 2 + w, w, key, data, i, when | (words[last] & _TURN))
            else:
                fill(words, at + 1, w, key, data, i, when | (~words[last] & _TURN))
            continue
        if np.int64(words[LIVE]) >= limit:
            words[REFUSED] += _ONE
            continue
        free, used = np.int64(words[FREE]), np.int64(words[USED])
        if (free == 0 and used >= rows) or np.int64(words[ENTRIES]) >= most_entries:
            return i
        if free != 0:
            row = free - 1
            words[FREE] = words[start_of(bits, w, row) + 1]
        else:
            row = used
            words[USED] = np.uint64(used + 1)
        at = start_of(bits, w, row)
        fill(words, at + 1, w, key, data, i, when)
        words[at] = key
        enlist(words, bits, key, row)
        words[LIVE] += _ONE
    return len(keys)


@kernel(i64(u64[::1], i64, i64, i64, given(u64)))
def forget(words: Any, bits: Any, rows: Any, w: Any, keys: Any) -> Any:
    """Remove the rows of `keys`; how many there were."""
    gone = 0
    for key in keys:
        row = find(words, bits, rows, w, key) if key != 0 else -1
        if row >= 0:
            release(words, bits, w, row)
            strike(words, bits, key, row)
            words[LIVE] -= _ONE
            gone += 1
    return gone


@kernel(i64(u64[::1], i64, i64, i64, i64))
def drop(words: Any, bits: Any, rows: Any, w: Any, before: Any) -> Any:
    """Remove the rows that were last put before the second `before`; how many."""
    gone = 0
    for row in range(min(rows, np.int64(words[USED]))):
        at = start_of(bits, w, row)
        key = words[at]
        if key != 0 and np.int64(words[newest(words, at, w)] >> _32) < before:
            release(words, bits, w, row)
            strike(words, bits, key, row)
            words[LIVE] -= _ONE
            gone += 1
    return gone


@kernel(i64(u64[::1], i64, i64, i64))
def mend(words: Any, bits: Any, rows: Any, w: Any) -> Any:
    """After a writer that may not have ended well: empty torn slots and rows without a whole one, list every row that
    the index has lost, and count again. How many entries the index holds, marks too. Readers may go on meanwhile."""
    used = rows
    while used > 0 and words[start_of(bits, w, used - 1)] == 0:
        used -= 1
        for j in range(start_of(bits, w, used), start_of(bits, w, used + 1)):
            if words[j] != 0:  # not the others: a page that is only read takes no memory
                words[j] = np.uint64(0)
    entries, live = 0, 0
    for place in range(1 << bits):
        if np.int64(entry(words, place)) & ((1 << bits) - 1) != 0:
            entries += 1
    words[USED], words[ENTRIES], words[FREE] = np.uint64(used), np.uint64(entries), np.uint64(0)
    for row in range(used - 1, -1, -1):
        at = start_of(bits, w, row)
        key = words[at]
        for slot in (at + 1, at + 2 + w):
            if key != 0 and words[slot] != 0 and not fits(words, slot, w, key):
                for j in range(slot, slot + 1 + w):
                    words[j] = np.uint64(0)
        if key == 0 or words[newest(words, at, w)] >> _32 == 0:
            release(words, bits, w, row)
            continue
        listed = find(words, bits, rows, w, key)
        if listed >= 0 and listed != row:  # pages of two moments, after a power loss: the later row counts
            other = start_of(bits, w, listed)
            if words[newest(words, at, w)] >> _32 <= words[newest(words, other, w)] >> _32:
                release(words, bits, w, row)
                continue
            release(words, bits, w, listed)
            live -= 1 if listed > row else 0
        if listed != row and np.int64(words[ENTRIES]) < (1 << bits) - 1:
            enlist(words, bits, key, row)
        live += 1
    words[LIVE] = np.uint64(live)
    return np.int64(words[ENTRIES])


@kernel(i64(given(u64), i64, i64, u64[::1], i64, i64))
def copy(words: Any, bits: Any, rows: Any, to: Any, to_bits: Any, w: Any) -> Any:
    """Put every row into the empty file `to`, which has room; how many."""
    count = 0
    for row in range(min(rows, np.int64(words[USED]))):
        at = start_of(bits, w, row)
        if words[at] != 0:
            there = start_of(to_bits, w, count)
            for j in range(3 + 2 * w):
                to[there + j] = words[at + j]
            enlist(to, to_bits, words[at], count)
            count += 1
    to[USED] = to[LIVE] = np.uint64(count)
    return count
