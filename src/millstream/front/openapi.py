"""The OpenAPI document of the HTTP border: every route with its parameters, bodies and statuses, out of one table.

Rules of the room:
- A route is a line of PATHS; `{version}` makes a second path of it. tests/front/test_openapi.py calls each of them.
- A status is listed where it can come; 500 never is: it would be a fault of ours.
"""

from __future__ import annotations

import msgspec

import millstream
from millstream.front import traffic
from millstream.front.explain import HEADER
from millstream.front.features import SAID as FEATURES_SAID
from millstream.front.parameters import TEXT_CHARS_MAX
from millstream.front.schemas import SCHEMAS, Schema, ref, words
from millstream.models.traffic import MOVES

JSON, BYTES, PROMETHEUS = "application/json", "application/octet-stream", "text/plain"
FORM = "multipart/form-data"
VERSIONED = "/versions/{version}"
# What any request can meet: bad framing, slowness, too much of it, a busy or stopping server.
_ANY = (400, 408, 413, 415, 431, 503)
_OPEN = ("/", "/v2/health/live", "/v2/health/ready", "/openapi.json")
_REFUSED = {
    400: "the request cannot be understood",
    401: "no known key",
    403: "a key without this right",
    404: "no such model, version or session",
    408: "begun and not finished in time",
    409: "what it goes on from is no longer so, or its id is taken",
    413: "too large, on the wire or unpacked",
    415: "compressed as nothing that is read here",
    426: "a WebSocket is spoken here: send its handshake",
    429: "as much waits for this model as may",
    431: "headers too large",
    501: "nothing like it exists here",
    503: "busy or not ready",
    504: "no answer within the time that it may take",
    507: "the disk is full; nothing was acknowledged",
}


class Path(msgspec.Struct, frozen=True):
    """A route. `answer`: a schema, a media type, or empty: refused at all times; `refusals`: statuses beside those that
    any route can give."""

    url: str
    summary: str
    answer: str
    refusals: tuple[int, ...] = ()
    body: str = ""
    optional: bool = False  # the body

    @property
    def method(self) -> str:
        """Its one method; HEAD goes wherever GET does."""
        return "post" if self.body else "get"


_CALL = (403, 404, 409, 429, 504)
PATHS: tuple[Path, ...] = (
    Path("/", "Name, version and routes", "Service"),
    Path("/openapi.json", "This document", "Document"),
    Path("/metrics", "Every counter, as Prometheus reads it", PROMETHEUS, (403,)),
    Path("/v2", "The server and its protocol extensions", "Server"),
    Path("/v2/health/live", "Whether the process answers at all", "Live"),
    Path("/v2/health/ready", "Whether every model answers; 503 before that", "Ready"),
    Path("/v2/models", "Every model that answers", "Models"),
    Path("/v2/models/stats", "What every version has done", "Statistics"),
    Path("/v2/models/{model}{version}", "Inputs and outputs of a model", "Model", (404,)),
    Path("/v2/models/{model}{version}/ready", "Whether it answers", "ModelReady", (404,)),
    Path("/v2/models/{model}{version}/config", "How it is batched", "ModelConfig", (404,)),
    Path("/v2/models/{model}{version}/stats", "What it has done", "Statistics", (404,)),
    Path("/v2/models/{model}/sequences/{token}", "Where a session stands", "Sequence", (403, 404)),
    Path("/v2/models/{model}{version}/infer", "Outputs for named tensors", "InferAnswer", _CALL, "InferRequest"),
    Path("/v2/repository/index", "Every version of the repository", "Index", (), "IndexRequest", True),
    Path(
        "/v2/repository/models/{model}/load", "Serve it as the repository has it", "Ready", (403, 404), "Control", True
    ),
    Path("/v2/repository/models/{model}/unload", "Stop serving it", "Ready", (403, 404), "Control", True),
    Path("/v1/recommend", "A list, or candidates in rank order", "Recommended", (*_CALL, 507), "RecommendRequest"),
    Path("/v1/similar", "A list of items like one", "Listing", (*_CALL, 507), "SimilarRequest"),
    Path("/v1/items", "What items there are", "Accepted", (403, 404, 429, 507), "Items"),
    Path("/v1/users", "What users there are", "Accepted", (403, 404, 429, 507), "Users"),
    Path("/v1/users/merge", "Which visitors are which users", "Accepted", (403, 404, 429, 507), "Merges"),
    Path("/v1/outcomes", "What people did", "Accepted", (403, 404, 429, 504, 507), "Outcomes"),
    Path("/v1/features/get", "Features of entities", "Features", (403, 404, 429), "FeaturesRequest"),
    Path("/v1/speech", "Live speech: a handshake (RFC 6455), then the messages of a session", "", (403, 404, 426, 501)),
    Path("/v1/audio/transcriptions", "A recording as text", "Transcription", (403, 404, 429, 504), "Recording"),
    Path("/v1/features/write", "Facts that features are made of", "Accepted", (403, 404, 429, 507), "Facts"),
)
PATHS += (
    Path("/v1/traffic/{model}", "Who gets which version", "Traffic", (403, 404)),
    Path("/v1/traffic/{model}/comparison", "What its shadows say", "Comparison", (403, 404)),
    *(
        Path(f"/v1/traffic/{{model}}/{verb}", str(move.__doc__), "Policy", (403, 404, 409, 507), move.__name__)
        for verb, move in MOVES.items()
    ),
)
for _memory in ("systemsharedmemory", "cudasharedmemory"):
    for _region in ("", "/region/{region}"):
        PATHS += (
            Path(f"/v2/{_memory}{_region}/status", "Shared memory: there is none", "Nothing"),
            Path(f"/v2/{_memory}{_region}/unregister", "There is nothing to forget", "Done", (), "Anything", True),
        )
    PATHS += (Path(f"/v2/{_memory}/region/{{region}}/register", "Not shared here", "", (501,), "Anything", True),)
for _url in ("/v2/trace/setting", "/v2/models/{model}/trace/setting", "/v2/logging"):
    PATHS += (Path(_url, "Not set here", "", (501,)), Path(_url, "Not set here", "", (501,), "Anything", True))
_SCHEMAS = SCHEMAS | traffic.SCHEMAS | {"Document": {"type": "object", "required": ["openapi", "info", "paths"]}}
_PARAMETERS: dict[str, tuple[str, Schema, str]] = {
    "model": ("path", words(minLength=1), "its name in the repository"),
    "version": ("path", words(minLength=1), "asked for by name: policy does not choose"),
    "token": ("path", words(minLength=1), "resume_token of an answer"),
    "region": ("path", words(minLength=1), "any name"),
    "X-Request-Id": (
        "header",
        words(TEXT_CHARS_MAX, minLength=1, pattern="^[!-~]+$"),
        "the id of a request whose body has none",
    ),
    HEADER: ("header", {"enum": ["1", "0"]}, "1: say where the time went, in a header of the answer"),
    "Inference-Header-Content-Length": (
        "header",
        words(pattern="^[0-9]{1,12}$"),
        "bytes of JSON before the binary tensors, unpacked",
    ),
}


def document() -> dict[str, object]:
    """The document, as JSON has it."""
    paths: dict[str, dict[str, object]] = {}
    for path in PATHS:
        for url in _urls(path.url):
            paths.setdefault(url, {})[path.method] = _operation(path, url)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Millstream", "version": millstream.__version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "parameters": {name: _parameter(name) for name in _PARAMETERS},
            "responses": {str(status): _refusal(status) for status in _REFUSED},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _urls(url: str) -> tuple[str, ...]:
    versioned = url.replace("{version}", VERSIONED)
    return (versioned,) if versioned == url else (url.replace("{version}", ""), versioned)


def _operation(path: Path, url: str) -> dict[str, object]:
    infer, openai = path.answer == "InferAnswer", path.answer == "Transcription"
    named = [name for name in ("model", "version", "token", "region") if f"{{{name}}}" in url]
    named += ["X-Request-Id"] if infer or path.answer == "Ranked" else []
    named += [HEADER, "Inference-Header-Content-Length"] if infer else []
    refusals = sorted({*_ANY, *path.refusals, *(() if path.url in _OPEN else (401,))})
    operation: dict[str, object] = {
        "operationId": _ident(path.method, url),
        "summary": path.summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in named],
        "responses": ({"200": _answer(path)} if path.answer else {})
        | {str(s): _nested(s) if openai else {"$ref": f"#/components/responses/{s}"} for s in refusals},
        "security": [] if path.url in _OPEN else [{}, {"key": []}],
    }
    if path.body:
        content: dict[str, object] = {FORM if path.body == "Recording" else JSON: {"schema": ref(path.body)}}
        if infer:
            content[BYTES] = {"schema": {"description": "InferRequest as JSON, then the raw tensors"}}
        operation["requestBody"] = {"required": not path.optional, "content": content}
    return operation


def _ident(method: str, url: str) -> str:
    return "_".join([method, *(part.strip("{}") for part in url.split("/") if part)]).replace(".", "_")


def _answer(path: Path) -> dict[str, object]:
    if path.answer == PROMETHEUS:
        return {"description": path.summary, "content": {PROMETHEUS: {"schema": words()}}}
    content: dict[str, object] = {JSON: {"schema": ref(path.answer)}}
    found: dict[str, object] = {"description": path.summary, "content": content}
    if path.answer == "InferAnswer":
        content[BYTES] = {"schema": {"description": "InferAnswer as JSON, then the raw tensors"}}
        found["headers"] = {
            "Inference-Header-Content-Length": _header("bytes of JSON before the binary tensors, unpacked"),
            HEADER: _header("version, queue_us, mates, rows, padding, copy_us, compute_us: a structured dictionary"),
        }
    if path.answer == "Transcription":
        content |= {kind: {"schema": words()} for kind in ("text/plain", "text/vtt")}
    if path.answer == "Features":
        content[BYTES] = {"schema": {"description": "the values, row after row, little-endian"}}
        found["headers"] = {f"Millstream-{name}": _header(said) for name, said in FEATURES_SAID.items()}
    return found


def _refusal(status: int) -> dict[str, object]:
    found: dict[str, object] = {"description": _REFUSED[status], "content": {JSON: {"schema": ref("Refusal")}}}
    if status in (429, 503):
        found["headers"] = {"Retry-After": _header("seconds until it is worth trying again")}
    elif status == 401:
        found["headers"] = {"WWW-Authenticate": _header("Bearer")}
    return found


def _nested(status: int) -> dict[str, object]:
    """A refusal as OpenAI's clients read it."""
    return _refusal(status) | {"content": {JSON: {"schema": ref("NestedRefusal")}}}


def _header(description: str) -> dict[str, object]:
    return {"description": description, "schema": words()}


def _parameter(name: str) -> dict[str, object]:
    place, schema, description = _PARAMETERS[name]
    return {"name": name, "in": place, "required": place == "path", "description": description, "schema": schema}
