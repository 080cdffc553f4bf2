"""The messages of the V2 protocol over gRPC, out of one table: package `inference`, and gRPC's own health check.

Source: Open Inference Protocol V2 (KServe) and Triton's extensions of it; names, numbers and types are theirs.

Rules of the room:
- The pool of descriptors is our own, so a client library with the same messages may live in the same process.
- Of Triton's model configuration only what is ever said here is declared; a reader sees the rest as not set.
- A table's line: NAME TYPE NUMBER, the TYPE with `*` when repeated and `%` for a map from string, the NUMBER with
  `/CHOICE` inside a oneof. An enum's values count from 0.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE = "inference"
HEALTH = "grpc.health.v1"
Message = Any
"""An object of a class that is made at import: its fields are those of the table."""

_INFERENCE = """
ServerLiveRequest:
ServerLiveResponse: live bool 1
ServerReadyRequest:
ServerReadyResponse: ready bool 1
ModelReadyRequest: name string 1, version string 2
ModelReadyResponse: ready bool 1
ServerMetadataRequest:
ServerMetadataResponse: name string 1, version string 2, extensions string* 3
ModelMetadataRequest: name string 1, version string 2
ModelMetadataResponse: name string 1, versions string* 2, platform string 3,
 inputs ModelMetadataResponse.TensorMetadata* 4, outputs ModelMetadataResponse.TensorMetadata* 5
ModelMetadataResponse.TensorMetadata: name string 1, datatype string 2, shape int64* 3

InferParameter: bool_param bool 1/parameter_choice, int64_param int64 2/parameter_choice,
 string_param string 3/parameter_choice, double_param double 4/parameter_choice, uint64_param uint64 5/parameter_choice
InferTensorContents: bool_contents bool* 1, int_contents int32* 2, int64_contents int64* 3, uint_contents uint32* 4,
 uint64_contents uint64* 5, fp32_contents float* 6, fp64_contents double* 7, bytes_contents bytes* 8
ModelInferRequest: model_name string 1, model_version string 2, id string 3, parameters InferParameter% 4,
 inputs ModelInferRequest.InferInputTensor* 5, outputs ModelInferRequest.InferRequestedOutputTensor* 6,
 raw_input_contents bytes* 7
ModelInferRequest.InferInputTensor: name string 1, datatype string 2, shape int64* 3, parameters InferParameter% 4,
 contents InferTensorContents 5
ModelInferRequest.InferRequestedOutputTensor: name string 1, parameters InferParameter% 2
ModelInferResponse: model_name string 1, model_version string 2, id string 3, parameters InferParameter% 4,
 outputs ModelInferResponse.InferOutputTensor* 5, raw_output_contents bytes* 6
ModelInferResponse.InferOutputTensor: name string 1, datatype string 2, shape int64* 3, parameters InferParameter% 4,
 contents InferTensorContents 5
ModelStreamInferResponse: error_message string 1, infer_response ModelInferResponse 2

ModelConfigRequest: name string 1, version string 2
ModelConfigResponse: config ModelConfig 1
ModelConfig: name string 1, platform string 2, version_policy ModelVersionPolicy 3, max_batch_size int32 4,
 input ModelInput* 5, output ModelOutput* 6, instance_group ModelInstanceGroup* 7, default_model_filename string 8,
 dynamic_batching ModelDynamicBatching 11/scheduling_choice, parameters ModelParameter% 14,
 sequence_batching ModelSequenceBatching 13/scheduling_choice, backend string 17,
 model_transaction_policy ModelTransactionPolicy 19
ModelVersionPolicy: specific ModelVersionPolicy.Specific 3/policy_choice
ModelVersionPolicy.Specific: versions int64* 1
ModelInput: name string 1, data_type DataType 2, dims int64* 4
ModelOutput: name string 1, data_type DataType 2, dims int64* 3
ModelInstanceGroup: name string 1, count int32 2, gpus int32* 3, kind ModelInstanceGroup.Kind 4
ModelQueuePolicy: default_timeout_microseconds uint64 2, allow_timeout_override bool 3, max_queue_size uint32 4
ModelDynamicBatching: preferred_batch_size int32* 1, max_queue_delay_microseconds uint64 2,
 default_queue_policy ModelQueuePolicy 6
ModelSequenceBatching: max_sequence_idle_microseconds uint64 1,
 oldest ModelSequenceBatching.StrategyOldest 4/strategy_choice
ModelSequenceBatching.StrategyOldest: max_candidate_sequences int32 1, preferred_batch_size int32* 2,
 max_queue_delay_microseconds uint64 3
ModelParameter: string_value string 1
ModelTransactionPolicy: decoupled bool 1
enum DataType: TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16 TYPE_INT32
 TYPE_INT64 TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16
enum ModelInstanceGroup.Kind: KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL

ModelStatisticsRequest: name string 1, version string 2
ModelStatisticsResponse: model_stats ModelStatistics* 1
StatisticDuration: count uint64 1, ns uint64 2
InferStatistics: success StatisticDuration 1, fail StatisticDuration 2, queue StatisticDuration 3,
 compute_input StatisticDuration 4, compute_infer StatisticDuration 5, compute_output StatisticDuration 6,
 cache_hit StatisticDuration 7, cache_miss StatisticDuration 8
InferBatchStatistics: batch_size uint64 1, compute_input StatisticDuration 2, compute_infer StatisticDuration 3,
 compute_output StatisticDuration 4
ModelStatistics: name string 1, version string 2, last_inference uint64 3, inference_count uint64 4,
 execution_count uint64 5, inference_stats InferStatistics 6, batch_stats InferBatchStatistics* 7

ModelRepositoryParameter: bool_param bool 1/parameter_choice, int64_param int64 2/parameter_choice,
 string_param string 3/parameter_choice, bytes_param bytes 4/parameter_choice
RepositoryIndexRequest: repository_name string 1, ready bool 2
RepositoryIndexResponse: models RepositoryIndexResponse.ModelIndex* 1
RepositoryIndexResponse.ModelIndex: name string 1, version string 2, state string 3, reason string 4
RepositoryModelLoadRequest: repository_name string 1, model_name string 2, parameters ModelRepositoryParameter% 3
RepositoryModelLoadResponse:
RepositoryModelUnloadRequest: repository_name string 1, model_name string 2, parameters ModelRepositoryParameter% 3
RepositoryModelUnloadResponse:

SystemSharedMemoryStatusRequest: name string 1
SystemSharedMemoryStatusResponse: regions SystemSharedMemoryStatusResponse.RegionStatus% 1
SystemSharedMemoryStatusResponse.RegionStatus: name string 1, key string 2, offset uint64 3, byte_size uint64 4
SystemSharedMemoryRegisterRequest: name string 1, key string 2, offset uint64 3, byte_size uint64 4
SystemSharedMemoryRegisterResponse:
SystemSharedMemoryUnregisterRequest: name string 1
SystemSharedMemoryUnregisterResponse:
CudaSharedMemoryStatusRequest: name string 1
CudaSharedMemoryStatusResponse: regions CudaSharedMemoryStatusResponse.RegionStatus% 1
CudaSharedMemoryStatusResponse.RegionStatus: name string 1, device_id uint64 2, byte_size uint64 3
CudaSharedMemoryRegisterRequest: name string 1, raw_handle bytes 2, device_id int64 3, byte_size uint64 4
CudaSharedMemoryRegisterResponse:
CudaSharedMemoryUnregisterRequest: name string 1
CudaSharedMemoryUnregisterResponse:

TraceSettingRequest: settings TraceSettingRequest.SettingValue% 1, model_name string 2
TraceSettingRequest.SettingValue: value string* 1
TraceSettingResponse: settings TraceSettingResponse.SettingValue% 1
TraceSettingResponse.SettingValue: value string* 1
LogSettingsRequest: settings LogSettingsRequest.SettingValue% 1
LogSettingsRequest.SettingValue: bool_param bool 1/parameter_choice, uint32_param uint32 2/parameter_choice,
 string_param string 3/parameter_choice
LogSettingsResponse: settings LogSettingsResponse.SettingValue% 1
LogSettingsResponse.SettingValue: bool_param bool 1/parameter_choice, uint32_param uint32 2/parameter_choice,
 string_param string 3/parameter_choice
"""
_HEALTH = """
HealthCheckRequest: service string 1
HealthCheckResponse: status HealthCheckResponse.ServingStatus 1
enum HealthCheckResponse.ServingStatus: UNKNOWN SERVING NOT_SERVING SERVICE_UNKNOWN
"""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: dict[str, Any] = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def _file(package: str, table: str) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    lines = [line.partition(":") for line in table.replace("\n ", " ").splitlines() if line]
    enums = {head.removeprefix("enum ") for head, _, _ in lines if head.startswith("enum ")}
    for head, _, body in lines:
        outer, _, name = head.removeprefix("enum ").rpartition(".")
        if head.startswith("enum "):
            holder = made[outer] if outer else file
            enum = holder.enum_type.add(name=name)
            for number, value in enumerate(body.split()):
                enum.value.add(name=value, number=number)
            continue
        message = made[head] = (made[outer].nested_type if outer else file.message_type).add(name=name)
        for field in filter(None, map(str.strip, body.split(","))):
            _add(message, f"{package}.{head}", field.split(), package, enums)
    return file


def _add(message: descriptor_pb2.DescriptorProto, path: str, words: list[str], package: str, enums: set[str]) -> None:
    """One field: what it is called, its type and its number, as the table has them."""
    name, kind, (number, _, choice) = words[0], words[1], words[2].partition("/")
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind[-1] in "*%":
        field.label = _Field.LABEL_REPEATED
    plain = kind.rstrip("*%")
    if kind[-1] == "%":
        entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        _add(entry, f"{path}.{entry.name}", ["value", plain, "2"], package, enums)
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{path}.{entry.name}"
    elif plain in _SCALARS:
        field.type = _SCALARS[plain]
    else:
        field.type = _Field.TYPE_ENUM if plain in enums else _Field.TYPE_MESSAGE
        field.type_name = f".{package}.{plain}"
    if choice:
        known = [oneof.name for oneof in message.oneof_decl]
        if choice not in known:
            message.oneof_decl.add(name=choice)
            known.append(choice)
        field.oneof_index = known.index(choice)


def classes_of(**tables: str) -> dict[str, Any]:
    """Every message of tables by package that stands on its own, by its full name."""
    pool = descriptor_pool.DescriptorPool()
    classes: dict[str, Any] = {}
    for package, table in tables.items():
        file = _file(package, table)
        pool.Add(file)
        for message in file.message_type:
            full = f"{package}.{message.name}"
            classes[full] = message_factory.GetMessageClass(pool.FindMessageTypeByName(full))
    return classes


CLASSES: dict[str, Any] = classes_of(**{INFERENCE: _INFERENCE, HEALTH: _HEALTH})
"""Every message that stands on its own, by its full name."""


def of(name: str) -> Any:
    """The class of message `inference.NAME`."""
    return CLASSES[f"{INFERENCE}.{name}"]
