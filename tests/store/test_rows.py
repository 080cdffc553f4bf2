"""Rows in a mapped file: what is put is what is got, by every reader, whatever grew, was dropped, torn or killed."""

import errno
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.store import rowcode, rowfile
from millstream.store.rows import Found, RowFile, RowStore

WIDTH, LABEL = 80, "0123456789abcdef"
T = 1_700_000_000_000_000
SECOND = 1_000_000
STRIDE = 8 * (3 + 2 * 10)


def keys(*which):
    return np.array(which, np.uint64)


def rows(*values, width=WIDTH):
    """A row of each value: bytes that no other value has in any place."""
    return np.array([[(value * 37 + at) % 251 + 1 for at in range(width)] for value in values], np.uint8)


def many(n, first=1):
    """Keys spread as hashes are, and their rows."""
    numbers = np.arange(first, first + n, dtype=np.uint64)
    which = numbers * np.uint64(0xBF58476D1CE4E5B9)
    return which, which.astype("<u8").view(np.uint8).reshape(n, 8).repeat(10, axis=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "user.rows"


@pytest.fixture
def store(path):
    with RowFile.create(path, WIDTH, LABEL) as made:
        yield made


def first_row(path):
    """Where row 0 begins in the file."""
    return 8 * (512 + (1 << rowfile.Sheet(path).bits) // 2)


def change(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def same(found, expected):
    return found.rows.tolist() == expected.tolist()


def test_what_is_put_is_got(store):
    store.put(keys(7, 8, 9), rows(1, 2, 3), T + 999_999)
    found = store.get(keys(9, 5, 7, 9, 0))
    assert isinstance(found, Found)
    assert found.rows.dtype == np.uint8 and found.rows.flags.c_contiguous and found.rows.shape == (5, WIDTH)
    assert same(found, np.vstack([rows(3), np.zeros((1, WIDTH), np.uint8), rows(1, 3), np.zeros((1, WIDTH), np.uint8)]))
    assert found.written.dtype == np.int64 and found.written.tolist() == [T, 0, T, T, 0]
    assert len(store) == 3 and sorted(store.keys().tolist()) == [7, 8, 9]
    assert store.get(keys()).rows.shape == (0, WIDTH)


def test_it_is_a_row_store(store):
    held: RowStore = store
    assert held.width == WIDTH


def test_the_last_put_counts_of_one_key_too(store):
    store.put(keys(7, 8, 7), rows(1, 2, 3), T)
    assert same(store.get(keys(7, 8)), rows(3, 2))
    for again in range(10):
        store.put(keys(7), rows(again), T + again * SECOND)
        found = store.get(keys(7))
        assert same(found, rows(again)) and found.written.tolist() == [T + again * SECOND]
    store.put(keys(7), rows(99), T)  # a clock that was set back
    assert same(store.get(keys(7)), rows(99)) and len(store) == 2


@pytest.mark.parametrize("width", [1, 4, 7, 8, 12, 4099])
def test_any_width(path, width):
    with RowFile.create(path, width, LABEL) as store:
        store.put(keys(7, 8), rows(1, 2, width=width), T)
        found = RowFile.open(path, width, LABEL).get(keys(8, 9, 7))
    assert found.rows.flags.c_contiguous
    assert same(found, np.vstack([rows(2, width=width), np.zeros((1, width), np.uint8), rows(1, width=width)]))


def test_arrays_need_not_lie_in_one_piece(store):
    wide = np.zeros((2, 2 * WIDTH), np.uint8)
    wide[:, ::2] = rows(1, 2)
    store.put(keys(7, 0, 8, 0)[::2], wide[:, ::2], T)
    odd = np.frombuffer(b"." + rows(3).tobytes(), np.uint8, offset=1).reshape(1, WIDTH)
    at_odd = np.frombuffer(b"." + keys(9).tobytes(), np.uint64, offset=1)
    store.put(at_odd, odd, T)
    assert same(store.get(keys(7, 0, 8, 0)[::2]), rows(1, 2)) and same(store.get(at_odd), rows(3))


def test_what_cannot_be_put_is_refused_whole(store):
    refused = [
        (keys(7, 0), rows(1, 2), T, "key 1 is 0"),
        (keys(7), rows(1, 2), T, r"\[2, 80\] for 1 keys; give uint8 \[1, 80\]"),
        (keys(7), rows(1).view(np.int8), T, "int8"),
        (keys(7), rows(1)[:, :79], T, r"\[1, 79\]"),
        (keys(7).reshape(1, 1), rows(1), T, r"give uint64 \[n\]"),
        (keys(7), rows(1), 999_999, "unix microseconds"),
        (keys(7), rows(1), (1 << 32) * SECOND, "unix microseconds"),
    ]
    for which, what, at, why in refused:
        with pytest.raises(errors.BadInput, match=why):
            store.put(which, what, at)
    with pytest.raises(errors.BadInput):
        store.vouch(-1)
    assert len(store) == 0


def test_a_reader_sees_every_put_and_the_larger_files(path, store):
    reader, files = RowFile.open(path, WIDTH, LABEL), set()
    for start in range(0, 6000, 500):
        which, what = many(500, first=1 + start)
        store.put(which, what, T)
        assert same(reader.get(which), what)
        which, what = many(start + 500)
        assert same(reader.get(which), what) and same(store.get(which), what)
        assert set(reader.keys().tolist()) == set(which.tolist()) and len(reader) == start + 500
        files.add(path.stat().st_ino)
        assert path.stat().st_size == store.size == reader.size
    assert len(files) > 1  # both ways of growing were taken
    assert not list(path.parent.glob(".*.part"))


def test_a_million_entities_in_200_mb(path):
    with RowFile.create(path, WIDTH, LABEL, limit=1_000_000, capacity=1_000_000) as store:
        assert store.size <= 200_000_000
        assert path.stat().st_blocks * 512 >= store.size  # no holes: a full disk cannot end us with a SIGBUS
    path.unlink()
    with RowFile.create(path, WIDTH, LABEL, limit=50_000) as store:
        for start in range(1, 40_000, 1000):
            store.put(*many(1000, first=start), T)
            used = 4096 + (4 << rowfile.index_bits(start + 999)) + (start + 999) * STRIDE
            assert store.size <= used + STRIDE * max(1024, len(store) // 32)
            assert path.stat().st_blocks * 512 >= store.size


def test_over_the_limit_new_entities_are_refused_and_counted(path):
    with RowFile.create(path, WIDTH, LABEL, limit=3) as store:
        store.put(keys(1, 2, 3, 4, 5, 1), rows(1, 2, 3, 4, 5, 6), T)
        assert (len(store), store.refused) == (3, 2)
        assert same(store.get(keys(1, 2, 3)), rows(6, 2, 3)) and store.get(keys(4, 5)).written.tolist() == [0, 0]
        store.put(keys(2), rows(7), T + SECOND)
        assert store.drop(T + SECOND) == 2 and RowFile.open(path, WIDTH, LABEL).refused == 2
        store.put(keys(4, 5), rows(4, 5), T + SECOND)
        assert same(store.get(keys(2, 4, 5)), rows(7, 4, 5)) and (len(store), store.refused) == (3, 2)
    with RowFile.create(path, WIDTH, LABEL, limit=2) as store:  # a smaller limit takes nothing away
        store.put(keys(2, 6), rows(8, 9), T)
        assert (len(store), store.refused) == (3, 1) and same(store.get(keys(2)), rows(8))


def test_drop_goes_by_the_second_of_the_last_put(store):
    store.put(keys(1, 2), rows(1, 2), T)
    store.put(keys(2), rows(3), T + 2 * SECOND + 5)
    assert store.drop(T + 5) == 0  # put in that very second, perhaps later
    assert store.drop(T + SECOND) == 1 and store.keys().tolist() == [2]
    assert store.drop(T + 2 * SECOND + 999_999) == 0
    assert store.drop(T + 3 * SECOND) == 1 and len(store) == 0
    assert store.drop(-1) == 0


def test_after_a_drop_the_file_is_smaller_and_readers_follow(path, store):
    which, what = many(20_000)
    store.put(which, what, T)
    store.put(which[:100], what[:100], T + 60 * SECOND)
    reader, before = RowFile.open(path, WIDTH, LABEL), store.size
    assert store.drop(T + 60 * SECOND) == 19_900
    assert store.size < before / 10
    assert same(reader.get(which[:100]), what[:100]) and not reader.get(which[100:]).written.any()
    store.put(which, what, T)
    assert same(reader.get(which), what)


def test_nothing_of_whom_we_forget_is_in_the_file(path, store):
    which, what = many(3000)
    store.put(which, what, T)
    for value in (251, 252):  # both slots
        store.put(which[1000:1001], rows(value), T)
    reader = RowFile.open(path, WIDTH, LABEL)
    assert all(rows(value).tobytes() in path.read_bytes() for value in (251, 252))
    assert store.forget(np.append(which[1000:1001], keys(0, 5))) == 1
    data = path.read_bytes()[4096:]  # the label looks like a row
    assert not any(rows(value)[0, at : at + 4].tobytes() in data for value in (251, 252) for at in range(0, 80, 4))
    assert int(which[1000]).to_bytes(8, "little") not in data
    assert not reader.get(which[1000:1001]).written.any() and len(store) == 2999
    others = np.delete(np.arange(3000), 1000)
    assert same(reader.get(which[others]), what[others])
    store.put(keys(77), rows(3), T)  # takes the place
    assert same(reader.get(keys(77)), rows(3)) and not reader.get(which[1000:1001]).written.any()


def test_the_copy_of_a_writer_that_was_killed_while_growing_goes(path):
    left = path.with_name(f".{path.name}.part")
    left.write_bytes(rows(1).tobytes())
    with RowFile.create(path, WIDTH, LABEL):
        assert not left.exists()


def test_one_writer_at_a_time(path, store):
    store.put(keys(1), rows(1), T)
    with pytest.raises(errors.Conflict, match="has a writer already"):
        RowFile.create(path, WIDTH, LABEL)
    with pytest.raises(errors.Conflict, match="has a writer already"):
        RowFile.restore(path, path, WIDTH, LABEL)
    reader = RowFile.open(path, WIDTH, LABEL)
    for change in (lambda: reader.put(keys(1), rows(1), T), lambda: reader.vouch(T), lambda: reader.drop(T),
                   lambda: reader.forget(keys(1)), lambda: reader.snapshot(path), reader.sync):  # fmt: skip
        with pytest.raises(errors.Conflict, match=r"RowFile\.create"):
            change()
    store.close()
    with pytest.raises(errors.Conflict):
        store.put(keys(1), rows(1), T)
    with RowFile.create(path, WIDTH, LABEL) as again:
        assert same(again.get(keys(1)), rows(1))


def test_only_the_same_rows_are_opened(path, tmp_path):
    with pytest.raises(errors.NotFound, match="start the process that writes it"):
        RowFile.open(path, WIDTH, LABEL)
    RowFile.create(path, WIDTH, LABEL).close()
    for width, label in ((WIDTH + 1, LABEL), (WIDTH, "another")):
        for opening in (RowFile.open, RowFile.create):
            with pytest.raises(errors.Misconfigured, match="a file of its own"):
                opening(path, width, label)
    RowFile.create(path, WIDTH, LABEL).close()  # the lock was given back
    for width, label, limit in ((0, "", 1), (WIDTH, "x" * 17, 1), (WIDTH, "é", 1), (WIDTH, "", 0)):
        with pytest.raises(errors.Misconfigured):
            RowFile.create(tmp_path / "new", width, label, limit=limit)


def test_a_damaged_file_says_what_to_do(path):
    with RowFile.create(path, WIDTH, LABEL) as store:
        store.put(*many(2000), T)
    whole = path.read_bytes()
    damaged = [b"", whole[:100], whole[:5000], whole[: first_row(path) + 1999 * STRIDE + 10], b"x" + whole[1:]]
    damaged += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(12, 44)]
    for data in damaged:
        path.write_bytes(data)
        for opening in (RowFile.open, RowFile.create):
            with pytest.raises(errors.Corrupt, match="restore a snapshot, or delete it"):
                opening(path, WIDTH, LABEL)
    path.write_bytes(whole[:8] + struct.pack("<I", 2) + whole[12:])
    for opening in (RowFile.open, RowFile.create):
        with pytest.raises(errors.Later, match="format version 2"):
            opening(path, WIDTH, LABEL)
    path.write_bytes(whole)
    assert len(RowFile.open(path, WIDTH, LABEL)) == 2000


@pytest.mark.parametrize("newest", [0, 1])
def test_a_flipped_bit_anywhere_gives_the_put_before_or_nothing(path, newest):
    with RowFile.create(path, WIDTH, LABEL) as store:
        for value in (1, 2, 3)[: 3 - newest]:
            store.put(keys(7), rows(value), T + value * SECOND)
    # three puts end in the first slot, two in the second
    old, new = ((2, 3), (1, 2))[newest]
    begin = {"new": 8 + 88 * newest, "old": 8 + 88 * (1 - newest)}
    whole, at_row = path.read_bytes(), first_row(path)
    for at in range(STRIDE):
        for bit in (1, 128):
            change(path, at_row + at, bytes([whole[at_row + at] ^ bit]))
            found = RowFile.open(path, WIDTH, LABEL).get(keys(7))
            if at < 8:
                assert not found.written.any() and not found.rows.any()
            else:
                value = old if begin["new"] <= at < begin["new"] + 88 else new
                assert same(found, rows(value)) and found.written.tolist() == [T + value * SECOND], at
            if at % 16 == 15 or at in range(8, 16):  # who writes on finds the same, and can
                with RowFile.create(path, WIDTH, LABEL) as store:
                    assert same(store.get(keys(7)), rows(value))
                    store.put(keys(7), rows(9), T)
                    assert same(store.get(keys(7)), rows(9))
                    assert len(store) == 1
                path.write_bytes(whole)
            change(path, at_row + at, whole[at_row + at : at_row + at + 1])


def test_a_put_that_was_cut_off_anywhere_gives_the_put_before(path):
    with RowFile.create(path, WIDTH, LABEL) as store:
        store.put(keys(7), rows(1), T)
        store.put(keys(7), rows(2), T)
        at = first_row(path) + 8
        before = path.read_bytes()[at : at + 88]
        store.put(keys(7), rows(3), T)
        after = path.read_bytes()[at : at + 88]
    for cut in range(1, 88):
        for mixture in (before[:cut] + after[cut:], after[:cut] + before[cut:]):
            if mixture in (before, after):
                continue
            change(path, at, mixture)
            assert same(RowFile.open(path, WIDTH, LABEL).get(keys(7)), rows(2)), cut
    for both in range(1, 88):  # pages of two moments, after a power loss
        change(path, at, before[:both] + after[both:] if before[:both] != after[:both] else b"x" * 88)
        change(path, at + 88 + both, b"\xff")
        found = RowFile.open(path, WIDTH, LABEL).get(keys(7))
        assert not found.written.any() and not found.rows.any()
    with RowFile.create(path, WIDTH, LABEL) as store:
        assert len(store) == 0 and not store.get(keys(7)).written.any()
        store.put(keys(8), rows(4), T)
        assert same(store.get(keys(8)), rows(4))
    assert after[8:16] not in path.read_bytes()


def test_what_was_put_under_one_key_is_never_the_row_of_another(path):
    with RowFile.create(path, WIDTH, LABEL) as store:
        store.put(keys(7, 8), rows(1, 2), T)
    at = first_row(path)
    other = path.read_bytes()[at + STRIDE + 8 : at + 2 * STRIDE]
    change(path, at + 8, other)  # as a reader sees it that found the row right before it went to somebody else
    found = RowFile.open(path, WIDTH, LABEL).get(keys(7, 8))
    assert found.written.tolist() == [0, T] and not found.rows[0].any()


@pytest.mark.parametrize("index", ["zeros", "ones", "noise", "older"])
def test_whatever_the_index_lost_is_listed_again(path, index):
    which, what = many(1000)
    with RowFile.create(path, WIDTH, LABEL) as store:
        store.put(which[:300], what[:300], T)
        begin, end = 4096, first_row(path)
        older = path.read_bytes()[begin:end]
        store.put(which[300:], what[300:], T)
        begin, end = 4096, first_row(path)
    noise = np.random.default_rng(5).bytes(end - begin)
    bad = {"zeros": bytes(end - begin), "ones": b"\xff" * (end - begin), "noise": noise, "older": older * 8}
    change(path, begin, bad[index][: end - begin])
    RowFile.open(path, WIDTH, LABEL).get(which)  # whatever it finds, it ends
    with RowFile.create(path, WIDTH, LABEL) as store:
        assert same(store.get(which), what) and len(store) == 1000
        store.put(*many(1000, first=5000), T)
        assert same(store.get(which), what) and same(store.get(many(1000, first=5000)[0]), many(1000, first=5000)[1])


def test_of_a_key_in_two_rows_the_later_one_counts(path):
    for later in (0, 1):
        with RowFile.create(path, WIDTH, LABEL) as store:
            store.put(keys(7 + later), rows(1), T)
            store.put(keys(8 - later), rows(2), T)
            row = path.read_bytes()[first_row(path) :][:STRIDE]
            store.put(keys(7), rows(3), T + SECOND)
        at = first_row(path)
        data = path.read_bytes()
        if later == 0:  # row 0 of key 7 is the later one; an older one of its moments stands in row 1
            change(path, at + STRIDE, row)
        else:  # row 1 is the later one; an older one in row 0
            old = bytearray(data[at + STRIDE :][:STRIDE])
            old[8 + 88 :] = bytes(88)
            change(path, at, bytes(old))
        with RowFile.create(path, WIDTH, LABEL) as store:
            assert same(store.get(keys(7)), rows(3)) and len(store) == 1
            store.put(keys(9), rows(4), T)
            assert same(store.get(keys(7, 9)), rows(3, 4)) and len(store) == 2
            store.forget(keys(7, 9))
            assert not store.get(keys(7, 9)).written.any() and len(store) == 0
        path.unlink()


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_on_a_full_disk_what_is_there_goes_on(path, monkeypatch):
    with RowFile.create(path, WIDTH, LABEL, capacity=600) as store:
        which, what = many(5000)
        reader = RowFile.open(path, WIDTH, LABEL)
        for there in (600, 716):  # full when it grows in place, and when it is written anew
            store.put(which[:there], what[:there], T)
            monkeypatch.setattr(os, "posix_fallocate", no_room)
            size = path.stat().st_size
            rooms = store._sheet.rows
            with pytest.raises(errors.Full, match="no room on the disk"):
                store.put(np.append(which[:4000], which[:1]), np.vstack([what[:4000], rows(1)]), T)
            assert path.stat().st_size == size and not list(path.parent.glob(".*.part"))
            took = min(rooms, 716)
            assert same(reader.get(which[1:took]), what[1:took]) and same(reader.get(which[:1]), rows(1))
            assert not reader.get(which[took:]).written.any()
            with pytest.raises(errors.Full):
                store.snapshot(path.with_name("snapshot"))
            assert not path.with_name("snapshot").exists()
            store.put(which[:there], what[:there], T)
            monkeypatch.undo()
        store.put(which, what, T)
        assert same(reader.get(which), what)
        monkeypatch.setattr(os, "posix_fallocate", no_room)
        assert store.drop(T + SECOND) == 5000  # would be smaller, and works without
        assert not reader.get(which).written.any()
        with pytest.raises(errors.Full):
            RowFile.create(path.with_name("other"), WIDTH, LABEL)
        assert not path.with_name("other").exists()


def test_without_fallocate_blocks_are_written(path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", refuses)
    with RowFile.create(path, WIDTH, LABEL) as store:
        store.put(*many(3000), T)
        assert same(store.get(many(3000)[0]), many(3000)[1])
        assert path.stat().st_blocks * 512 >= store.size == path.stat().st_size


def test_vouched_is_what_was_said_last(path):
    with RowFile.create(path, WIDTH, LABEL) as store:
        reader = RowFile.open(path, WIDTH, LABEL)
        assert store.vouched() == reader.vouched() == 0
        for at in (T, T + 1, T + 2, 5):
            store.vouch(at)
            assert store.vouched() == reader.vouched() == at
        store.put(*many(3000), T)  # another file by now
        assert store.vouched() == reader.vouched() == 5
    with RowFile.create(path, WIDTH, LABEL) as store:
        assert store.vouched() == 5


def test_a_torn_vouch_gives_the_one_before(path):
    with RowFile.create(path, WIDTH, LABEL) as store:
        store.vouch(T)
        store.vouch(T + 1)  # in the first slot
        at, whole = 8 * rowcode.VOUCHED, path.read_bytes()
        for byte in range(16):
            change(path, at + byte, bytes([whole[at + byte] ^ 1]))
            assert store.vouched() == T
            change(path, at + byte, whole[at + byte : at + byte + 1])
        change(path, at, b"\xff")
        change(path, at + 16, b"\xff")
        assert store.vouched() == 0
        store.vouch(T + 2)
        assert store.vouched() == T + 2


def test_after_a_power_loss_nothing_is_vouched_for(path):
    for closed in (False, True):
        store = RowFile.create(path, WIDTH, LABEL)
        store.put(keys(7), rows(1), T)
        store.vouch(T)
        if closed:
            store.close()
        else:
            os.close(store._lock)
        assert RowFile.open(path, WIDTH, LABEL).vouched() == T
        change(path, 8 * rowcode.BOOT, bytes(range(16)))  # the machine has started again
        assert RowFile.open(path, WIDTH, LABEL).vouched() == (T if closed else 0)
        with RowFile.create(path, WIDTH, LABEL) as store:
            assert store.vouched() == (T if closed else 0)
            assert same(store.get(keys(7)), rows(1))


def test_after_a_power_loss_the_file_may_be_shorter_than_it_says(path):
    with RowFile.create(path, WIDTH, LABEL) as store:
        which, what = many(700)
        store.put(which, what, T)
    change(path, 8 * rowcode.CLEAN, bytes(8))
    change(path, 8 * rowcode.BOOT, bytes(range(16)))
    os.truncate(path, first_row(path) + 500 * STRIDE + 7)
    found = RowFile.open(path, WIDTH, LABEL).get(which)
    assert same(found, np.vstack([what[:500], np.zeros((200, WIDTH), np.uint8)]))
    with RowFile.create(path, WIDTH, LABEL) as store:
        assert len(store) == 500 and same(store.get(which[:500]), what[:500])
        store.put(which, what, T)
        assert same(store.get(which), what)


def test_a_snapshot_is_a_file_of_its_own(path, store, tmp_path):
    which, what = many(5000)
    store.put(which, what, T)
    store.forget(which[:1000])
    store.vouch(T)
    store.snapshot(tmp_path / "snapshot")
    store.put(which, what[::-1], T)
    store.vouch(T + 1)
    copy = RowFile.open(tmp_path / "snapshot", WIDTH, LABEL)
    assert same(copy.get(which[1000:]), what[1000:]) and not copy.get(which[:1000]).written.any()
    change(tmp_path / "snapshot", 8 * rowcode.BOOT, bytes(range(16)))  # on another machine
    assert copy.vouched() == T and len(copy) == 4000 and store.vouched() == T + 1
    assert copy.size == 4096 + (4 << rowfile.index_bits(4000)) + 4000 * STRIDE
    # it goes back, and who reads follows
    reader = RowFile.open(path, WIDTH, LABEL)
    reader.get(which)
    store.close()
    RowFile.restore(tmp_path / "snapshot", path, WIDTH, LABEL)
    assert same(reader.get(which[1000:]), what[1000:]) and reader.vouched() == T and len(reader) == 4000
    with RowFile.create(path, WIDTH, LABEL) as again:
        again.put(which, what, T)
        assert same(reader.get(which), what)
    assert same(copy.get(which[1000:]), what[1000:]) and len(copy) == 4000


def test_restore_takes_only_a_snapshot_of_these_rows(path, store, tmp_path):
    store.put(keys(7), rows(1), T)
    store.snapshot(tmp_path / "snapshot")
    store.close()
    with pytest.raises(errors.Misconfigured):
        RowFile.restore(tmp_path / "snapshot", path, WIDTH, "another")
    with pytest.raises(errors.NotFound):
        RowFile.restore(tmp_path / "none", path, WIDTH, LABEL)
    (tmp_path / "half").write_bytes((tmp_path / "snapshot").read_bytes()[:-1])
    with pytest.raises(errors.Corrupt):
        RowFile.restore(tmp_path / "half", path, WIDTH, LABEL)
    assert same(RowFile.open(path, WIDTH, LABEL).get(keys(7)), rows(1))
    path.write_bytes(b"no rows")
    RowFile.restore(tmp_path / "snapshot", path, WIDTH, LABEL)
    RowFile.restore(tmp_path / "snapshot", tmp_path / "new" / "user.rows", WIDTH, LABEL)
    for at in (path, tmp_path / "new" / "user.rows"):
        assert same(RowFile.open(at, WIDTH, LABEL).get(keys(7)), rows(1))


def test_a_writer_that_was_killed_right_before_the_new_file_had_its_name(path):
    with RowFile.create(path, WIDTH, LABEL) as store:
        store.put(keys(7), rows(1), T)
    change(path, 8 * rowcode.MOVED, b"\1")
    reader = RowFile.open(path, WIDTH, LABEL)
    assert same(reader.get(keys(7)), rows(1)) and len(reader) == 1
    with RowFile.create(path, WIDTH, LABEL) as store:
        store.put(*many(5000), T)
        assert same(reader.get(keys(7)), rows(1)) and same(reader.get(many(5000)[0]), many(5000)[1])


def test_a_reader_outlives_the_file(path, store):
    store.put(keys(7), rows(1), T)
    reader = RowFile.open(path, WIDTH, LABEL)
    path.unlink()
    store._sheet.words[rowcode.MOVED] = 1
    assert same(reader.get(keys(7)), rows(1)) and len(reader) == 1


def test_a_reader_goes_on_with_the_file_that_was_made_after_its_own_was_deleted(path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with RowFile.create(path, WIDTH, LABEL) as old:
        old.put(keys(7), rows(1), T)
        old.vouch(T)
        reader = RowFile.open(path, WIDTH, LABEL)
    path.unlink()
    now += 1.0
    assert same(reader.get(keys(7)), rows(1)) and reader.vouched() == T  # there is no other yet
    with RowFile.create(path, WIDTH, LABEL) as new:
        new.put(keys(7), rows(2), T + SECOND)
        new.vouch(T + SECOND)
        now += 0.5
        assert reader.vouched() == T  # it looks once a second
        now += 0.5
        assert reader.vouched() == T + SECOND and same(reader.get(keys(7)), rows(2))
        new.put(keys(7), rows(3), T + SECOND)
        assert same(reader.get(keys(7)), rows(3)) and len(reader) == 1


def test_a_reader_keeps_its_rows_while_what_lies_there_is_no_file_of_theirs(path, monkeypatch):
    monkeypatch.setattr("millstream.store.rows.LOOK_S", 0.0)
    with RowFile.create(path, WIDTH, LABEL) as old:
        old.put(keys(7), rows(1), T)
    reader = RowFile.open(path, WIDTH, LABEL)
    for odd in (lambda: path.write_bytes(b"x" * 9000), lambda: RowFile.create(path, WIDTH + 8, LABEL).close()):
        path.unlink()
        odd()
        assert same(reader.get(keys(7)), rows(1)) and len(reader) == 1
    path.unlink()
    with RowFile.create(path, WIDTH, LABEL) as new:
        new.put(keys(7), rows(2), T)
        assert same(reader.get(keys(7)), rows(2))


# A dict is the oracle. Of its keys some are hashes, and some meet in one place of any index, also across its end.
_ODD = 0x9E3779B97F4A7C15
MEETING = [(pow(_ODD, -1, 1 << 64) * ((0xFFFF << 48) | n)) % (1 << 64) for n in range(300)]
POOL = np.array([*many(2500)[0].tolist(), *MEETING], np.uint64)
spans = st.tuples(st.integers(0, len(POOL) - 1) | st.integers(2500, len(POOL) - 1), st.sampled_from([1, 1, 3, 20, 300]))
moves = st.one_of(
    st.tuples(st.sampled_from(["put", "put", "forget"]), spans),
    st.tuples(st.just("drop"), st.integers(0, 4)),
    st.tuples(st.sampled_from(["reopen", "killed", "restore"]), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(moves, min_size=1, max_size=25), st.sampled_from([60, 700, 100_000]))
def test_it_is_a_dict(tmp_path_factory, steps, limit):
    path = tmp_path_factory.mktemp("model") / "user.rows"
    store = RowFile.create(path, 16, LABEL, limit=limit, capacity=1)
    reader = RowFile.open(path, 16, LABEL)
    known: dict[int, tuple[bytes, int]] = {}
    refused = 0
    for now, (what, how) in enumerate(steps):
        at = T + now * SECOND
        if what in ("put", "forget"):
            which = POOL[how[0] : how[0] + how[1]]
            data = np.frombuffer(np.random.default_rng(now).bytes(16 * len(which)), np.uint8).reshape(-1, 16)
        if what == "put":
            store.put(which, data, at)
            for key, row in zip(which.tolist(), data, strict=True):
                if key in known or len(known) < limit:
                    known[key] = (row.tobytes(), at)
                else:
                    refused += 1
        elif what == "forget":
            assert store.forget(which) == sum(known.pop(key, None) is not None for key in which.tolist())
        elif what == "drop":
            before = at - how * SECOND
            old = [key for key, (_, when) in known.items() if when < before]
            assert store.drop(before) == len(old)
            for key in old:
                del known[key]
        else:
            if what == "killed":
                os.close(store._lock)  # what its kernel would do
            elif what == "restore":
                store.snapshot(path.with_name("snapshot"))
                store.close()
                RowFile.restore(path.with_name("snapshot"), path, 16, LABEL)
            else:
                store.close()
            store, refused = RowFile.create(path, 16, LABEL, limit=limit), 0
        for one in (store, reader):
            found = one.get(POOL)
            expected = [known.get(key, (bytes(16), 0)) for key in POOL.tolist()]
            assert [row.tobytes() for row in found.rows] == [row for row, _ in expected]
            assert found.written.tolist() == [when for _, when in expected]
            assert len(one) == len(known) and one.refused == refused
            assert sorted(one.keys().tolist()) == sorted(known)
    store.close()
