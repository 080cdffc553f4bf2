"""Bytes of the V2 inference protocol <-> named arrays: JSON and the binary tensor extension.

Source: Open Inference Protocol V2 (KServe), "Binary Tensor Data" extension as Triton speaks it.

Rules of the room:
- A client's mistake raises BadInput with the tensor, what was expected, what was got, and what to send instead.
- A binary request's header that says nothing of one call alone will come again: it is parsed once (`Plan`, bounded).
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
from millstream.front import answer, parameters, select
from millstream.front.select import INDEX, Pick
from millstream.front.tensor import from_binary, from_json, shown, to_binary, to_json
from millstream.types import DTYPES, Array, Description, Output, TensorSpec, Turn

DIMENSION_MAX = 2**31 - 1
JSON_BYTES_MAX = 8 << 20  # every number of it becomes an object, all at once
TENSOR_BYTES_MAX = 2**62  # what an address can reach, also where a dimension of 0 hides the others
# How many parsed headers and answer templates a model keeps; past it they are forgotten and learnt again.
REMEMBERED_MAX = 256
REMEMBERED_BYTES_MAX = 4096
_OBJECTS, _INTEGERS = {dict}, {int}
# These two need a look at their bytes; the others are read in place.
_CHECKED = ("BOOL", "BYTES")
_view = np.ndarray
_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_EXAMPLE = '{"inputs": [{"name": ..., "datatype": ..., "shape": [...], "data": [...]}]}'


class Layout(msgspec.Struct, eq=False):
    """What a V2 request says beside its tensors' bytes. `views`: (name, dtype, shape, offset in the binary part);
    `given`: arrays out of typed data; `binary`: per answered tensor, whether it leaves as bytes; `picks`: outputs of
    which only the best are asked for; `plain`: it says nothing of this one call, so it may come again word for word;
    `direct`: its answer is arrays' bytes and nothing else."""

    id: str
    key: str
    rows: int
    outputs: tuple[str, ...]
    binary: dict[str, bool]
    views: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]
    checked: tuple[tuple[TensorSpec, tuple[int, ...], int, int], ...]
    given: dict[str, Array]
    size: int
    picks: dict[str, Pick]
    plain: bool
    direct: bool
    priority: int = 0
    timeout_s: float = 0.0
    turn: Turn | None = None
    explain: bool = False


class Plan:
    """How to read requests for one served model and write its answers. Made anew when its description changes."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self._inputs = {spec.name: spec for spec in description.inputs}
        self._datatypes = {spec.name: spec.datatype for spec in description.outputs}
        self._outputs = tuple(self._datatypes)
        self._as_data = dict.fromkeys(self._outputs, False)
        self._texts = {spec.name for spec in description.outputs if spec.datatype == "BYTES"}
        self._specs = {spec.name: spec for spec in description.outputs}
        self._layouts: dict[bytes, Layout] = {}
        self._templates: dict[tuple[object, ...], tuple[bytes, bytes]] = {}

    def read(self, body: bytes | bytearray, head: int | None) -> tuple[Layout, dict[str, Array]]:
        """Named arrays of a request; `head`: length of the JSON before the binary tensors, None when all is JSON."""
        if head is None:
            layout = self.layout(_document(body), binary=False)
            return layout, layout.given
        if head > len(body):
            raise errors.BadInput(
                f"Inference-Header-Content-Length: {head}, the whole body has {len(body)} bytes; "
                "send the length of the JSON that comes before the binary tensors"
            )
        text = body[:head] if isinstance(body, bytes) else bytes(body[:head])
        layout = self._layouts.get(text) or self._learn(text)
        if len(body) - head != layout.size:
            fault = "truncated" if len(body) - head < layout.size else "too long"
            raise errors.BadInput(
                f"binary tensors: {fault}: {len(body) - head} bytes after the JSON header, "
                f"the sum of binary_data_size is {layout.size}"
            )
        inputs: dict[str, Array] = {}
        for name, dtype, shape, start in layout.views:
            inputs[name] = _view(shape, dtype, body, head + start)
        if layout.given:
            inputs.update(layout.given)
        for spec, shape, start, size in layout.checked:
            inputs[spec.name] = from_binary(spec, shape, memoryview(body)[head + start : head + start + size])
        return layout, inputs

    def write(self, layout: Layout, ident: bytes, output: Output) -> bytes:
        """The whole HTTP answer. `ident`: the request's id, already escaped for JSON and without its quotes."""
        if not layout.direct:
            return self._write_any(layout, ident, output)
        names, arrays = layout.outputs or self._outputs, output.outputs
        if len(names) == 1:  # as most have: no lists are made for it
            array = arrays[names[0]]
            key: tuple[object, ...] = (output.version, output.arm, output.policy, len(ident), names, array.shape)
            before, after = self._templates.get(key) or self._template(key, names, output)
            return b"".join((before, ident, after, array.tobytes()))
        shapes = tuple([arrays[name].shape for name in names])
        key = (output.version, output.arm, output.policy, len(ident), names, shapes)
        before, after = self._templates.get(key) or self._template(key, names, output)
        return b"".join([before, ident, after, *[arrays[name].tobytes() for name in names]])

    def _learn(self, text: bytes) -> Layout:
        layout = self.layout(_document(text), binary=True)
        if layout.plain and not layout.given and len(text) <= REMEMBERED_BYTES_MAX:
            if len(self._layouts) >= REMEMBERED_MAX:
                self._layouts.clear()
            self._layouts[text] = layout
        return layout

    def answered(self, layout: Layout, output: Output) -> list[tuple[str, str, Array]]:
        """(name, datatype, array) of every tensor of the answer, in order: what was asked for, the best of it picked.

        `layout.binary` has each of the names. BadInput where there is nothing to pick from.
        """
        found: list[tuple[str, str, Array]] = []
        for name in layout.outputs or self._outputs:
            pick, datatype = layout.picks.get(name), self._datatypes[name]
            if pick is None:
                found.append((name, datatype, output.outputs[name]))
            else:
                found += select.picked(name, datatype, output.outputs[name], pick)
        return found

    def layout(self, document: dict[str, Any], binary: bool) -> Layout:
        """What a request says, as the JSON object of the protocol; `binary`: tensors may be in a binary part. BadInput.

        The gRPC border brings its messages into the same form, so that both refuse the same things in the same words.
        """
        said = parameters.of(document, "the request")
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
        wanted, leaves, picks = self._asked(document, said)
        layout = Layout(
            parameters.text(document, "id", "id"),
            "",
            self._rows(shapes),
            wanted,
            leaves,
            tuple(views),
            tuple(checked),
            given,
            at,
            picks,
            plain=True,
            direct=all(leaves.values()) and not picks and self._texts.isdisjoint(leaves),
        )
        if said:
            layout.key = parameters.text(said, "key", "parameters.key")
            layout.priority = parameters.count(said, "priority", "parameters.priority", least=0)
            layout.timeout_s = parameters.count(said, "timeout", "parameters.timeout, in microseconds") / 1e6
            layout.explain = parameters.flag(said, "explain", "parameters.explain")
            layout.turn = parameters.turn(said)
            layout.direct = layout.direct and layout.turn is None
        layout.plain = not (
            layout.id or layout.key or layout.priority or layout.timeout_s or layout.explain or layout.turn is not None
        )
        return layout

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
        """The rows of a request: of its inputs but those of one row, which belong to all."""
        free = [name for name in shapes if self._inputs[name].shape[:1] == (-1,)]
        rows = {shapes[name][0] for name in free} - {1}
        if len(rows) > 1:
            got = {name: shapes[name][0] for name in free}
            raise errors.BadInput(
                f"inputs: the first dimension is the row and must agree, got {got}; send as many rows in each, or one "
                "that belongs to all"
            )
        return rows.pop() if rows else 1

    def _asked(
        self, document: dict[str, Any], said: dict[str, Any]
    ) -> tuple[tuple[str, ...], dict[str, bool], dict[str, Pick]]:
        """The outputs by name, which tensors of the answer leave as bytes, and which are picked from."""
        if not said and "outputs" not in document:
            return (), self._as_data, {}
        everywhere = parameters.flag(said, "binary_data_output", "parameters.binary_data_output")
        asked: dict[str, bool] = {}
        picks: dict[str, Pick] = {}
        for tensor in _tensors(document, "outputs", required=False):
            name = tensor.get("name")
            if not isinstance(name, str) or name not in self._datatypes:
                raise errors.BadInput(
                    f"outputs: no output is called {shown(name)}; model {self.description.model!r} has "
                    f"{', '.join(self._outputs)}"
                )
            if name in asked:
                raise errors.BadInput(f"output {name!r}: asked for twice; ask for each output once")
            own = parameters.of(tensor, f"output {name!r}")
            parameters.not_shared(own, f"output {name!r}")
            wish = f"output {name!r}: parameters.binary_data"
            asked[name] = parameters.flag(own, "binary_data", wish) if "binary_data" in own else everywhere
            if own and (pick := parameters.pick(own, name)):
                select.check(self._specs[name])
                picks[name] = pick
        wanted = tuple(asked)
        for name, pick in picks.items():
            if not pick.labels:
                if name + INDEX in wanted:
                    raise errors.BadInput(
                        f"output {name!r}: top_k answers {name + INDEX!r} beside it, and an output of the model is "
                        "called so too; ask for one of them"
                    )
                asked[name + INDEX] = asked[name]
        return wanted, asked or dict.fromkeys(self._outputs, everywhere), picks

    def _template(self, key: tuple[object, ...], names: tuple[str, ...], output: Output) -> tuple[bytes, bytes]:
        """The answer before and after the id: all of it but the id and the tensors is the same for equal shapes."""
        arrays = output.outputs
        tensors: list[dict[str, object]] = [
            {
                "name": name,
                "datatype": self._datatypes[name],
                "shape": arrays[name].shape,
                "parameters": {"binary_data_size": arrays[name].nbytes},
            }
            for name in names
        ]
        after = b'","' + orjson.dumps(_answered(output, tensors))[2:]
        before = b'{"id":"'
        length = len(before) + key[3] + len(after)  # type: ignore[operator]
        head = answer.answer(b"", answer.BINARY, extra=b"Inference-Header-Content-Length: %d\r\n" % length)
        head = head.replace(
            b"Content-Length: 0\r\n", b"Content-Length: %d\r\n" % (length + sum(arrays[name].nbytes for name in names))
        )
        if len(self._templates) >= REMEMBERED_MAX:
            self._templates.clear()
        made = self._templates[key] = (head + before, after)
        return made

    def _write_any(self, layout: Layout, ident: bytes, output: Output) -> bytes:
        tensors, raws = [], []
        for name, datatype, array in self.answered(layout, output):
            tensor: dict[str, object] = {"name": name, "datatype": datatype, "shape": array.shape}
            tensors.append(tensor)
            if layout.binary[name]:
                raws.append(to_binary(datatype, array))
                tensor["parameters"] = {"binary_data_size": len(raws[-1])}
            else:
                tensor["data"] = to_json(name, datatype, array)
        head = b'{"id":"' + ident + b'","' + orjson.dumps(_answered(output, tensors), option=_NUMPY)[2:]
        if not raws:
            return answer.answer(head)
        length = b"Inference-Header-Content-Length: %d\r\n" % len(head)
        return answer.answer(b"".join([head, *raws]), answer.BINARY, extra=length)


def _document(text: bytes | bytearray) -> dict[str, Any]:
    if not text:
        raise errors.BadInput(f"the body is empty; send {_EXAMPLE}")
    if len(text) > JSON_BYTES_MAX:
        raise errors.TooLarge(f"{len(text)} bytes of JSON, {JSON_BYTES_MAX} at most: send large tensors in binary")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise errors.BadInput(f"the body is not JSON: {error}; send {_EXAMPLE}") from None
    if not isinstance(document, dict):
        raise errors.BadInput(f"the body: got {shown(document)}, expected a JSON object; send {_EXAMPLE}")
    return document


def _tensors(document: dict[str, Any], field: str, required: bool) -> Iterable[dict[str, Any]]:
    tensors = document.get(field, [])
    if not isinstance(tensors, list) or not {*map(type, tensors)} <= _OBJECTS:
        raise errors.BadInput(f"{field}: got {shown(tensors)}, expected a list of objects; send {_EXAMPLE}")
    if required and not tensors:
        raise errors.BadInput(f"{field}: missing or empty; send {_EXAMPLE}")
    return tensors


def _shape(spec: TensorSpec, tensor: dict[str, Any]) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or not {*map(type, shape)} <= _INTEGERS
        or (shape and not (min(shape) >= 0 and max(shape) <= DIMENSION_MAX))
    ):
        raise errors.BadInput(
            f"input {spec.name!r}: shape {shown(shape)}; send a list of integers from 0 to {DIMENSION_MAX}, "
            f"the model takes {list(spec.shape)}"
        )
    fits = len(shape) == len(spec.shape)
    for got, want in zip(shape, spec.shape, strict=False):
        fits = fits and (want < 0 or got == want)
    if not fits:
        raise errors.BadInput(
            f"input {spec.name!r}: shape {shown(shape)}, the model takes {list(spec.shape)} (-1 is any length)"
        )
    if 0 in shape and math.prod(n or 1 for n in shape) * DTYPES[spec.datatype].itemsize > TENSOR_BYTES_MAX:
        raise errors.BadInput(
            f"input {spec.name!r}: shape {shape} is more than a tensor can hold; send at most {TENSOR_BYTES_MAX} bytes"
        )
    if shape and spec.shape[0] < 0 and shape[0] == 0:
        raise errors.BadInput(f"input {spec.name!r}: shape {shape} has no rows; send at least one")
    return tuple(shape)


def _binary_size(spec: TensorSpec, tensor: dict[str, Any], shape: tuple[int, ...], binary: bool) -> int | None:
    """Bytes of this tensor after the header, or None when its data is in the JSON."""
    where = f"input {spec.name!r}"
    own = parameters.of(tensor, where)
    parameters.not_shared(own, where)
    if "binary_data_size" not in own:
        if "data" not in tensor:
            raise errors.BadInput(f"{where}: no data; send data, or parameters.binary_data_size and the bytes")
        return None
    size = own["binary_data_size"]
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


def _answered(output: Output, tensors: list[dict[str, object]]) -> dict[str, object]:
    return {
        "model_name": output.model,
        "model_version": output.version,
        "parameters": parameters.answered(output),
        "outputs": tensors,
    }
