"""The bytes of ModelInfer, taken apart and put together by hand; the protobuf library reads what is seen first.

Rules of the room:
- A request is its raw contents, its id, its parameters, and the rest. Requests of one client differ in the first three:
  the rest is read once, and what it said is kept under its bytes (a `Form`).
- Raw contents are read in place: read-only views of the message, not always aligned.
- An answer is its id, its raw contents, and a template that is the same for equal versions and shapes. Fields of a
  message may come in any order, so what is added to one answer goes behind the template.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from millstream import errors
from millstream.front import parameters
from millstream.front.codec import REMEMBERED_MAX, Layout, Plan
from millstream.front.tensor import from_binary, to_binary
from millstream.types import Array, Output, TensorSpec, Turn

# More top-level fields than any request needs: each costs memory beyond its bytes.
FIELDS_MAX = 4096
BROKEN = "the message is not what this method takes: it is cut off, or not protobuf; make it with a V2 client"
_VARINT_BYTES_MAX = 10
# Tags: field number and wire type. All fields of the request are of the type that carries its length.
_ID, _PARAMETERS, _RAW = 0x1A, 0x22, 0x3A
_OWN = frozenset((_ID, _PARAMETERS, _RAW))
_OTHERS = frozenset((0x0A, 0x12, 0x2A, 0x32))

Raws = list[tuple[int, int]]
"""Offset and length of every raw content, in the order of the inputs."""


class Form(msgspec.Struct, eq=False):
    """What the rest of a request says. `tensors`: (name, dtype, shape, bytes, the spec where values need a look) an
    input, in the order of the raw contents."""

    model: str
    version: str
    plan: Plan
    answers: Answers
    layout: Layout
    tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int, TensorSpec | None], ...]

    def inputs(self, data: bytes, raws: Raws) -> dict[str, Array] | None:
        """The arrays of a request of this form; None when its raw contents are of other sizes. BadInput."""
        tensors = self.tensors
        if len(raws) != len(tensors):
            return None
        inputs: dict[str, Array] = dict(self.layout.given)
        for (name, dtype, shape, size, spec), (start, got) in zip(tensors, raws, strict=True):
            if spec is None:
                if got != size:
                    return None
                inputs[name] = np.ndarray(shape, dtype, data, start)
            else:
                if got != size and spec.datatype != "BYTES":
                    return None
                inputs[name] = from_binary(spec, shape, memoryview(data)[start : start + got])
        return inputs


def split(data: bytes) -> tuple[bytes, bytes, bytes, Raws]:
    """(the rest, parameters, id, where the raw contents are) of a ModelInferRequest. Raises BadInput."""
    at = start = 0
    end = len(data)
    ident = b""
    rest: list[bytes] = []
    said: list[bytes] = []
    raws: Raws = []
    left = FIELDS_MAX
    try:
        while at < end:
            tag, size, here = data[at], data[at + 1], at + 2
            if size > 127 and tag < 128:
                size, here = _varint(data, at + 1)
            if tag in _OTHERS:
                at = here + size
            elif tag in _OWN:
                if start < at:
                    rest.append(data[start:at])
                if tag == _RAW:
                    raws.append((here, size))
                elif tag == _ID:
                    ident = data[here : here + size]
                else:
                    said.append(data[at : here + size])
                at = start = here + size
            else:
                at = _skip(data, at)
            left -= 1
            if left < 0:
                raise errors.BadInput(f"the message has more than {FIELDS_MAX} fields; send fewer inputs")
    except IndexError:
        at = -1
    if at != end:
        raise errors.BadInput(BROKEN)
    if start < end:
        rest.append(data[start:])
    return b"".join(rest), b"".join(said), ident, raws


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where the next byte is)."""
    number = 0
    for shift in range(_VARINT_BYTES_MAX):
        byte = data[at + shift]
        number |= (byte & 127) << 7 * shift
        if byte < 128:
            return number, at + shift + 1
    raise IndexError


def _skip(data: bytes, at: int) -> int:
    """The end of a field that this protocol version does not know."""
    tag, at = _varint(data, at)
    kind = tag & 7
    if kind == 0:
        return _varint(data, at)[1]
    if kind == 2:
        size, at = _varint(data, at)
        return at + size
    if kind == 1 or kind == 5:
        return at + (8 if kind == 1 else 4)
    raise IndexError


def varint(number: int) -> bytes:
    """A number that is not negative, seven bits a byte."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """A field of text, bytes or a message."""
    return bytes((number << 3 | 2,)) + varint(len(content)) + content


def parameter(key: str, value: str | int | bool) -> bytes:
    """A parameter of an answer, as an entry of its map."""
    if isinstance(value, bool):
        choice = b"\x08" + varint(value)
    elif isinstance(value, int):
        choice = b"\x10" + varint(value)
    else:
        choice = field(3, value.encode())
    return field(4, field(1, key.encode()) + field(2, choice))


FINAL = parameter("triton_final_response", True)
# The head of an id's field, by the length of the id; a longer id cannot come in.
_ID_HEADS = [b"\x1a" + varint(length) for length in range(1025)]


class Answers:
    """Writes a plan's answers."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._outputs = {spec.name: spec.datatype for spec in plan.description.outputs}
        self._names = tuple(self._outputs)
        self._has_bytes = "BYTES" in self._outputs.values()
        self._templates: dict[tuple[object, ...], tuple[bytes, tuple[bytes, ...]]] = {}

    def write(self, layout: Layout, ident: bytes, output: Output, final: bool) -> bytes:
        """A ModelInferResponse. `ident`: at most 1024 bytes; `final`: mark it as the last one."""
        if self._has_bytes or layout.picks:
            return self._write_any(layout, ident, output, final)
        names, arrays = layout.outputs or self._names, output.outputs
        shapes = tuple([arrays[name].shape for name in names])
        key = (output.version, output.arm, output.policy, names, shapes)
        head, tails = self._templates.get(key) or self._template(key, output, names)
        parts = [_ID_HEADS[len(ident)], ident, head]
        for name, tail in zip(names, tails, strict=True):
            parts += (tail, arrays[name].tobytes())
        if output.turn is not None or final:
            parts.append(_more(output.turn, final))
        return b"".join(parts)

    def _template(
        self, key: tuple[object, ...], output: Output, names: tuple[str, ...]
    ) -> tuple[bytes, tuple[bytes, ...]]:
        arrays = [output.outputs[name] for name in names]
        head = _head(output) + b"".join(
            _described(name, self._outputs[name], array.shape) for name, array in zip(names, arrays, strict=True)
        )
        if len(self._templates) >= REMEMBERED_MAX:
            self._templates.clear()
        made = self._templates[key] = (head, tuple(b"\x32" + varint(array.nbytes) for array in arrays))
        return made

    def _write_any(self, layout: Layout, ident: bytes, output: Output, final: bool) -> bytes:
        tensors = self._plan.answered(layout, output)
        parts = [_ID_HEADS[len(ident)], ident, _head(output)]
        parts += [_described(name, datatype, array.shape) for name, datatype, array in tensors]
        parts += [field(6, to_binary(datatype, array)) for _, datatype, array in tensors]
        return b"".join([*parts, _more(output.turn, final)])


def streamed(answer: bytes) -> bytes:
    """A ModelStreamInferResponse that carries this ModelInferResponse."""
    return b"\x12" + varint(len(answer)) + answer


def failed(sentence: str, ident: bytes) -> bytes:
    """A ModelStreamInferResponse that says what went wrong with one request."""
    return field(1, sentence.encode(errors="replace")) + streamed(field(3, ident))


def _head(output: Output) -> bytes:
    return b"".join(
        (
            field(1, output.model.encode()),
            field(2, output.version.encode()),
            parameter("arm", output.arm),
            parameter("policy", output.policy),
        )
    )


def _described(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    dimensions = b"".join(map(varint, shape))
    return field(5, field(1, name.encode()) + field(2, datatype.encode()) + field(3, dimensions))


def _more(turn: Turn | None, final: bool) -> bytes:
    """The parameters that are this answer's own."""
    own = FINAL if final else b""
    if turn is None:
        return own
    return own + b"".join(parameter(key, value) for key, value in parameters.standing(turn).items())
