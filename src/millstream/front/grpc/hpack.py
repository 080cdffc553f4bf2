"""HPACK (RFC 7541): the decoder of a connection's header blocks, and literals for what we send.

Rules of the room:
- What is sent never touches the peer's table: indexed fields of the static table and literals without indexing, so a
  block is a constant that may be sent again and in any order.
- `Decoder.changes` counts what has changed the dynamic table: while it stands still, equal blocks mean equal headers.
- Everything a block can ask for is bounded: the table, an integer, and what a caller lets a list grow to.
"""

from __future__ import annotations

from functools import cache

TABLE_BYTES = 4096  # of the dynamic table: what a peer may use before we would tell it otherwise
ENTRY_BYTES = 32  # that an entry counts beyond its name and value
INTEGER_MAX = 1 << 24

Field = tuple[bytes, bytes]

# Appendix A.
_STATIC = """
:authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200|:status 204
:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset|accept-encoding gzip, deflate
accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control
content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type
cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since
last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after
server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate
"""
STATIC: list[Field] = [(b"", b"")]  # indices begin at 1
for _entry in _STATIC.strip().replace("\n", "|").split("|"):
    _name, _, _value = _entry.partition(" ")
    STATIC.append((_name.encode(), _value.encode()))
DYNAMIC = len(STATIC)

# Appendix B: the length in bits of the code of each byte, and of the end of string. The code is canonical.
_LENGTHS = """
13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28 28 28 28 28 28 28 30 28 28 28 28 28 28 28 28 28 6 10 10 12 13 6 8 11
10 10 8 11 8 6 6 6 5 5 5 6 6 6 6 6 6 6 7 8 15 6 12 10 13 6 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 8 7 8 13 19 13
14 6 15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5 6 7 6 5 5 6 7 7 7 7 7 15 11 14 13 28 20 22 20 20 22 22 22 23 22 23 23 23 23 23
24 23 24 24 22 23 24 23 23 23 23 21 22 23 22 23 23 24 22 21 20 22 22 23 23 21 23 22 22 24 21 22 23 23 21 21 22 21 23
22 23 23 20 22 22 22 23 22 22 23 26 26 20 19 22 23 22 25 26 26 26 27 27 26 24 25 19 21 26 27 27 26 27 24 21 21 26 26
28 27 27 27 20 24 20 21 22 21 21 23 22 22 25 25 24 24 26 23 26 27 26 26 27 27 27 27 27 28 27 27 27 27 27 26 30
"""
_END = 256


class Broken(ValueError):
    """A block that is no HPACK: the connection cannot go on, as the table is lost."""


class Decoder:
    """The reading end of one connection's header compression."""

    __slots__ = ("_bytes", "_bytes_max", "_table", "changes")

    def __init__(self) -> None:
        self.changes = 0
        self._table: list[Field] = []  # the newest last
        self._bytes = 0
        self._bytes_max = TABLE_BYTES

    def decode(self, block: bytes, bytes_max: int) -> tuple[list[Field], int]:
        """The fields of a whole block and their size as HTTP/2 counts it. What is over `bytes_max` is counted and read
        for the table's sake, and not kept. Broken."""
        fields: list[Field] = []
        table = self._table
        at, end, size = 0, len(block), 0
        try:
            while at < end:
                first = block[at]
                if first >= 0x80:  # indexed
                    index = first & 0x7F
                    at += 1
                    if index == 0x7F:
                        index, at = _integer(block, at, index)
                    if index >= DYNAMIC:
                        field = table[DYNAMIC - 1 - index]
                    elif index:
                        field = STATIC[index]
                    else:
                        raise Broken("index 0")
                elif first & 0xE0 == 0x20:
                    if fields or size:
                        raise Broken("the table's size changes within a block")
                    most, at = _integer(block, at + 1, first & 0x1F) if first == 0x3F else (first & 0x1F, at + 1)
                    self._resize(most)
                    continue
                else:
                    field, at = self._literal(block, at, first)
                size += len(field[0]) + len(field[1]) + ENTRY_BYTES
                if size <= bytes_max:
                    fields.append(field)
        except IndexError:
            raise Broken("an index beyond the table, or a block that ends too early") from None
        return fields, size

    def _literal(self, block: bytes, at: int, first: int) -> tuple[Field, int]:
        mask = 0x3F if first & 0x40 else 0x0F
        index = first & mask
        at += 1
        if index == mask:
            index, at = _integer(block, at, index)
        if index >= DYNAMIC:
            name = self._table[DYNAMIC - 1 - index][0]
        elif index:
            name = STATIC[index][0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        field = (name, value)
        if first & 0x40:
            self.changes += 1
            self._bytes += len(name) + len(value) + ENTRY_BYTES
            self._table.append(field)
            self._evict()
        return field, at

    def _resize(self, most: int) -> None:
        if most > TABLE_BYTES:
            raise Broken(f"a table of {most} bytes, at most {TABLE_BYTES}")
        self.changes += 1
        self._bytes_max = most
        self._evict()

    def _evict(self) -> None:
        gone = 0
        while self._bytes > self._bytes_max:
            name, value = self._table[gone]
            self._bytes -= len(name) + len(value) + ENTRY_BYTES
            gone += 1
        if gone:
            del self._table[:gone]


def literal(name: bytes, value: bytes) -> bytes:
    """A field as a literal without indexing, its name and value as they are."""
    return b"\x00" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    size = len(text)
    if size < 0x7F:
        return bytes((size,))
    size -= 0x7F
    coded = bytearray((0x7F,))
    while size > 0x7F:
        coded.append(size & 0x7F | 0x80)
        size >>= 7
    coded.append(size)
    return bytes(coded)


def _integer(block: bytes, at: int, value: int) -> tuple[int, int]:
    """The rest of an integer whose prefix is full (`value`), and where it ends. IndexError when the block ends."""
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if value > INTEGER_MAX or shift > 28:
            raise Broken("an integer out of all bounds")
        if byte < 0x80:
            return value, at
        shift += 7


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    first = block[at]
    size = first & 0x7F
    at += 1
    if size == 0x7F:
        size, at = _integer(block, at, size)
    end = at + size
    if end > len(block):
        raise Broken("a string longer than its block")
    text = block[at:end]
    return (_unhuffman(text) if first & 0x80 else text), end


@cache
def _machine() -> tuple[list[int], list[int], frozenset[int]]:
    """Huffman decoding by half bytes. At state * 16 + half byte: the next state (-1: no such code) and the byte that
    came out (-1: none). The states in which a string may end. No code is shorter than 5 bits: a step gives one byte."""
    lengths = [int(length) for length in _LENGTHS.split()]
    tree: list[list[int]] = [[-1, -1]]  # a child: another node, or -2 - symbol
    code = last = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths)):
        code <<= length - last
        last = length
        node = 0
        for bit in range(length - 1, 0, -1):
            side = code >> bit & 1
            if tree[node][side] == -1:
                tree.append([-1, -1])
                tree[node][side] = len(tree) - 1
            node = tree[node][side]
        tree[node][code & 1] = -2 - symbol
        code += 1
    nexts, out = [], []
    for state in range(len(tree)):
        for half in range(16):
            node, symbol = state, -1
            for bit in (3, 2, 1, 0):
                node = tree[node][half >> bit & 1]
                if node < -1:
                    node, symbol = (0, -2 - node) if node != -2 - _END else (-1, -1)
                if node == -1:
                    break
            nexts.append(node)
            out.append(symbol)
    ends, node = {0}, 0
    for _ in range(7):  # padding: up to seven bits, all ones
        node = tree[node][1]
        ends.add(node)
    return nexts, out, frozenset(ends)


def _unhuffman(text: bytes) -> bytes:
    nexts, out, ends = _machine()
    plain = bytearray()
    state = 0
    for byte in text:
        for half in (byte >> 4, byte & 15):
            at = state * 16 + half
            state = nexts[at]
            if state < 0:
                raise Broken("the end of string within a string")
            if (symbol := out[at]) >= 0:
                plain.append(symbol)
    if state not in ends:
        raise Broken("a string that ends within a code")
    return bytes(plain)
