"""Bytes of the V2 inference protocol <-> named arrays: JSON and the binary tensor extension.

Source: Open Inference Protocol V2 (KServe), "Binary Tensor Data" extension as Triton speaks it.

Rules of the room:
- A client's mistake raises BadInput with the tensor, what was expected, what was got, and what to send instead.
- A binary request's header that names neither id nor key will come again: it is parsed once (`Plan`, bounded).
- Binary tensors are read in place: read-only views of the body, not always aligned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import orjson

from millstream import errors
from millstream.front import answer
from millstream.front.tensor import DTYPES, from_binary, from_json, shown, to_binary, to_json
from millstream.types import Array, Description, Output, TensorSpec

TEXT_CHARS_MAX = 256
DIMENSION_MAX = 2**31 - 1
# How many parsed headers and answer templates a model keeps; past it they are forgotten and learnt again.
REMEMBERED_MAX = 256
REMEMBERED_BYTES_MAX = 4096
# These two need a look at their bytes; the others are read in place.
_CHECKED = ("BOOL", "BYTES")
_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_EXAMPLE = '{"inputs": [{"name": ..., "datatype": ..., "shape": [...], "data": [...]}]}'


class Layout(msgspec.Struct, eq=False):
    """What a V2 header says. `views`: (name, dtype, shape, offset after the header); `given`: arrays in the JSON."""

    id: str
    key: str
    rows: int
    outputs: tuple[str, ...]
    binary: dict[str, bool]
    all_binary: bool
    views: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]
    checked: tuple[tuple[TensorSpec, tuple[int, ...], int, int], ...]
    given: dict[str, Array]
    size: int


class Plan:
    """How to read requests for one served model and write its answers. Made anew when its description changes."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self._inputs = {spec.name: spec for spec in description.inputs}
        self._datatypes = {spec.name: spec.datatype for spec in description.outputs}
        self._outputs = tuple(self._datatypes)
        self._has_bytes = "BYTES" in self._datatypes.values()
        self._layouts: dict[bytes, Layout] = {}
        self._templates: dict[tuple[object, ...], tuple[bytes, bytes]] = {}

    def read(self, body: bytes | bytearray, head: int | None) -> tuple[Layout, dict[str, Array]]:
        """Named arrays of a request; `head`: length of the JSON before the binary tensors, None when all is JSON."""
        if head is None:
            layout = self._parse(body, binary=False)
            return layout, layout.given
        if head > len(body):
            raise errors.BadInput(
                f"Inference-Header-Content-Length: {head}, the whole body has {len(body)} bytes; "
                "send the length of the JSON that comes before the binary tensors"
            )
        text = bytes(body[:head])
        layout = self._layouts.get(text) or self._learn(text)
        if len(body) - head != layout.size:
            fault = "truncated" if len(body) - head < layout.size else "too long"
            raise errors.BadInput(
                f"binary tensors: {fault}: {len(body) - head} bytes after the JSON header, "
                f"the sum of binary_data_size is {layout.size}"
            )
        inputs: dict[str, Array] = {
            name: np.ndarray(shape, dtype, body, head + start) for name, dtype, shape, start in layout.views
        }
        if layout.given:
            inputs.update(layout.given)
        for spec, shape, start, size in layout.checked:
            inputs[spec.name] = from_binary(spec, shape, memoryview(body)[head + start : head + start + size])
        return layout, inputs

    def write(self, layout: Layout, ident: bytes, output: Output) -> bytes:
        """The whole HTTP answer. `ident`: the request's id, already escaped for JSON and without its quotes."""
        if not layout.all_binary or self._has_bytes:
            return self._write_any(layout, ident, output)
        names, arrays = layout.outputs or self._outputs, output.outputs
        shapes = tuple([arrays[name].shape for name in names])
        key = (output.version, output.arm, output.policy, len(ident), names, shapes)
        template = self._templates.get(key) or self._template(key, names, output)
        return b"".join([template[0], ident, template[1], *[arrays[name].tobytes() for name in names]])

    def _learn(self, text: bytes) -> Layout:
        layout = self._parse(text, binary=True)
        if not (layout.id or layout.key or layout.given) and len(text) <= REMEMBERED_BYTES_MAX:
            if len(self._layouts) >= REMEMBERED_MAX:
                self._layouts.clear()
            self._layouts[text] = layout
        return layout

    def _parse(self, text: bytes | bytearray, binary: bool) -> Layout:
        document = _document(text)
        parameters = _parameters(document, "the request")
        views: list[tuple[str, np.dtype[Any], tuple[int, ...], int]] = []
        checked: list[tuple[TensorSpec, tuple[int, ...], int, int]] = []
        given: dict[str, Array] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        at = 0
        for tensor in _tensors(document, "inputs", required=True):
            spec = self._spec(tensor, shapes)
            shape = shapes[spec.name] = _shape(spec, tensor)
            size = _binary_size(spec, tensor, shape, binary)
            if size is None:
                given[spec.name] = from_json(spec, shape, tensor["data"])
                continue
            if spec.datatype in _CHECKED:
                checked.append((spec, shape, at, size))
            else:
                views.append((spec.name, DTYPES[spec.datatype], shape, at))
            at += size
        if missing := self._inputs.keys() - shapes.keys():
            raise errors.BadInput(f"inputs: {sorted(missing)} missing; {self._wants()}")
        wanted, asked, everywhere = self._asked(document, parameters)
        return Layout(
            id=_text(document, "id", "id"),
            key=_text(parameters, "key", "parameters.key"),
            rows=self._rows(shapes),
            outputs=wanted,
            binary=asked,
            all_binary=all(asked.values()) if wanted else everywhere,
            views=tuple(views),
            checked=tuple(checked),
            given=given,
            size=at,
        )

    def _spec(self, tensor: dict[str, Any], seen: dict[str, tuple[int, ...]]) -> TensorSpec:
        name, datatype = tensor.get("name"), tensor.get("datatype")
        spec = self._inputs.get(name) if isinstance(name, str) else None
        if spec is None:
            raise errors.BadInput(f"inputs: no input is called {shown(name)}; {self._wants()}")
        if spec.name in seen:
            raise errors.BadInput(f"input {spec.name!r}: given twice; send each input once")
        if datatype != spec.datatype:
            known = "" if isinstance(datatype, str) and datatype in DTYPES else f" (V2 has {', '.join(DTYPES)})"
            raise errors.BadInput(
                f"input {spec.name!r}: datatype {shown(datatype)}, the model takes {spec.datatype}{known}"
            )
        return spec

    def _wants(self) -> str:
        inputs = ", ".join(f"{s.name} {s.datatype} {list(s.shape)}" for s in self.description.inputs)
        return f"model {self.description.model!r} takes {inputs}"

    def _rows(self, shapes: dict[str, tuple[int, ...]]) -> int:
        rows = {n: shape[0] for n, shape in shapes.items() if shape and self._inputs[n].shape[0] < 0}
        if len(set(rows.values())) > 1:
            raise errors.BadInput(f"inputs: the first dimension is the row and must agree, got {rows}")
        return next(iter(rows.values()), 1)

    def _asked(
        self, document: dict[str, Any], parameters: dict[str, Any]
    ) -> tuple[tuple[str, ...], dict[str, bool], bool]:
        everywhere = _flag(parameters, "binary_data_output", "parameters.binary_data_output")
        asked: dict[str, bool] = {}
        for tensor in _tensors(document, "outputs", required=False):
            name = tensor.get("name")
            if not isinstance(name, str) or name not in self._datatypes:
                raise errors.BadInput(
                    f"outputs: no output is called {shown(name)}; model {self.description.model!r} has "
                    f"{', '.join(self._outputs)}"
                )
            if name in asked:
                raise errors.BadInput(f"output {name!r}: asked for twice; ask for each output once")
            own = _parameters(tensor, f"output {name!r}")
            wish = f"output {name!r}: parameters.binary_data"
            asked[name] = _flag(own, "binary_data", wish) if "binary_data" in own else everywhere
        return tuple(asked), asked or dict.fromkeys(self._outputs, everywhere), everywhere

    def _template(self, key: tuple[object, ...], names: tuple[str, ...], output: Output) -> tuple[bytes, bytes]:
        """The answer before and after the id: all of it but the id and the tensors is the same for equal shapes."""
        arrays = output.outputs
        sizes = {name: arrays[name].nbytes for name in names}
        tensors = [self._described(name, arrays[name], sizes[name]) for name in names]
        after = b'","' + orjson.dumps(_answered(output, tensors))[2:]
        before = b'{"id":"'
        length = len(before) + key[3] + len(after)  # type: ignore[operator]
        head = answer.answer(b"", answer.BINARY, extra=b"Inference-Header-Content-Length: %d\r\n" % length)
        head = head.replace(b"Content-Length: 0\r\n", b"Content-Length: %d\r\n" % (length + sum(sizes.values())))
        if len(self._templates) >= REMEMBERED_MAX:
            self._templates.clear()
        made = self._templates[key] = (head + before, after)
        return made

    def _write_any(self, layout: Layout, ident: bytes, output: Output) -> bytes:
        tensors, raws = [], []
        for name in layout.outputs or self._outputs:
            array, datatype = output.outputs[name], self._datatypes[name]
            if layout.binary[name]:
                raws.append(to_binary(datatype, array))
                tensors.append(self._described(name, array, len(raws[-1])))
            else:
                tensors.append({**self._described(name, array), "data": to_json(name, datatype, array)})
        head = b'{"id":"' + ident + b'","' + orjson.dumps(_answered(output, tensors), option=_NUMPY)[2:]
        if not raws:
            return answer.answer(head)
        length = b"Inference-Header-Content-Length: %d\r\n" % len(head)
        return answer.answer(b"".join([head, *raws]), answer.BINARY, extra=length)

    def _described(self, name: str, array: Array, size: int | None = None) -> dict[str, object]:
        tensor: dict[str, object] = {"name": name, "datatype": self._datatypes[name], "shape": list(array.shape)}
        return tensor if size is None else {**tensor, "parameters": {"binary_data_size": size}}


def _document(text: bytes | bytearray) -> dict[str, Any]:
    if not text:
        raise errors.BadInput(f"the body is empty; send {_EXAMPLE}")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise errors.BadInput(f"the body is not JSON: {error}; send {_EXAMPLE}") from None
    if not isinstance(document, dict):
        raise errors.BadInput(f"the body: got {shown(document)}, expected a JSON object; send {_EXAMPLE}")
    return document


def _tensors(document: dict[str, Any], field: str, required: bool) -> Iterable[dict[str, Any]]:
    tensors = document.get(field, [])
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise errors.BadInput(f"{field}: got {shown(tensors)}, expected a list of objects; send {_EXAMPLE}")
    if required and not tensors:
        raise errors.BadInput(f"{field}: missing or empty; send {_EXAMPLE}")
    return tensors


def _shape(spec: TensorSpec, tensor: dict[str, Any]) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= DIMENSION_MAX for n in shape):
        raise errors.BadInput(
            f"input {spec.name!r}: shape {shown(shape)}; send a list of integers from 0 to {DIMENSION_MAX}, "
            f"the model takes {list(spec.shape)}"
        )
    if len(shape) != len(spec.shape) or any(
        want >= 0 and got != want for got, want in zip(shape, spec.shape, strict=True)
    ):
        raise errors.BadInput(
            f"input {spec.name!r}: shape {shown(shape)}, the model takes {list(spec.shape)} (-1 is any length)"
        )
    if shape and spec.shape[0] < 0 and shape[0] == 0:
        raise errors.BadInput(f"input {spec.name!r}: shape {shape} has no rows; send at least one")
    return tuple(shape)


def _binary_size(spec: TensorSpec, tensor: dict[str, Any], shape: tuple[int, ...], binary: bool) -> int | None:
    """Bytes of this tensor after the header, or None when its data is in the JSON."""
    where = f"input {spec.name!r}"
    parameters = _parameters(tensor, where)
    if "binary_data_size" not in parameters:
        if "data" not in tensor:
            raise errors.BadInput(f"{where}: no data; send data, or parameters.binary_data_size and the bytes")
        return None
    size = parameters["binary_data_size"]
    if not binary:
        raise errors.BadInput(
            f"{where}: has binary_data_size but the request has no Inference-Header-Content-Length; "
            "send that header with the length of the JSON"
        )
    if "data" in tensor:
        raise errors.BadInput(f"{where}: has both data and binary_data_size; send one of them")
    if type(size) is not int or not 0 <= size <= DIMENSION_MAX:
        raise errors.BadInput(f"{where}: binary_data_size {shown(size)}; send the count of its bytes")
    expected = math.prod(shape) * DTYPES[spec.datatype].itemsize
    if spec.datatype != "BYTES" and size != expected:
        raise errors.BadInput(
            f"{where}: binary_data_size {size}, {spec.datatype} {list(shape)} has {expected} bytes; make them agree"
        )
    return size


def _parameters(holder: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise errors.BadInput(f"{where}: parameters is {shown(parameters)}; send an object")
    return parameters


def _flag(parameters: dict[str, Any], name: str, where: str) -> bool:
    flag = parameters.get(name, False)
    if not isinstance(flag, bool):
        raise errors.BadInput(f"{where}: got {shown(flag)}; send true or false")
    return flag


def _text(holder: dict[str, Any], name: str, where: str) -> str:
    text = holder.get(name, "")
    if not isinstance(text, str) or len(text) > TEXT_CHARS_MAX:
        raise errors.BadInput(f"{where}: got {shown(text)}; send a string of at most {TEXT_CHARS_MAX} characters")
    return text


def _answered(output: Output, tensors: list[dict[str, object]]) -> dict[str, object]:
    return {
        "model_name": output.model,
        "model_version": output.version,
        "parameters": {"arm": output.arm, "policy": output.policy},
        "outputs": tensors,
    }
