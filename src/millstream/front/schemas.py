"""The JSON documents of the HTTP border as schemas (JSON Schema 2020-12), for its OpenAPI document.

Rules of the room:
- A schema is as strict as the code that reads or writes the document, as far as JSON Schema can say it.
- Documents that we write list every field; `required` are those that are always there.
"""

from __future__ import annotations

from millstream.front.parameters import COUNT_MAX, TEXT_CHARS_MAX, TOKEN_CHARS_MAX
from millstream.front.recommend import TEXT_CHARS_MAX as WORDS_CHARS_MAX
from millstream.types import DTYPES

Schema = dict[str, object]


def ref(name: str) -> Schema:
    """A schema of SCHEMAS by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema, **more: object) -> Schema:
    """A list of them."""
    return {"type": "array", "items": items, **more}


def thing(required: dict[str, Schema], optional: dict[str, Schema] | None = None, **more: object) -> Schema:
    """An object with these fields."""
    made: Schema = {"type": "object", "properties": {**required, **(optional or {})}, **more}
    return {**made, "required": list(required)} if required else made


def count(least: int = 0, most: int | None = None, **more: object) -> Schema:
    """An integer."""
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most}), **more}


def words(most: int | None = None, **more: object) -> Schema:
    """A string."""
    return {"type": "string", **({} if most is None else {"maxLength": most}), **more}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
DATATYPE: Schema = {"type": "string", "enum": list(DTYPES)}
SHAPE = array(count(0, 2**31 - 1))
PICK = count(1, COUNT_MAX)
PARAMETERS = thing({}, description="what a client says for itself means nothing here")
SPENT = thing({"count": count(), "ns": count()})
SPEC = thing({"name": TEXT, "datatype": DATATYPE, "shape": array({"type": "integer", "minimum": -1})})
STANDING: dict[str, Schema] = {"sequence_id": TEXT, "sequence_step": count(), "resume_token": TEXT}
SIZE = count(0, 2**31 - 1, description="bytes after the JSON, in the order of the tensors")
NAMED = thing({"name": TEXT, "data_type": words(pattern="^TYPE_"), "dims": array({"type": "integer"})})
STRINGS = thing({}, additionalProperties=thing({"string_value": TEXT}))
QUEUE_POLICY = thing(
    {"allow_timeout_override": FLAG}, {"default_timeout_microseconds": count(), "max_queue_size": count()}
)
SIZES = array(count(1))

_VALUE: dict[str, object] = {"type": ["string", "number", "boolean", "null"]}
ENTITY = thing(
    {"id": words(minLength=1)},
    additionalProperties={"oneOf": [_VALUE, array({"type": ["string", "number"]})]},
    description="its attributes beside the id",
)
TENANT = words(description="whose these names are, where there are tenants")
WISH: dict[str, Schema] = {
    "id": words(WORDS_CHARS_MAX),
    "user": words(WORDS_CHARS_MAX),
    "visitor": words(WORDS_CHARS_MAX),
    "placement": TEXT,
    "n": count(),
    "exclude": array(TEXT),
    "context": thing({}, additionalProperties={"type": ["string", "number", "boolean"]}),
    "explain": FLAG,
    "event_time": NUMBER,
    "tenant": TENANT,
}

SCHEMAS: dict[str, Schema] = {
    "Refusal": thing({"error": words(description="what was wrong, where, what was got, what to do")}),
    "Service": thing({"name": TEXT, "version": TEXT, "docs": TEXT, "routes": thing({}, additionalProperties=TEXT)}),
    "Server": thing({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
    "Live": thing({"live": {"const": True}}),
    "Ready": thing({"ready": FLAG}),
    "ModelReady": thing({"name": TEXT, "ready": {"const": True}}),
    "Model": thing(
        {
            "name": TEXT,
            "versions": array(TEXT),
            "platform": TEXT,
            "inputs": array(ref("TensorSpec")),
            "outputs": array(ref("TensorSpec")),
        }
    ),
    "Models": thing({"models": array(ref("Model"))}),
    "TensorSpec": SPEC,
    "InferRequest": thing(
        {"inputs": array(ref("InputTensor"), minItems=1)},
        {
            "id": words(TEXT_CHARS_MAX),
            "outputs": array(ref("OutputWish")),
            "parameters": ref("RequestParameters"),
        },
    ),
    "InputTensor": thing(
        {"name": TEXT, "datatype": DATATYPE, "shape": SHAPE},
        {
            "data": array({}, description="flat in row order, or nested like the shape"),
            "parameters": thing({}, {"binary_data_size": SIZE}),
        },
    ),
    "OutputWish": thing(
        {"name": TEXT},
        {"parameters": thing({}, {"binary_data": FLAG, "top_k": PICK, "classification": PICK})},
    ),
    "RequestParameters": thing(
        {},
        {
            "key": words(TEXT_CHARS_MAX, description="makes a split sticky, as a user id does"),
            "binary_data_output": FLAG,
            "priority": count(0, COUNT_MAX, description="lower goes first"),
            "timeout": count(1, COUNT_MAX, description="microseconds"),
            "explain": FLAG,
            "sequence_id": {"oneOf": [count(0, 2**64 - 1), words(TEXT_CHARS_MAX)]},
            "sequence_start": FLAG,
            "sequence_end": FLAG,
            "sequence_step": count(1, COUNT_MAX),
            "resume_token": words(TOKEN_CHARS_MAX),
        },
    ),
    "InferAnswer": thing(
        {
            "id": TEXT,
            "model_name": TEXT,
            "model_version": words(description="version@delta"),
            "parameters": thing({"arm": TEXT, "policy": count()}, STANDING),
            "outputs": array(ref("OutputTensor")),
        }
    ),
    "OutputTensor": thing(
        {"name": TEXT, "datatype": DATATYPE, "shape": SHAPE},
        {
            "data": array({"type": ["number", "boolean", "string", "null"]}),
            "parameters": thing({"binary_data_size": SIZE}),
        },
    ),
    "Sequence": thing({"model_name": TEXT, **STANDING}),
    "ModelConfig": thing(
        {
            "name": TEXT,
            "platform": TEXT,
            "backend": TEXT,
            "version_policy": thing({"specific": thing({"versions": array(count())})}),
            "max_batch_size": count(),
            "input": array(NAMED),
            "output": array(NAMED),
            "instance_group": array(thing({"kind": {"enum": ["KIND_CPU", "KIND_GPU"]}}, {"gpus": array(count())})),
            "model_transaction_policy": thing({"decoupled": FLAG}),
        },
        {
            "default_model_filename": TEXT,
            "dynamic_batching": thing(
                {
                    "preferred_batch_size": SIZES,
                    "max_queue_delay_microseconds": count(),
                    "default_queue_policy": QUEUE_POLICY,
                }
            ),
            "sequence_batching": thing(
                {
                    "max_sequence_idle_microseconds": count(),
                    "oldest": thing(
                        {
                            "max_candidate_sequences": count(1),
                            "preferred_batch_size": SIZES,
                            "max_queue_delay_microseconds": count(),
                        }
                    ),
                }
            ),
            "parameters": STRINGS,
        },
    ),
    "Statistics": thing({"model_stats": array(ref("ModelStatistics"))}),
    "ModelStatistics": thing(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": count(description="unix milliseconds; 0: none"),
            "inference_count": count(description="rows"),
            "execution_count": count(description="batches"),
            "inference_stats": thing(
                dict.fromkeys(
                    (
                        "success",
                        "fail",
                        "queue",
                        "compute_input",
                        "compute_infer",
                        "compute_output",
                        "cache_hit",
                        "cache_miss",
                    ),
                    SPENT,
                )
            ),
            "batch_stats": array(
                thing(
                    {"batch_size": count()} | dict.fromkeys(("compute_input", "compute_infer", "compute_output"), SPENT)
                )
            ),
        }
    ),
    "IndexRequest": thing({}, {"ready": FLAG}),
    "Index": array(
        thing(
            {
                "name": TEXT,
                "version": TEXT,
                "state": {"enum": ["READY", "LOADING", "UNAVAILABLE", "UNLOADED"]},
                "reason": TEXT,
            }
        )
    ),
    "Nothing": array({}, maxItems=0),
    "Done": thing({}, additionalProperties=False),
    "Anything": thing({}),
    "Control": thing({}, {"parameters": thing({}, {"unload_dependents": FLAG}, additionalProperties=False)}),
    "RecommendRequest": {
        "anyOf": [
            thing(
                {
                    "user": words(WORDS_CHARS_MAX, minLength=1),
                    "candidates": array(words(WORDS_CHARS_MAX), minItems=1),
                },
                {"id": words(WORDS_CHARS_MAX), "model": TEXT, "event_time": NUMBER, "tenant": TENANT},
                additionalProperties=False,
                description="these in rank order",
            ),
            thing(
                {},
                {
                    **WISH,
                    "candidates": array(words(WORDS_CHARS_MAX), description="may come beside what is recalled"),
                    "cursor": words(WORDS_CHARS_MAX, description="of the page before"),
                },
                additionalProperties=False,
                description="a list for somebody",
            ),
        ]
    },
    "SimilarRequest": thing({"item": words(WORDS_CHARS_MAX, minLength=1)}, WISH, additionalProperties=False),
    "Listing": thing(
        {
            "id": TEXT,
            "model": TEXT,
            "version": TEXT,
            "items": array(
                thing({"item": TEXT, "score": NUMBER}, {"reasons": array(TEXT), "price": NUMBER, "why": thing({})}),
            ),
        },
        {"arm": TEXT, "cursor": TEXT, "missed": array(TEXT), "relaxed": thing({}, additionalProperties=count())},
    ),
    "Recommended": {"anyOf": [ref("Listing"), ref("Ranked")]},
    "Items": thing({"items": array(ENTITY, minItems=1)}, {"tenant": TENANT}, additionalProperties=False),
    "Users": thing({"users": array(ENTITY, minItems=1)}, {"tenant": TENANT}, additionalProperties=False),
    "Merges": thing(
        {
            "merges": array(
                thing(
                    {"visitor": words(minLength=1), "user": words(minLength=1)},
                    {"event_time": NUMBER},
                    additionalProperties=False,
                ),
                minItems=1,
            )
        },
        {"tenant": TENANT},
        additionalProperties=False,
    ),
    "Ranked": thing(
        {"id": TEXT, "model": TEXT, "version": TEXT, "items": array(thing({"item": TEXT, "score": NUMBER}))}
    ),
    "Outcome": thing(
        {"kind": words(WORDS_CHARS_MAX, minLength=1)},
        {
            "type": {"const": "outcome"},
            "request": words(WORDS_CHARS_MAX),
            "item": words(WORDS_CHARS_MAX),
            "value": NUMBER,
            "event_time": NUMBER,
            "id": words(WORDS_CHARS_MAX),
            "text": TEXT,
            "tenant": TENANT,
        },
        additionalProperties=False,
    ),
    "Outcomes": {
        "oneOf": [
            ref("Outcome"),
            array(ref("Outcome"), minItems=1),
            thing({"outcomes": array(ref("Outcome"), minItems=1)}, additionalProperties=False),
        ]
    },
    "FeaturesRequest": thing(
        {"set": TEXT},
        {
            "entities": thing({}, additionalProperties=array(TEXT), description="names by kind: n of each, or one"),
            "request": thing({}, additionalProperties=array({"type": ["number", "null"]})),
            "as": {"enum": ["json", "binary"]},
        },
        additionalProperties=False,
    ),
    "Features": thing(
        {
            "set": TEXT,
            "hash": TEXT,
            "columns": array(TEXT),
            "values": array(array({"type": ["number", "null"]}), description="a row each; null: a missing number"),
            "missing": thing({}, additionalProperties=array(FLAG)),
            "age_s": NUMBER,
            "stale": FLAG,
        }
    ),
    "Facts": thing(
        {
            "source": TEXT,
            "rows": array(
                thing(
                    {},
                    {"event_time": {"type": ["number", "null"]}},
                    additionalProperties={"type": ["string", "number", "null"]},
                ),
                minItems=1,
            ),
        },
        additionalProperties=False,
    ),
    "Accepted": thing({"accepted": count(1)}),
    "Recording": thing(
        {"file": words(contentMediaType="application/octet-stream", minLength=1), "model": words(128, minLength=1)},
        {
            "language": words(40),
            "prompt": words(4096),
            "response_format": {"enum": ["json", "text", "srt", "verbose_json", "vtt"]},
            "temperature": {"type": "number", "minimum": 0, "maximum": 1},
        },
    ),
    "NestedRefusal": thing({"error": thing({"message": TEXT, "type": TEXT})}),
    "Transcription": thing({"text": TEXT}, {"language": TEXT, "duration": NUMBER, "words": array(thing({}))}),
}
