"""A served version's configuration and statistics as Triton's clients read them, for JSON and for messages alike.

Rules of the room:
- Field names, units and letters are those of Triton's model configuration and statistics extensions.
- Only what is true here is said; a field that would hold its default is left out.
- A queue's bound is in rows here, as is everything about batches.
"""

from __future__ import annotations

from millstream.types import BatchStatistics, Config, Spent, Statistics, TensorSpec

Document = dict[str, object]
ONNX = "onnxruntime_onnx"


def config(config: Config) -> Document:
    """The model configuration: `dims` are without the row where rows join (`max_batch_size` above 0)."""
    described = config.description
    specs = described.inputs + described.outputs
    rows_max = config.rows_max if all(spec.shape[:1] == (-1,) for spec in specs) else 0
    document: Document = {
        "name": described.model,
        "platform": described.platform,
        "backend": "onnxruntime" if described.platform == ONNX else "millstream",
        "version_policy": {"specific": {"versions": [int(v) for v in described.versions if v.isdigit()]}},
        "max_batch_size": rows_max,
        "input": [_tensor(spec, rows_max) for spec in described.inputs],
        "output": [_tensor(spec, rows_max) for spec in described.outputs],
        "instance_group": [_instances(config)],
        "model_transaction_policy": {"decoupled": False},
    }
    if described.platform == ONNX:
        document["default_model_filename"] = "model.onnx"
    if config.sessions:
        document["sequence_batching"] = {
            "max_sequence_idle_microseconds": _microseconds(config.idle_s),
            "oldest": {
                "max_candidate_sequences": config.sessions,
                "preferred_batch_size": list(config.preferred),
                "max_queue_delay_microseconds": _microseconds(config.wait_s),
            },
        }
    elif rows_max:
        document["dynamic_batching"] = _batching(config)
    if config.p99_s:
        document["parameters"] = {"p99_ms": {"string_value": f"{config.p99_s * 1e3:g}"}}
    return document


def statistics(all: list[Statistics]) -> Document:
    """The answer of the statistics extension; durations in nanoseconds, `last_inference` in unix milliseconds."""
    return {"model_stats": [_model(one) for one in all]}


def _tensor(spec: TensorSpec, rows_max: int) -> Document:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape[1 if rows_max else 0 :])}


def _instances(config: Config) -> Document:
    kind, _, number = config.device.partition(":")
    group: Document = {"name": f"{config.description.model}_0", "count": config.instances}
    if kind == "cpu":
        return {**group, "kind": "KIND_CPU"}
    return {**group, "kind": "KIND_GPU", "gpus": [int(number) if number.isdigit() else 0]}


def _batching(config: Config) -> Document:
    policy: Document = {"allow_timeout_override": True}
    if config.timeout_s:
        policy["default_timeout_microseconds"] = _microseconds(config.timeout_s)
    if config.queue_rows_max:
        policy["max_queue_size"] = config.queue_rows_max
    return {
        "preferred_batch_size": list(config.preferred),
        "max_queue_delay_microseconds": _microseconds(config.wait_s),
        "default_queue_policy": policy,
    }


def _model(one: Statistics) -> Document:
    nothing = _spent(Spent())
    return {
        "name": one.model,
        "version": one.version,
        "last_inference": one.last_ms,
        "inference_count": one.rows,
        "execution_count": one.batches,
        "inference_stats": {
            "success": _spent(one.success),
            "fail": _spent(one.fail),
            "queue": _spent(one.queue),
            "compute_input": _spent(one.copy),
            "compute_infer": _spent(one.compute),
            "compute_output": _spent(one.split),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [_batches(batch) for batch in one.by_rows],
    }


def _batches(batch: BatchStatistics) -> Document:
    return {
        "batch_size": batch.rows,
        "compute_input": _spent(batch.copy),
        "compute_infer": _spent(batch.compute),
        "compute_output": _spent(batch.split),
    }


def _spent(spent: Spent) -> Document:
    return {"count": spent.count, "ns": spent.ns}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
