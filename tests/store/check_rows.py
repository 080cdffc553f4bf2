"""What every RowStore has to do. Each check takes `make(width)`, which gives an empty store, anew at every call."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import errors
from millstream.store.rows import Found

T = 1_700_000_000_000_000
SECOND = 1_000_000


def keys(*which):
    return np.array(which, np.uint64)


def rows(*values, width):
    """A row of each value: bytes that no other value has in any place."""
    return np.array([[(value * 37 + at) % 251 + 1 for at in range(width)] for value in values], np.uint8)


def check_what_is_put_is_got(make):
    store = make(12)
    store.put(keys(7, 8, 2**64 - 1), rows(1, 2, 3, width=12), T)
    found = store.get(keys(2**64 - 1, 5, 7, 2**64 - 1, 0))
    assert isinstance(found, Found)
    assert found.rows.dtype == np.uint8 and found.rows.flags.c_contiguous and found.rows.shape == (5, 12)
    none = np.zeros((1, 12), np.uint8)
    assert found.rows.tolist() == np.vstack([rows(3, width=12), none, rows(1, 3, width=12), none]).tolist()
    assert found.written.dtype == np.int64 and found.written.tolist() == [T, 0, T, T, 0]
    found.rows[:] = 0  # it is the caller's
    assert store.get(keys(7)).rows.tolist() == rows(1, width=12).tolist()


def check_when_it_was_put_is_right_to_the_second(make):
    store = make(1)
    store.put(keys(7), rows(1, width=1), T + 999_999)
    assert T <= store.get(keys(7)).written[0] <= T + 999_999


def check_nothing_is_asked_for_and_nothing_put(make):
    store = make(12)
    found = store.get(keys())
    assert found.rows.shape == (0, 12) and found.written.shape == (0,)
    store.put(keys(), np.zeros((0, 12), np.uint8), T)


def check_the_last_put_counts_of_one_key_too(make):
    store = make(12)
    store.put(keys(7, 8, 7), rows(1, 2, 3, width=12), T)
    assert store.get(keys(7, 8)).rows.tolist() == rows(3, 2, width=12).tolist()
    store.put(keys(7), rows(4, width=12), T - SECOND)  # a clock that was set back
    found = store.get(keys(7))
    assert found.rows.tolist() == rows(4, width=12).tolist() and found.written.tolist() == [T - SECOND]


def check_any_width_and_any_bytes(make):
    for width in (1, 7, 8, 400):
        store, data = make(width), np.random.default_rng(width).integers(0, 256, (3, width), np.uint8)
        data[1], data[2] = 0, 255
        store.put(keys(7, 8, 9), data, T)
        found = store.get(keys(9, 8, 7))
        assert found.rows.tolist() == data[::-1].tolist() and found.written.tolist() == [T] * 3


def check_arrays_need_not_lie_in_one_piece(make):
    store, wide = make(12), np.zeros((2, 24), np.uint8)
    wide[:, ::2] = rows(1, 2, width=12)
    store.put(keys(7, 0, 8, 0)[::2], wide[:, ::2], T)
    assert store.get(keys(7, 0, 8, 0)[::2]).rows.tolist() == rows(1, 2, width=12).tolist()


def check_more_than_one_batch(make):
    n = 2345
    store, data = make(8), np.arange(n, dtype="<u8").view(np.uint8).reshape(n, 8)
    which = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
    store.put(which, data, T)
    found = store.get(which[::-1])
    assert found.rows.tolist() == data[::-1].tolist() and found.written.all()


def check_what_cannot_be_put_is_refused_whole(make):
    store = make(12)
    refused = [
        (keys(7, 0), rows(1, 2, width=12), T, "key 1 is 0"),
        (keys(7), rows(1, 2, width=12), T, r"\[2, 12\] for 1 keys; give uint8 \[1, 12\]"),
        (keys(7), rows(1, width=12).view(np.int8), T, "int8"),
        (keys(7), rows(1, width=11), T, r"\[1, 11\]"),
        (keys(7).reshape(1, 1), rows(1, width=12), T, r"give uint64 \[n\]"),
        (keys(7), rows(1, width=12), 0, "unix microseconds"),
        (keys(7), rows(1, width=12), 1 << 63, "unix microseconds"),
    ]
    for which, what, at, why in refused:
        with pytest.raises(errors.BadInput, match=why):
            store.put(which, what, at)
    for at in (-1, 1 << 63):
        with pytest.raises(errors.BadInput, match="unix microseconds"):
            store.vouch(at)
    with pytest.raises(errors.BadInput, match=r"give uint64 \[n\]"):
        store.get(keys(7).reshape(1, 1))
    assert not store.get(keys(7)).written.any() and store.vouched() == 0


def check_vouched_is_what_was_said_last(make):
    store = make(12)
    assert store.vouched() == 0
    store.put(keys(7), rows(1, width=12), T)
    store.get(keys(7))
    assert store.vouched() == 0, "a put vouches for nothing"
    for at in (T, T + 5, T - SECOND):
        store.vouch(at)
        assert store.vouched() == at
        store.get(keys(7, 8))
        assert store.vouched() == at
        store.get(keys())
        assert store.vouched() == at


def check_stores_do_not_see_each_other(make):
    one, other = make(12), make(12)
    one.put(keys(7), rows(1, width=12), T)
    one.vouch(T)
    assert not other.get(keys(7)).written.any() and other.vouched() == 0


def check_many_threads_read_while_one_writes(make):
    """No answer is a mixture, an error or another key's."""
    store, which, stop, wrong, done = make(64), keys(*range(1, 41)), threading.Event(), [], []

    def same_bytes(value):
        return (which.astype(np.uint8)[:, None] * np.uint8(5) + np.uint8(value)).repeat(64, axis=1)

    def read():
        try:
            while not stop.is_set():
                found = store.get(which[::-1]).rows[::-1]
                if (found != found[:, :1]).any() or not np.isin(found[:, 0] - which.astype(np.uint8) * 5, (0, 1)).all():
                    wrong.append(found)
                done.append(1)
        except Exception as error:
            wrong.append(error)

    store.put(which, same_bytes(0), T)
    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for turn in range(10):
        store.put(which, same_bytes(turn % 2), T)
    stop.set()
    for reader in readers:
        reader.join()
    assert done and not wrong, wrong[:1]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 250)), min_size=1, max_size=6)),
        st.tuples(st.just("get"), st.lists(st.integers(0, 9), max_size=8)),
        st.tuples(st.just("vouch"), st.integers(0, 1 << 62)),
        st.tuples(st.just("forget"), st.lists(st.integers(1, 9), max_size=3)),
    ),
    max_size=12,
)


def check_it_is_as_a_dict_would_be(make):
    @settings(max_examples=25, deadline=None, database=None)
    @given(st.sampled_from([1, 12]), STEPS)
    def model(width, steps):
        store, held, vouched = make(width), {}, 0
        for number, (what, which) in enumerate([*steps, ("get", [0, *range(1, 10)])]):
            at = T + number * SECOND
            if what == "put":
                store.put(keys(*(key for key, _ in which)), rows(*(value for _, value in which), width=width), at)
                held |= {key: (rows(value, width=width)[0].tolist(), at) for key, value in which}
            elif what == "vouch":
                store.vouch(which)
                vouched = which
            elif what == "forget":
                if hasattr(store, "forget"):  # not every store does
                    gone = {key for key in which if held.pop(key, None)}
                    assert store.forget(keys(*which)) == len(gone)
            else:
                found = store.get(keys(*which))
                expected = [held.get(key, ([0] * width, 0)) for key in which]
                assert found.rows.tolist() == [row for row, _ in expected]
                assert found.written.tolist() == [at for _, at in expected]
                assert store.vouched() == vouched

    model()


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
"""All of them, for `pytest.mark.parametrize`."""
