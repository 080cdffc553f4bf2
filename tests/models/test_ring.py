"""The memory that a server and a model's process share: what goes in comes out, whatever it is and however large."""

import contextlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from millstream import errors
from millstream.models.apart import ring
from millstream.models.apart.ring import Slot
from millstream.types import DTYPES

NUMBERS = sorted({dtype.str for dtype in DTYPES.values() if dtype.kind != "O"})
CELLS = st.one_of(st.text(max_size=20), st.binary(max_size=20))


@st.composite
def any_array(draw):
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    if draw(st.booleans()):
        return draw(arrays.arrays(np.dtype(draw(st.sampled_from(NUMBERS))), shape))
    cells = draw(st.lists(CELLS, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    array = np.empty(len(cells), object)
    array[:] = cells
    return array.reshape(shape)


@pytest.fixture
def slots():
    one = Slot.make()
    other = Slot(os.dup(one.fd))
    yield one, other
    one.close()
    other.close()


def same(sent, got):
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    if sent.dtype == object:
        assert [(type(cell), cell) for cell in got.ravel()] == [(type(cell), cell) for cell in sent.ravel()]
    else:
        assert got.tobytes() == sent.tobytes()


@settings(max_examples=200, deadline=None)
@given(calls=st.lists(st.tuples(st.binary(max_size=30), st.lists(any_array(), max_size=4)), min_size=1, max_size=6))
def test_arrays_come_out_as_they_went_in_call_after_call_both_ways(calls):
    one, other = Slot.make(), None
    try:
        other = Slot(os.dup(one.fd))
        for turn, (message, sent) in enumerate(calls * 2):  # twice: the second time their layout is known
            writer, reader = (one, other) if turn % 2 else (other, one)
            numbered = [(number, array) for number, array in enumerate(sent)]
            writer.write(message, numbered)
            got_message, got = reader.read()
            assert got_message == message
            assert sorted(number for number, _ in got) == list(range(len(sent)))
            for number, array in got:
                same(sent[number], array)
    finally:
        one.close()
        if other is not None:
            other.close()


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 3_000_000), min_size=1, max_size=6))
def test_a_slot_grows_on_whichever_side_needs_it(sizes):
    one = Slot.make()
    other = Slot(os.dup(one.fd))
    try:
        for turn, size in enumerate(sizes):
            writer, reader = (one, other) if turn % 2 else (other, one)
            sent = np.arange(size, dtype=np.uint8)
            texts = np.array([b"x" * (size // 7), "é"], object)
            writer.write(b"", [(0, sent), (1, texts)])
            got = dict(reader.read()[1])
            same(sent, got[0])
            same(texts, got[1])
    finally:
        one.close()
        other.close()


def test_what_is_read_is_a_copy_that_the_next_call_leaves_alone(slots):
    one, other = slots
    one.write(b"", [(0, np.zeros(3))])
    (_, first), *_ = other.read()[1]
    one.write(b"", [(0, np.ones(3))])
    (_, second), *_ = other.read()[1]
    assert first.tolist() == [0, 0, 0] and second.tolist() == [1, 1, 1]


def test_arrays_that_are_not_contiguous_or_of_this_byte_order_arrive_as_values(slots):
    one, other = slots
    big = np.arange(12, dtype=">i4").reshape(3, 4)
    for sent in (big, big.T, big[::-1, ::2], np.asfortranarray(np.random.default_rng(0).random((3, 4)))):
        one.write(b"", [(0, sent)])
        np.testing.assert_array_equal(other.read()[1][0][1], sent)


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["2020-01-01"], "M8[D]"), np.array([None]), np.array([{}])])
def test_what_no_request_can_carry_is_refused_in_words(slots, array):
    with pytest.raises(TypeError, match=r"cannot be sent|expected str or bytes"):
        slots[0].write(b"", [(0, array)])


def test_a_call_over_the_bound_is_too_large_and_the_slot_goes_on(slots, monkeypatch):
    one, other = slots
    monkeypatch.setattr(ring, "BYTES_MAX", 1 << 20)
    with pytest.raises(errors.TooLarge, match="fewer rows"):
        one.write(b"", [(0, np.zeros(1 << 21, np.uint8))])
    one.write(b"", [(0, np.ones(3))])
    assert other.read()[1][0][1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("at", range(200))
def test_a_broken_other_side_is_corrupt_and_nothing_worse(slots, at):
    one, other = slots
    one.write(b"hello", [(0, np.arange(6.0).reshape(2, 3)), (1, np.array(["a", b"b"], object))])
    intact = os.pread(one.fd, 1024, 0)
    for byte in (0x00, 0x7F, 0xFF):
        os.pwrite(one.fd, intact, 0)
        os.pwrite(one.fd, bytes([byte]), at)
        with contextlib.suppress(errors.Corrupt):
            other.read()
    os.pwrite(one.fd, intact, 0)
    assert other.read()[0] == b"hello"


def test_an_answer_carries_the_number_of_its_call_also_when_calls_are_alike(slots):
    one, other = slots
    for call in (1, 2, 3):
        one.call = call
        one.write(b"", [(0, np.arange(3))])
        other.read()
        assert other.call == call
