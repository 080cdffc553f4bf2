"""Every rule of the V2 protocol that a request can break, as cases for every border: the same words, the same code."""

from __future__ import annotations

from typing import Any, NamedTuple

from millstream.errors import BadInput, Error, NotFound


class Case(NamedTuple):
    """A request for `model` that breaks a rule. `document`: as JSON has it; `raw`: the bytes after it, None when all is
    JSON. `parts`: what the sentence must have: the tensor, what was expected, what was got. `json_only`: no protobuf
    message can say it."""

    name: str
    document: dict[str, Any]
    parts: tuple[str, ...]
    raw: bytes | None = None
    model: str = "affine"
    version: str = ""
    error: type[Error] = BadInput
    json_only: bool = False

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.error.status

    @property
    def code(self) -> str:
        """The gRPC code's name."""
        return self.error.code


X: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
DATA = {**X, "data": [1, 2, 3]}
A: dict[str, Any] = {"name": "a", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}
B: dict[str, Any] = {"name": "b", "datatype": "FP32", "shape": [1], "data": [0.5]}


def asked(*inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **fields}


def said(**parameters: Any) -> dict[str, Any]:
    return asked(DATA, parameters=parameters)


def wished(name: str = "y", **parameters: Any) -> dict[str, Any]:
    return asked(DATA, outputs=[{"name": name, "parameters": parameters}])


def sized(size: object, **more: Any) -> dict[str, Any]:
    return asked({**X, "parameters": {"binary_data_size": size}, **more})


def echo(datatype: str, data: list[Any]) -> dict[str, Any]:
    return asked({"name": "v", "datatype": datatype, "shape": [1, len(data)], "data": data})


def bytes_of(raw: bytes) -> dict[str, Any]:
    v = {"name": "v", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(raw)}}
    return asked(v)


def text(name: str, raw: bytes, *parts: str) -> Case:
    return Case(name, bytes_of(raw), parts, raw, "echo-BYTES")


HUGE = 2**31 - 1
CASES = [
    Case("no inputs", asked(), ("inputs: missing or empty",)),
    Case("inputs is a string", {"inputs": "x"}, ("inputs: got 'x'", "list of objects"), json_only=True),
    Case("an input is a number", {"inputs": [1]}, ("inputs: got [1]", "list of objects"), json_only=True),
    Case("an unknown input", asked({**DATA, "name": "z"}), ("'z'", "model 'affine' takes x FP32 [-1, 3]")),
    Case("a name is a number", asked({**DATA, "name": 5}), ("is called 5",), json_only=True),
    Case("an input twice", asked(DATA, DATA), ("input 'x': given twice",)),
    Case("an input missing", asked(A), ("['b'] missing", "a INT64 [-1, 2], b FP32 [-1]"), model="pair"),
    Case("an input too many", asked(DATA, A), ("no input is called 'a'",)),
    Case("an unknown datatype", asked({**DATA, "datatype": "FLOAT"}), ("'x'", "'FLOAT'", "takes FP32", "V2 has BOOL")),
    Case("another datatype", asked({**DATA, "datatype": "FP64"}), ("'x'", "'FP64'", "takes FP32")),
    Case("no datatype", asked({"name": "x", "shape": [1, 3], "data": [1, 2, 3]}), ("'x': datatype", "takes FP32")),
    Case("another rank", asked({**DATA, "shape": [3]}), ("'x': shape [3]", "[-1, 3]")),
    Case("another shape", asked({**DATA, "shape": [1, 4]}), ("'x': shape [1, 4]", "[-1, 3]")),
    Case("no shape", asked({"name": "x", "datatype": "FP32", "data": [1]}), ("'x': shape", "[-1, 3]")),
    Case("a negative dimension", asked({**DATA, "shape": [-1, 3]}), ("'x': shape [-1, 3]", "integers from 0")),
    Case("a dimension over 2**31", asked({**DATA, "shape": [2**62, 3]}), ("'x': shape", "2147483647")),
    Case("a dimension over 2**63", asked({**DATA, "shape": [2**63, 3]}), ("'x': shape", "2147483647"), json_only=True),
    Case("a fraction of a dimension", asked({**DATA, "shape": [1.5, 3]}), ("'x': shape [1.5, 3]",), json_only=True),
    Case(
        "more elements than 2**63 in all",
        asked({"name": "v", "datatype": "FP32", "shape": [HUGE] * 3, "data": []}),
        ("'v': 0 values in data", "[2147483647, 2147483647, 2147483647] has 9903520300447984150353281023"),
        model="cube",
    ),
    Case(
        "an overflow behind a dimension of 0",
        asked({"name": "v", "datatype": "FP32", "shape": [HUGE, HUGE, 0], "parameters": {"binary_data_size": 0}}),
        ("'v': shape [2147483647, 2147483647, 0]", "more than a tensor can hold"),
        b"",
        "cube",
    ),
    Case("no rows", asked({**DATA, "shape": [0, 3], "data": []}), ("'x': shape [0, 3]", "no rows")),
    Case("rows disagree", asked({**A, "shape": [2, 2], "data": [1] * 4}, {**B, "shape": [3], "data": [1] * 3}),
         ("must agree", "'a': 2", "'b': 3"), model="pair"),
    Case("too few values", asked({**DATA, "data": [1, 2]}), ("'x': 2 values", "[1, 3] has 3")),
    Case("too many values", asked({**DATA, "data": [1, 2, 3, 4]}), ("'x': 4 values", "[1, 3] has 3")),
    Case("a huge shape and little data", asked({**DATA, "shape": [HUGE, 3]}), ("'x': 3 values", "6442450941")),
    Case("no data", asked(X), ("'x'", "no data")),
    Case("data is a number", asked({**DATA, "data": 3}), ("'x': data is integers", "send a list"), json_only=True),
    Case("a string in FP32", asked({**DATA, "data": [1, "2", 3]}), ("'x': FP32", "strings", "integers"),
         json_only=True),
    Case("null in FP32", asked({**DATA, "data": [1, None, 3]}), ("'x': FP32", "null"), json_only=True),
    Case("a boolean in FP32", asked({**DATA, "data": [1, True, 3]}), ("'x': FP32", "booleans"), json_only=True),
    Case("a number in BYTES", echo("BYTES", [1]), ("'v': BYTES", "integers", "strings"), None, "echo-BYTES",
         json_only=True),
    Case("a number in BOOL", echo("BOOL", [1]), ("'v': BOOL", "integers", "booleans"), None, "echo-BOOL",
         json_only=True),
    Case("ragged data", asked({**DATA, "shape": [2, 3], "data": [[1, 2, 3], [4]]}), ("'x'", "ragged"), json_only=True),
    Case("nested otherwise", asked({**DATA, "data": [[1], [2], [3]]}), ("'x'", "nested otherwise"), json_only=True),
    Case("a fraction in INT64", asked({**A, "data": [1, 2.5]}, B), ("'a': INT64", "fraction"), None, "pair",
         json_only=True),
    Case("over INT8", echo("INT8", [200]), ("'v': 200", "INT8", "-128 to 127"), None, "echo-INT8"),
    Case("under UINT16", echo("UINT16", [-1]), ("'v': -1", "UINT16"), None, "echo-UINT16", json_only=True),
    Case("over FP32", asked({**DATA, "data": [1e300, 0, 0]}), ("'x': 1e+300", "FP32"), json_only=True),
    Case("truncated bytes", sized(12), ("truncated", "4 bytes", "12"), b"1234"),
    Case("excess bytes", sized(12), ("too long", "16 bytes", "12"), b"x" * 16, json_only=True),
    Case("bytes that are not of the shape", sized(8), ("'x': binary_data_size 8", "[1, 3] has 12"), b"x" * 8),
    Case("a negative size", sized(-12), ("'x': binary_data_size -12",), b"x" * 12, json_only=True),
    Case("a size as text", sized("12"), ("'x': binary_data_size '12'",), b"x" * 12, json_only=True),
    Case("both data and bytes", sized(12, data=[1, 2, 3]), ("'x'", "both data and"), b"x" * 12),
    Case("bytes without their header", sized(12), ("'x'", "Inference-Header-Content-Length"), json_only=True),
    Case("BOOL of two", asked({"name": "v", "datatype": "BOOL", "shape": [1, 1],
                              "parameters": {"binary_data_size": 1}}),
         ("'v'", "BOOL byte is 2", "0 or 1"), b"\x02", "echo-BOOL"),
    text("BYTES that are truncated", b"\x05\0\0\0ab", "'v': BYTES element 0 is truncated", "5 bytes"),
    text("BYTES that are too many", b"\x01\0\0\0a\x01\0\0\0b", "'v': 2 BYTES elements", "[1, 1] has 1"),
    text("BYTES that are too few", b"", "'v': 0 BYTES elements", "[1, 1] has 1"),
    text("BYTES with half a length", b"\x01\0", "'v': BYTES element 0 is truncated"),
    text("BYTES that are no text", b"\x01\0\0\0\xff", "'v': BYTES element 0", "UTF-8"),
    Case("an unknown output", asked(DATA, outputs=[{"name": "z"}]), ("called 'z'", "model 'affine' has y, n")),
    Case("an output twice", asked(DATA, outputs=[{"name": "y"}] * 2), ("output 'y'", "twice")),
    Case("outputs is an object", asked(DATA, outputs={}), ("outputs: got {}", "list"), json_only=True),
    Case("binary_data as text", wished(binary_data="yes"), ("'y': parameters.binary_data: got 'yes'", "true or false"),
         json_only=True),
    Case("binary_data_output as a number", said(binary_data_output=1), ("binary_data_output: got 1", "true or false"),
         json_only=True),
    Case("top_k of 0", wished(top_k=0), ("'y': parameters.top_k: got 0", "from 1")),
    Case("top_k as text", wished(top_k="3"), ("'y': parameters.top_k: got '3'", "an integer")),
    Case("top_k as a boolean", wished(top_k=True), ("'y': parameters.top_k: got True", "an integer")),
    Case("classification of -1", wished(classification=-1), ("'y': parameters.classification: got -1", "from 1")),
    Case("both of them", wished(top_k=1, classification=1), ("'y'", "both top_k and classification")),
    Case("the best of text", echo("BYTES", ["a"]) | {"outputs": [{"name": "v", "parameters": {"top_k": 1}}]},
         ("output 'v': BYTES", "numbers"), None, "echo-BYTES"),
    Case("parameters is a list", asked(DATA, parameters=[]), ("the request: parameters is []", "object"),
         json_only=True),
    Case("an id as a number", asked(DATA, id=7), ("id: got 7", "string"), json_only=True),
    Case("a long id", asked(DATA, id="x" * 300), ("id: got 'xxx", "256 characters")),
    Case("a key as a number", said(key=7), ("parameters.key: got 7", "string")),
    Case("a long key", said(key="k" * 300), ("parameters.key: got 'kkk", "256 characters")),
    Case("a negative priority", said(priority=-1), ("parameters.priority: got -1", "from 0")),
    Case("a priority as text", said(priority="high"), ("parameters.priority: got 'high'", "integer")),
    Case("a timeout of 0", said(timeout=0), ("parameters.timeout", "microseconds", "got 0", "from 1")),
    Case("a timeout in seconds", said(timeout=0.5), ("parameters.timeout", "microseconds", "got 0.5", "integer")),
    Case("explain as text", said(explain="yes"), ("parameters.explain: got 'yes'", "true or false")),
    Case("a negative sequence", said(sequence_id=-3), ("parameters.sequence_id: got -3", "from 0")),
    Case("a sequence of truth", said(sequence_id=True), ("parameters.sequence_id: got True", "integer")),
    Case("a long sequence", said(sequence_id="s" * 300), ("parameters.sequence_id: got 'sss", "256 characters")),
    Case("a start as a number", said(sequence_id=1, sequence_start=1), ("sequence_start: got 1", "true or false")),
    Case("an end as text", said(sequence_id=1, sequence_end="no"), ("sequence_end: got 'no'", "true or false")),
    Case("step 0", said(sequence_id=1, sequence_step=0), ("parameters.sequence_step: got 0", "from 1")),
    Case("a token as a number", said(resume_token=5), ("parameters.resume_token: got 5", "string")),
    Case("a long token", said(resume_token="t" * 2000), ("parameters.resume_token: got 'ttt", "1024 characters")),
    Case("an end of nothing", said(sequence_end=True), ("parameters.sequence_id: missing", "sequence_start")),
    Case("a step of nothing", said(sequence_step=2), ("parameters.sequence_id: missing", "sequence_start")),
    Case("a sequence that never began", said(sequence_id=404), ("no sequence '404'",), error=NotFound),
    Case("an unknown model", asked(DATA), ("'nobody'", "served"), model="nobody", error=NotFound),
    Case("an unknown version", asked(DATA), ("'affine'", "'9'"), version="9", error=NotFound),
]  # fmt: skip
