"""A ModelInferRequest as the JSON object of the protocol, so that one codec judges both borders' requests.

Rules of the room:
- What JSON says in other words (typed contents, raw contents) is put into its words here; the rest goes as it came.
- What only this border can get wrong (which field holds the values, how many raw contents) is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from millstream import errors
from millstream.front import parameters
from millstream.front.codec import Plan
from millstream.front.grpc import messages
from millstream.front.grpc.wire import BROKEN, Answers, Form, Raws
from millstream.front.tensor import shown
from millstream.types import DTYPES, Turn

# What a request may say: each costs memory beyond its bytes.
PARAMETERS_MAX = 256
SHAPE_MAX = 256
FINAL = "triton_enable_empty_final_response"
_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Said(msgspec.Struct, frozen=True):
    """What a request says of its own call. `final`: its client waits for a mark on the last answer."""

    key: str = ""
    priority: int = 0
    timeout_s: float = 0.0
    turn: Turn | None = None
    explain: bool = False
    final: bool = False


def parsed(name: str, data: bytes) -> messages.Message:
    """Message `inference.NAME` out of its bytes. Raises BadInput."""
    message = messages.of(name)()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise errors.BadInput(BROKEN) from None
    return message


def rest(data: bytes) -> messages.Message:
    """A ModelInferRequest out of all of its fields but id, parameters and raw contents. Raises BadInput."""
    message = parsed("ModelInferRequest", data)
    if message.id or message.parameters or message.raw_input_contents:  # written in another way than any client does
        raise errors.BadInput(BROKEN)
    return message


def form(plan: Plan, answers: Answers, message: messages.Message, raws: Raws) -> Form:
    """What the rest of a request says. Raises BadInput, in the words of the HTTP border."""
    sizes = _sizes(message, raws)
    document = {
        "inputs": [_input(tensor, size) for tensor, size in zip(message.inputs, sizes, strict=True)],
        "outputs": [_output(tensor) for tensor in message.outputs],
    }
    layout = plan.layout(document, binary=True)
    specs = {spec.name: spec for spec in plan.description.inputs}
    checked = {spec.name for spec, _, _, _ in layout.checked}
    tensors = [
        (tensor.name, DTYPES[tensor.datatype], tuple(tensor.shape), size, specs[tensor.name])
        for tensor, size in zip(message.inputs, sizes, strict=True)
        if size is not None
    ]
    looked = tuple((*tensor, spec if spec.name in checked else None) for *tensor, spec in tensors)
    return Form(message.model_name, message.model_version, plan, answers, layout, looked)


def said(data: bytes) -> Said:
    """What the parameters of a request say of this call. Raises BadInput, in the words of the HTTP border."""
    given = _parameters(parsed("ModelInferRequest", data).parameters, "the request")
    return Said(
        parameters.text(given, "key", "parameters.key"),
        parameters.count(given, "priority", "parameters.priority", least=0),
        parameters.count(given, "timeout", "parameters.timeout, in microseconds") / 1e6,
        parameters.turn(given),
        parameters.flag(given, "explain", "parameters.explain"),
        parameters.flag(given, FINAL, f"parameters.{FINAL}"),
    )


def ident(given: bytes) -> str:
    """A request's id as text. Raises BadInput."""
    try:
        text = given.decode()
    except UnicodeDecodeError:
        raise errors.BadInput(f"id: {shown(given)} is not UTF-8 text; send text") from None
    return text if len(given) <= parameters.TEXT_CHARS_MAX else parameters.text({"id": text}, "id", "id")


def _sizes(message: messages.Message, raws: Raws) -> list[int | None]:
    """The bytes of every input's raw content; None where its values are in the message."""
    if not raws:
        return [None] * len(message.inputs)
    if typed := [tensor.name for tensor in message.inputs if tensor.contents.ListFields()]:
        raise errors.BadInput(
            f"input {shown(typed[0])}: has contents, and the request has raw_input_contents; send all inputs in one way"
        )
    if len(raws) != len(message.inputs):
        raise errors.BadInput(
            f"raw_input_contents: {len(raws)} for {len(message.inputs)} inputs; send one for each, in their order"
        )
    return [size for _, size in raws]


def _input(tensor: messages.Message, size: int | None) -> dict[str, object]:
    where = f"input {shown(tensor.name)}"
    own = _parameters(tensor.parameters, where)
    own.pop("binary_data_size", None)  # it speaks of a body that is not here
    shape = list(tensor.shape[:SHAPE_MAX])  # the codec refuses more than the model has, and need not see them all
    found = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "parameters": own}
    if size is not None:
        own["binary_data_size"] = size
    elif tensor.HasField("contents"):
        found["data"] = _values(tensor)
    return found


def _output(tensor: messages.Message) -> dict[str, object]:
    return {"name": tensor.name, "parameters": _parameters(tensor.parameters, f"output {shown(tensor.name)}")}


def _values(tensor: messages.Message) -> list[object]:
    where, datatype = f"input {shown(tensor.name)}", tensor.datatype
    if datatype in ("FP16", "BF16"):
        raise errors.BadInput(f"{where}: {datatype} has no typed contents; send its bytes in raw_input_contents")
    field = _FIELDS.get(datatype, "")
    for used, _ in tensor.contents.ListFields():
        if field and used.name != field:
            raise errors.BadInput(f"{where}: {datatype} values are in {used.name}; send them in {field}")
    values = list(getattr(tensor.contents, field)) if field else []
    if datatype in ("FP32", "FP64") and (wrong := [value for value in values if not math.isfinite(value)]):
        raise errors.BadInput(f"{where}: {wrong[0]} is not a number to compute with; send finite numbers")
    return [_text(where, at, value) for at, value in enumerate(values)] if datatype == "BYTES" else values


def _text(where: str, at: int, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise errors.BadInput(f"{where}: BYTES element {at} is not UTF-8 text; send blobs as UINT8") from None


def _parameters(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parameters by name; None where one has no value. Raises BadInput."""
    if len(given) > PARAMETERS_MAX:
        raise errors.BadInput(f"{where}: {len(given)} parameters; send at most {PARAMETERS_MAX}")
    chosen = {name: (value, value.WhichOneof("parameter_choice")) for name, value in given.items()}
    return {name: getattr(value, choice) if choice else None for name, (value, choice) in chosen.items()}
