"""Triton's own gRPC clients, unchanged, against the real server; and mistakes, in the same words as over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from bad_input import CASES, Case
from grpc_house import GrpcServed, until
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from millstream import errors
from millstream.types import DTYPES, Principal, Request

LARGE = np.arange(60_000, dtype=np.float32).reshape(20_000, 3) % 7
NO_MODEL = "no model 'nobody'"


@pytest.fixture(scope="module")
def house() -> Iterator[GrpcServed]:
    with GrpcServed() as served:
        yield served


@pytest.fixture
def client(house: GrpcServed) -> Iterator[Any]:
    with triton.InferenceServerClient(house.url) as client:
        yield client


@pytest.fixture
def stub(house: GrpcServed) -> Iterator[Any]:
    with grpc.insecure_channel(house.url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name: str, datatype: str, array: np.ndarray[Any, Any]) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def x(number: float = 1.0, rows: int = 1) -> Any:
    return tensor("x", "FP32", np.full((rows, 3), number, np.float32))


def values(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return np.array([["", "a"], ["é✓", "x" * 300]], object)
    return np.array([[0, 1], [1, 0]], triton_to_np_dtype(datatype))


def same(found: Any, sent: np.ndarray[Any, Any]) -> bool:
    if sent.dtype == object:
        return [v.decode() for v in found.ravel()] == sent.ravel().tolist()
    return bool((found == sent).all()) and found.shape == sent.shape


def refused(code: str, ask: Callable[[], object], words: str | None = None) -> str:
    with pytest.raises(InferenceServerException, match=words) as error:
        ask()
    assert error.value.status() == f"StatusCode.{code}", error.value
    return str(error.value.message())


# Every call of the client that means something here.


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("affine") and client.is_model_ready("affine", "2")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata(as_json=True)
    assert {"binary_tensor_data", "classification", "sequence", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata("affine", "1", as_json=True)
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert model["versions"] == ["1", "2"]
    refused("NOT_FOUND", lambda: client.get_model_metadata("nobody"), NO_MODEL)
    refused("NOT_FOUND", lambda: client.get_model_metadata("affine", "9"))


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_infer_every_datatype(client: Any, datatype: str) -> None:
    sent = values(datatype)
    for _ in range(2):  # the second time it is known
        found = client.infer(f"echo-{datatype}", [tensor("v", datatype, sent)], request_id="r")
        assert same(found.as_numpy("v"), sent)
        assert found.get_response().id == "r" and found.get_output("v").datatype == datatype
        wanted = client.infer(
            f"echo-{datatype}", [tensor("v", datatype, sent)], outputs=[triton.InferRequestedOutput("v")]
        )
        assert same(wanted.as_numpy("v"), sent)


TYPED = {
    "BOOL": ("bool_contents", [False, True]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -1.25]),
    "FP64": ("fp64_contents", [0.1, -1e300]),
    "BYTES": ("bytes_contents", [b"", "é".encode()]),
}


def typed(model: str, datatype: str, shape: list[int], **contents: Any) -> Any:
    message = service_pb2.ModelInferRequest(model_name=model)
    message.inputs.add(name="v", datatype=datatype, shape=shape, contents=contents)
    return message


@pytest.mark.parametrize("datatype", sorted(TYPED))
def test_typed_contents_of_every_datatype(stub: Any, datatype: str) -> None:
    field, sent = TYPED[datatype]
    answer = stub.ModelInfer(typed(f"echo-{datatype}", datatype, [1, 2], **{field: sent}))
    found = triton.InferResult(answer).as_numpy("v")
    assert found.tolist() == [sent]
    other = "bool_contents" if field != "bool_contents" else "int_contents"
    for contents, words in (
        ({other: [1]}, f"{datatype} values are in {other}; send them in {field}"),
        ({field: sent[:1]}, "1 values in data, shape [1, 2] has 2"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(typed(f"echo-{datatype}", datatype, [1, 2], **contents))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT and words in error.value.details()


def test_the_parameters_of_a_request_reach_the_door(house: GrpcServed, client: Any) -> None:
    client.infer("affine", [x()], model_version="2", priority=3, timeout=250_000, parameters={"key": "u7", "other": 1})
    request = house.door.calls[-1]
    assert isinstance(request, Request)
    assert (request.version, request.priority, request.timeout_s, request.key) == ("2", 3, 0.25, "u7")
    assert request.turn is None
    client.infer("affine", [x()], client_timeout=5.0, timeout=9_000_000, headers={"x-request-id": "mine"})
    request = house.door.calls[-1]
    assert isinstance(request, Request) and 4 < request.timeout_s < 6 and request.id == "mine"


@pytest.mark.parametrize("ident", [7, "room-1"])
def test_a_sequence(client: Any, ident: int | str) -> None:
    one = tensor("x", "FP32", np.ones((1, 1), np.float32))
    steps = [client.infer("count", [one], sequence_id=ident, sequence_start=s, sequence_end=e)
             for s, e in ((True, False), (False, False), (False, True))]  # fmt: skip
    assert [int(step.as_numpy("n")[0]) for step in steps] == [1, 2, 3]
    said = steps[1].get_response().parameters
    assert (said["sequence_id"].string_param, said["sequence_step"].int64_param) == (str(ident), 2)
    refused("NOT_FOUND", lambda: client.infer("count", [one], sequence_id=ident), "has ended")


def test_classification_and_top_k(client: Any, stub: Any) -> None:
    sent = np.array([[0.1, 0.9, 0.5], [3, 1, 2]], np.float32)
    wanted = [triton.InferRequestedOutput("v", class_count=2)]
    found = client.infer("echo-FP32", [tensor("v", "FP32", sent)], outputs=wanted)
    assert same(found.as_numpy("v"), np.array([["0.900000:1", "0.500000:2"], ["3.000000:0", "2.000000:2"]], object))
    message = service_pb2.ModelInferRequest(model_name="score", raw_input_contents=[sent[0].tobytes()])
    message.inputs.add(name="v", datatype="FP32", shape=[3])
    message.outputs.add(name="v").parameters["top_k"].int64_param = 2
    answer = triton.InferResult(stub.ModelInfer(message))
    assert answer.as_numpy("v").tolist() == [np.float32(0.9), 0.5] and answer.as_numpy("v_index").tolist() == [1, 2]


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_compression(client: Any, coding: str | None) -> None:
    sent = tensor("x", "FP32", LARGE)
    found = client.infer("affine", [sent], compression_algorithm=coding)
    assert found.as_numpy("y").shape == (20_000, 2)
    assert found.as_numpy("n").tolist() == list(range(20_000))


def test_configuration_and_statistics(client: Any) -> None:
    config = client.get_model_config("affine").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("affine", 64, [3])
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert client.get_model_config("count").config.WhichOneof("scheduling_choice") == "sequence_batching"
    (before,) = client.get_inference_statistics("pair", "1").model_stats
    two = np.ones((5, 2), np.int64)
    client.infer("pair", [tensor("a", "INT64", two), tensor("b", "FP32", np.ones(5, np.float32))])
    (after,) = client.get_inference_statistics("pair", "1").model_stats
    assert after.inference_count - before.inference_count == 5
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert {one.name for one in client.get_inference_statistics().model_stats} >= {"affine", "pair"}
    refused("NOT_FOUND", lambda: client.get_model_config("nobody"), NO_MODEL)
    refused("NOT_FOUND", lambda: client.get_inference_statistics("nobody"), NO_MODEL)


def test_the_repository(client: Any) -> None:
    def states() -> dict[str, str]:
        return {one.name: one.state for one in client.get_model_repository_index().models}

    assert states()["pair"] == "READY" and states()["broken"] == "UNAVAILABLE"
    client.unload_model("pair")
    assert states()["pair"] == "UNLOADED" and not client.is_model_ready("pair")
    client.load_model("pair")
    assert states()["pair"] == "READY" and client.is_model_ready("pair")
    refused("FAILED_PRECONDITION", lambda: client.load_model("broken"), "not an ONNX file")
    refused("NOT_FOUND", lambda: client.load_model("nobody"), "nobody")
    refused("INVALID_ARGUMENT", lambda: client.load_model("pair", config="{}"), "put a new version there")


def test_what_is_not_here_is_said(client: Any) -> None:
    assert not client.get_system_shared_memory_status().regions
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory("mine")
    shared, not_set = "memory is not shared with clients here", "not set here"
    refused("UNIMPLEMENTED", lambda: client.register_system_shared_memory("mine", "/mine", 64), shared)
    refused("UNIMPLEMENTED", lambda: client.register_cuda_shared_memory("mine", b"aGFuZGxl", 0, 64), shared)
    refused("UNIMPLEMENTED", client.get_trace_settings, not_set)
    refused("UNIMPLEMENTED", lambda: client.update_trace_settings("affine", {"trace_level": "OFF"}), not_set)
    refused("UNIMPLEMENTED", client.get_log_settings, not_set)
    refused("UNIMPLEMENTED", lambda: client.update_log_settings({"log_verbose_level": 1}), not_set)
    placed = triton.InferInput("x", [1, 3], "FP32")
    placed.set_shared_memory("mine", 12)
    refused("UNIMPLEMENTED", lambda: client.infer("affine", [placed]), "shared_memory_region")


def test_keys(house: GrpcServed, client: Any) -> None:
    house.door.keys = {"secret": Principal("a", ("affine:infer",))}
    try:
        known = {"authorization": "Bearer secret"}
        assert client.infer("affine", [x()], headers=known).as_numpy("y").tolist() == [[9.0, 12.0]]
        wrong = tensor("v", "FP64", np.ones((1, 1)))
        refused("PERMISSION_DENIED", lambda: client.infer("echo-FP32", [wrong], headers=known))
        refused("UNAUTHENTICATED", lambda: client.infer("affine", [x()]), "Bearer KEY")
        refused("UNAUTHENTICATED", lambda: client.get_model_metadata("affine"), "Bearer KEY")
        refused("PERMISSION_DENIED", lambda: client.unload_model("affine", headers=known))
        assert client.is_server_live() and client.is_server_ready()
    finally:
        house.door.keys = None


def test_an_explanation_comes_before_the_answer(stub: Any) -> None:
    message = service_pb2.ModelInferRequest(model_name="affine", raw_input_contents=[bytes(12)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    _, call = stub.ModelInfer.with_call(message, metadata=[("millstream-explain", "1")])
    assert dict(call.initial_metadata())["millstream-explain"].startswith('version="1", queue_us=120')


def test_async_infer(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for number in range(40):
        client.async_infer(
            "affine",
            [x(number, number % 5 + 1)],
            lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )
    client.async_infer("nobody", [x()], lambda result, error: answers.put((result, error)))
    found = [answers.get(timeout=10) for _ in range(41)]
    assert [error.status() for result, error in found if result is None] == ["StatusCode.NOT_FOUND"]
    for result in (result for result, _ in found if result is not None):
        number = int(result.get_response().id)
        assert result.as_numpy("y").tolist() == [[number * 9.0, number * 12.0]] * (number % 5 + 1)


def test_a_call_that_is_cancelled_gives_its_place_up(house: GrpcServed, client: Any) -> None:
    house.hold()
    answers: queue.Queue[Any] = queue.Queue()
    context = client.async_infer("affine", [x()], lambda result, error: answers.put(error))
    until(lambda: len(house.door.held or []) == 1)
    context.cancel()
    assert answers.get(timeout=10).status() == "StatusCode.CANCELLED"
    until(lambda: bool(house.door.held) and house.door.held[0][0].cancelled())
    house.release()


def test_a_client_s_time_is_a_deadline(house: GrpcServed, client: Any) -> None:
    house.hold()
    refused("DEADLINE_EXCEEDED", lambda: client.infer("affine", [x()], client_timeout=0.05))
    until(lambda: bool(house.door.held) and house.door.held[0][0].cancelled())
    house.release()
    assert client.infer("affine", [x()], client_timeout=5).as_numpy("y").tolist() == [[9.0, 12.0]]


# Streams.


def test_a_stream_of_sequences(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    one = tensor("x", "FP32", np.ones((1, 1), np.float32))
    for number in range(30):
        for sequence in ("a", "b"):
            client.async_stream_infer(
                "count",
                [one],
                request_id=f"{sequence}{number}",
                sequence_id=sequence,
                sequence_start=number == 0,
                sequence_end=number == 29,
                enable_empty_final_response=True,
            )
    client.async_stream_infer("nobody", [one], request_id="lost")
    client.async_stream_infer("affine", [x()], request_id="last")
    client.stop_stream()
    found = [answers.get(timeout=10) for _ in range(62)]
    ids = [result.get_response().id for result, error in found if error is None]
    assert ids == [f"{s}{n}" for n in range(30) for s in "ab"] + ["last"]
    assert [int(result.as_numpy("n")[0]) for result, _ in found[:60]] == [n for n in range(1, 31) for _ in "ab"]
    assert all(r.get_response().parameters["triton_final_response"].bool_param for r, _ in found[:60])
    assert NO_MODEL in found[60][1].message()


def test_a_stream_that_is_cut_off_cancels_what_it_asked(house: GrpcServed, client: Any) -> None:
    house.hold()
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for _ in range(40):
        client.async_stream_infer("affine", [x()])
    until(lambda: len(house.door.held or []) == 32)
    time.sleep(0.05)
    assert len(house.door.held or []) == 32, "the others have to wait"
    client.stop_stream(cancel_requests=True)
    until(lambda: all(future.cancelled() for future, _ in house.door.held or [()]))
    assert answers.get(timeout=10)[1].status() == "StatusCode.CANCELLED"
    house.release()


def test_a_stream_that_has_to_wait_is_answered_whole(house: GrpcServed, client: Any) -> None:
    house.hold()
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(200):
        client.async_stream_infer("affine", [x(number)], request_id=str(number))
    until(lambda: len(house.door.held or []) == 32)
    house.release()
    client.stop_stream()
    found = [answers.get(timeout=10) for _ in range(200)]
    assert [result.get_response().id for result, _ in found] == [str(number) for number in range(200)]
    assert [result.as_numpy("y")[0][0] for result, _ in found] == [number * 9.0 for number in range(200)]


def test_a_stream_s_time_ends_it(house: GrpcServed, client: Any) -> None:
    house.hold()
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=0.1)
    client.async_stream_infer("affine", [x()])
    assert answers.get(timeout=10)[1].status() == "StatusCode.DEADLINE_EXCEEDED"
    until(lambda: bool(house.door.held) and house.door.held[0][0].cancelled())
    house.release()
    client.stop_stream()


# The asyncio client.


def test_the_asyncio_client(house: GrpcServed) -> None:
    async def run() -> None:
        async with triton_aio.InferenceServerClient(house.url) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready("affine")
            assert (await client.get_server_metadata()).name == "millstream"
            assert (await client.get_model_metadata("affine")).name == "affine"
            assert (await client.get_model_config("affine")).config.name == "affine"
            assert len((await client.get_inference_statistics()).model_stats) > 10
            assert len((await client.get_model_repository_index()).models) > 10
            await client.unload_model("echo-BOOL")
            assert not await client.is_model_ready("echo-BOOL")
            await client.load_model("echo-BOOL")
            for datatype in DTYPES:
                found = await client.infer(f"echo-{datatype}", [tensor("v", datatype, values(datatype))])
                assert same(found.as_numpy("v"), values(datatype))
            many = await asyncio.gather(*(client.infer("affine", [x(n)], request_id=str(n)) for n in range(60)))
            assert [found.get_response().id for found in many] == [str(n) for n in range(60)]
            found = await client.infer("affine", [tensor("x", "FP32", LARGE)], compression_algorithm="gzip")
            assert found.as_numpy("y").shape == (20_000, 2)
            with pytest.raises(InferenceServerException, match="nobody"):
                await client.infer("nobody", [x()])

    asyncio.run(run())


def test_the_asyncio_client_s_stream(house: GrpcServed) -> None:
    async def asks() -> AsyncIterator[dict[str, Any]]:
        one = tensor("x", "FP32", np.ones((1, 1), np.float32))
        for number in range(10):
            yield {
                "model_name": "count",
                "inputs": [one],
                "request_id": str(number),
                "sequence_id": 11,
                "sequence_start": number == 0,
                "sequence_end": number == 9,
            }
            await asyncio.sleep(0)
        yield {"model_name": "nobody", "inputs": [one]}

    async def run() -> None:
        async with triton_aio.InferenceServerClient(house.url) as client:
            found = [pair async for pair in client.stream_infer(asks())]
            assert [int(result.as_numpy("n")[0]) for result, _ in found[:10]] == list(range(1, 11))
            assert NO_MODEL in found[10][1].message()
            house.hold()
            answers = client.stream_infer(asks())
            waiting = asyncio.ensure_future(anext(answers))
            while not house.door.held:
                await asyncio.sleep(0.001)
            answers.cancel()
            with pytest.raises(BaseException):  # noqa: B017 - CancelledError or the client's own
                await waiting
            while not house.door.held[0][0].cancelled():
                await asyncio.sleep(0.001)
            await asyncio.get_running_loop().run_in_executor(None, house.release)

    asyncio.run(run())


def test_many_clients_at_once_get_their_own(house: GrpcServed) -> None:
    wrong: list[object] = []

    def ask(base: int) -> None:
        with triton.InferenceServerClient(house.url) as client:
            for number in range(base, base + 50):
                found = client.infer("affine", [x(number)], request_id=f"{number}")
                if found.get_response().id != f"{number}" or found.as_numpy("y").tolist() != [
                    [9.0 * number, 12.0 * number]
                ]:
                    wrong.append((number, found))

    threads = [threading.Thread(target=ask, args=(base * 100,)) for base in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


# The same mistakes, in the same words.

# Only a body can be shorter than it says, or hold one tensor in two ways, and only JSON can leave a field out.
OTHER_WORDS = {
    "truncated bytes": "binary_data_size 4",
    "both data and bytes": "has contents, and the request has raw",
    "no datatype": "datatype '', the model takes FP32",
    "no shape": "shape [], the model takes [-1, 3]",
}


def set_parameters(target: Any, parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        kind = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
        setattr(target[name], f"{kind}_param", value)


def as_message(document: dict[str, Any], raw: bytes | None = None, model: str = "affine", version: str = "") -> Any:
    """A request of the JSON protocol as a message; `raw`: the one raw content."""
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=document.get("id", ""))
    set_parameters(message.parameters, document.get("parameters", {}))
    for one in document["inputs"]:
        datatype = one.get("datatype", "")
        made = message.inputs.add(name=one["name"], datatype=datatype, shape=one.get("shape", []))
        if "data" in one:
            field, _ = TYPED.get(datatype, TYPED["FP32"])
            data = [v.encode() for v in one["data"]] if datatype == "BYTES" else one["data"]
            getattr(made.contents, field).extend(data)
            made.contents.SetInParent()
    if raw is not None:
        message.raw_input_contents.append(raw)
    for output in document.get("outputs", []):
        set_parameters(message.outputs.add(name=output["name"]).parameters, output.get("parameters", {}))
    return message


def over_http(
    house: GrpcServed, document: dict[str, Any], raw: bytes | None = None, model: str = "affine", version: str = ""
) -> tuple[int, str]:
    head = orjson.dumps(document)
    connection = http.client.HTTPConnection("127.0.0.1", house.http_port, timeout=10)
    url = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    length = {} if raw is None else {"Inference-Header-Content-Length": str(len(head))}
    connection.request("POST", url, head + (raw or b""), length)
    reply = connection.getresponse()
    error = orjson.loads(reply.read())["error"]
    connection.close()
    return reply.status, error


@pytest.mark.parametrize("case", [case for case in CASES if not case.json_only], ids=lambda case: case.name)
def test_a_mistake_is_said_as_over_http(house: GrpcServed, stub: Any, case: Case) -> None:
    asked = case.document, case.raw, case.model, case.version
    status, sentence = over_http(house, *asked)
    assert status == case.status
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(as_message(*asked))
        assert error.value.code().name == case.code
        said = error.value.details()
        assert OTHER_WORDS[case.name] in said if case.name in OTHER_WORDS else said == sentence
    (streamed,) = stub.ModelStreamInfer(iter([as_message(*asked)]))
    assert streamed.error_message == said


X: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
ONES: dict[str, Any] = {"inputs": [{**X, "data": [1, 1, 1]}]}
REFUSALS = (
    errors.Overloaded("many wait"),
    errors.Busy("it stops"),
    errors.Late("too late"),
    errors.TooLarge("too many rows"),
    errors.BadInput("NaN in row 3"),
    errors.Conflict("not in turn"),
)


@pytest.mark.parametrize("fault", REFUSALS, ids=lambda fault: type(fault).__name__)
def test_what_the_engine_refuses_is_said_as_over_http(house: GrpcServed, client: Any, fault: errors.Error) -> None:
    house.door.fault = fault
    try:
        status, sentence = over_http(house, ONES)
        assert refused(fault.code, lambda: client.infer("affine", [x()])) == sentence == str(fault)
        assert status == fault.status
    finally:
        house.door.fault = None


def test_mistakes_that_only_this_border_knows(stub: Any) -> None:
    mixed = as_message(ONES, bytes(12))
    few = as_message({"inputs": [{**X, "name": "a"}, {**X, "name": "b"}]}, bytes(16), "pair")
    nothing = as_message({"inputs": [X]})
    unchosen = as_message(ONES)
    unchosen.parameters["explain"].SetInParent()
    crowded = as_message({**ONES, "parameters": {f"p{n}": 1 for n in range(300)}})
    for message, words in (
        (mixed, "has contents, and the request has raw_input_contents"),
        (few, "raw_input_contents: 1 for 2 inputs"),
        (nothing, "no data; send data"),
        (typed("echo-FP16", "FP16", [1, 1], fp32_contents=[1.0]), "FP16 has no typed contents"),
        (typed("echo-BF16", "BF16", [1, 1], fp32_contents=[1.0]), "BF16 has no typed contents"),
        (typed("echo-BYTES", "BYTES", [1, 1], bytes_contents=[b"\xff"]), "not UTF-8 text; send blobs as UINT8"),
        (typed("echo-FP32", "FP32", [1, 1], fp32_contents=[float("nan")]), "nan is not a number to compute with"),
        (typed("echo-FP32", "FP32", [1] * 100_000, fp32_contents=[1.0]), "the model takes [-1, -1]"),
        (service_pb2.ModelInferRequest(), "model_name: empty"),
        (unchosen, "parameters.explain: got None"),
        (crowded, "300 parameters; send at most 256"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(message)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in error.value.details(), error.value.details()


def test_what_speaks_of_a_body_means_nothing_here(stub: Any) -> None:
    message = as_message(ONES)
    message.inputs[0].parameters["binary_data_size"].int64_param = 12
    assert triton.InferResult(stub.ModelInfer(message)).as_numpy("y").tolist() == [[9.0, 12.0]]


def test_a_message_that_is_none_and_a_method_that_is_none(house: GrpcServed) -> None:
    with grpc.insecure_channel(house.url) as channel:
        for path, data, code in (
            ("/inference.GRPCInferenceService/ModelInfer", b"\xff\xff\xff", "INVALID_ARGUMENT"),
            ("/inference.GRPCInferenceService/ModelMetadata", b"\x0a\x05a", "INVALID_ARGUMENT"),
            ("/inference.GRPCInferenceService/Nothing", b"", "UNIMPLEMENTED"),
            ("/other.Service/ModelInfer", b"", "UNIMPLEMENTED"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(path)(data)
            assert error.value.code().name == code, error.value.details()
