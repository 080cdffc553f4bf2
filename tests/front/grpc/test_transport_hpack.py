"""Our HPACK beside the `hpack` package: the same headers, the same table, the same refusals."""

from __future__ import annotations

import pytest
from hpack import Decoder as Oracle
from hpack import Encoder
from hpack.exceptions import HPACKError
from hpack.huffman_constants import REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.front.grpc import hpack
from millstream.front.grpc.hpack import Broken, Decoder, literal

names = st.sampled_from([b":path", b"content-type", b"te", b"grpc-timeout", b"x-a", b"x-" + b"n" * 200]) | st.binary(
    max_size=20
)
headers = st.lists(st.tuples(names, st.binary(max_size=150)), max_size=8)
LARGE = 1 << 30


def test_the_tables_are_those_of_the_standard() -> None:
    assert tuple(hpack.STATIC[1:]) == HeaderTable.STATIC_TABLE
    assert [int(length) for length in hpack._LENGTHS.split()] == list(REQUEST_CODES_LENGTH)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(headers, st.booleans(), st.none() | st.integers(0, 4096)), max_size=10))
def test_what_an_encoder_says_is_understood(blocks: list[tuple[list[tuple[bytes, bytes]], bool, int | None]]) -> None:
    encoder, decoder = Encoder(), Decoder()
    for fields, huffman, resized in blocks:
        if resized is not None:
            encoder.header_table_size = resized
        found, size = decoder.decode(encoder.encode(fields, huffman=huffman), LARGE)
        assert found == fields
        assert size == sum(len(name) + len(value) + 32 for name, value in fields)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.binary(max_size=60) | headers.map(lambda fields: Encoder().encode(fields)), min_size=1, max_size=4))
def test_any_bytes_mean_the_same_to_both(blocks: list[bytes]) -> None:
    oracle, decoder = Oracle(max_header_list_size=LARGE), Decoder()
    for block in blocks:
        try:
            expected = [(bytes(field[0]), bytes(field[1])) for field in oracle.decode(block, raw=True)]
        except HPACKError:
            expected = None
        try:
            found = decoder.decode(block, LARGE)[0]
        except Broken:
            assert expected is None or b"\xff" in block, "an integer of more than four bytes is refused, however small"
            return
        assert found == expected
        if expected is None:
            return


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_literals_are_what_others_read_and_change_no_table(name: bytes, value: bytes) -> None:
    oracle, decoder = Oracle(max_header_list_size=LARGE), Decoder()
    assert [tuple(field) for field in oracle.decode(literal(name, value), raw=True)] == [(name, value)]
    assert decoder.decode(literal(name, value), LARGE)[0] == [(name, value)]
    assert decoder.changes == 0


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xbe",  # beyond the table
        b"\xff\xff\xff\xff\xff\xff\x7f",  # an integer without bounds
        b"\x00\x05ab",  # a string that ends too early
        b"\x00\x7f\xff\xff\xff\xff\x0f",
        b"\x3f\xff\x7f",  # a table larger than was allowed
        b"\x82\x20",  # a new size within a block
        b"\x00\x01a\x81\x00",  # Huffman: padding of zeros
        b"\x00\x01a\x82\xff\xff",  # more than seven bits of it
        b"\x00\x01a\x84\xff\xff\xff\xff",  # the end of string
    ],
)
def test_broken_blocks_are_refused(block: bytes) -> None:
    with pytest.raises(Broken):
        Decoder().decode(block, LARGE)


def test_what_is_over_the_bound_is_counted_and_not_kept() -> None:
    decoder = Decoder()
    block = b"\x40" + literal(b"x", bytes(4000))[1:] + b"\xbe" * 1000
    fields, size = decoder.decode(block, 10_000)
    assert (len(fields), size) == (2, 1001 * 4033)
    assert decoder.decode(b"\xbe", 10_000)[0] == [(b"x", bytes(4000))]


def test_changes_of_the_table_are_counted() -> None:
    decoder = Decoder()
    for block, changes in ((b"\x82", 0), (literal(b"a", b"b"), 0), (b"\x40\x01a\x01b", 1), (b"\xbe", 1), (b"\x20", 2)):
        decoder.decode(block, LARGE)
        assert decoder.changes == changes
    with pytest.raises(Broken):
        decoder.decode(b"\xbe", LARGE)  # a table of size 0 is empty
