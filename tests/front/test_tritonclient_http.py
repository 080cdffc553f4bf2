"""Triton's own HTTP clients, unchanged, against the real server: every call of theirs that means something here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from front_house import Served, served_beside
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from millstream.types import DTYPES, Request

LARGE = np.arange(60_000, dtype=np.float32).reshape(20_000, 3) % 7


@pytest.fixture(scope="module")
def house() -> Iterator[Served]:
    with served_beside() as served:
        yield served


@pytest.fixture
def client(house: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{house.port}", concurrency=4) as client:
        yield client


def tensor(name: str, datatype: str, array: np.ndarray[Any, Any], binary: bool = True) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def values(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return np.array([["", "a"], ["é✓", "x" * 300]], object)
    return np.array([[0, 1], [1, 0]], triton_to_np_dtype(datatype))


def same(found: Any, sent: np.ndarray[Any, Any]) -> bool:
    if sent.dtype == object:
        return [v.decode() if isinstance(v, bytes) else v for v in found.ravel()] == sent.ravel().tolist()
    return bool((found == sent).all()) and found.shape == sent.shape


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("affine") and client.is_model_ready("affine", "2")
    assert not client.is_model_ready("nobody") and not client.is_model_ready("affine", "9")
    server = client.get_server_metadata()
    assert {"binary_tensor_data", "classification", "sequence", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata("affine", "1")
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]


BYTES_ONLY = ("FP16", "BF16")  # to this client


@pytest.mark.parametrize(
    ("datatype", "binary"), [(t, b) for t in sorted(DTYPES) for b in (True, False) if b or t not in BYTES_ONLY]
)
def test_infer_every_datatype(client: Any, datatype: str, binary: bool) -> None:
    sent = values(datatype)
    wanted = [triton.InferRequestedOutput("v", binary_data=binary)]
    found = client.infer(f"echo-{datatype}", [tensor("v", datatype, sent, binary)], outputs=wanted, request_id="r")
    assert same(found.as_numpy("v"), sent)
    assert found.get_response()["id"] == "r"
    everything = client.infer(f"echo-{datatype}", [tensor("v", datatype, sent, binary)])
    assert same(everything.as_numpy("v"), sent)


def test_the_parameters_of_a_request_reach_the_door(house: Served, client: Any) -> None:
    x = tensor("x", "FP32", np.ones((1, 3), np.float32))
    client.infer("affine", [x], model_version="2", priority=3, timeout=250_000, parameters={"key": "u7", "other": 1})
    request = house.door.calls[-1]
    assert isinstance(request, Request)
    assert (request.version, request.priority, request.timeout_s, request.key) == ("2", 3, 0.25, "u7")
    assert request.turn is None


@pytest.mark.parametrize("ident", [7, "room-1"])
def test_a_sequence(house: Served, client: Any, ident: int | str) -> None:
    x = tensor("x", "FP32", np.ones((1, 1), np.float32))
    steps = [client.infer("count", [x], sequence_id=ident, sequence_start=s, sequence_end=e)
             for s, e in ((True, False), (False, False), (False, True))]  # fmt: skip
    assert [int(step.as_numpy("n")[0]) for step in steps] == [1, 2, 3]
    said = steps[1].get_response()["parameters"]
    assert (said["sequence_id"], said["sequence_step"]) == (str(ident), 2)
    with pytest.raises(InferenceServerException, match="has ended") as refused:
        client.infer("count", [x], sequence_id=ident)
    assert refused.value.status() == "404"


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_classification(client: Any, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput("v", binary_data=binary, class_count=2)]
    sent = np.array([[0.1, 0.9, 0.5], [3, 1, 2]], np.float32)
    found = client.infer("echo-FP32", [tensor("v", "FP32", sent)], outputs=wanted)
    assert same(found.as_numpy("v"), np.array([["0.900000:1", "0.500000:2"], ["3.000000:0", "2.000000:2"]], object))
    assert found.get_output("v")["datatype"] == "BYTES"


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_compression_both_ways(client: Any, coding: str | None) -> None:
    x = tensor("x", "FP32", LARGE)
    plain = client.infer("affine", [x])
    found = client.infer("affine", [x], request_compression_algorithm=coding, response_compression_algorithm=coding)
    for name in ("y", "n"):
        assert same(found.as_numpy(name), plain.as_numpy(name))


def test_configuration_and_statistics(client: Any) -> None:
    config = client.get_model_config("affine")
    assert (config["name"], config["max_batch_size"]) == ("affine", 64)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    (before,) = client.get_inference_statistics("pair", "1")["model_stats"]
    two = np.ones((5, 2), np.int64)
    client.infer("pair", [tensor("a", "INT64", two), tensor("b", "FP32", np.ones(5, np.float32))])
    (after,) = client.get_inference_statistics("pair", "1")["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} >= {"affine", "pair"}


def test_the_repository(client: Any) -> None:
    def states() -> dict[str, str]:
        return {one["name"]: one["state"] for one in client.get_model_repository_index()}

    assert states()["pair"] == "READY" and states()["broken"] == "UNAVAILABLE"
    client.unload_model("pair")
    assert states()["pair"] == "UNLOADED" and not client.is_model_ready("pair")
    client.load_model("pair")
    assert states()["pair"] == "READY" and client.is_model_ready("pair")
    for model, status, words in (("broken", "400", "not an ONNX file"), ("nobody", "404", "nobody")):
        with pytest.raises(InferenceServerException, match=words) as refused:
            client.load_model(model)
        assert refused.value.status() == status
    with pytest.raises(InferenceServerException, match="put a new version"):
        client.load_model("pair", config='{"max_batch_size": 2}')


def test_what_is_not_here_is_said(client: Any) -> None:
    assert client.get_system_shared_memory_status() == client.get_cuda_shared_memory_status() == []
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory("mine")
    calls: list[Callable[[], object]] = [
        lambda: client.register_system_shared_memory("mine", "/mine", 64),
        lambda: client.register_cuda_shared_memory("mine", b"handle", 0, 64),
        client.get_trace_settings,
        lambda: client.update_trace_settings("affine", {"trace_level": ["OFF"]}),
        client.get_log_settings,
        lambda: client.update_log_settings({"log_verbose_level": 1}),
    ]
    for call in calls:
        with pytest.raises(InferenceServerException, match=r"shared here|set here") as refused:
            call()
        assert refused.value.status() == "501"


def test_many_at_once_get_their_own(client: Any) -> None:
    sent = [np.full((n % 5 + 1, 3), n, np.float32) for n in range(40)]
    asked = [client.async_infer("affine", [tensor("x", "FP32", one)], request_id=str(n)) for n, one in enumerate(sent)]
    for n, one in enumerate(asked):
        found = one.get_result()
        assert found.get_response()["id"] == str(n)
        assert found.as_numpy("y").tolist() == [[n * 9.0, n * 12.0]] * (n % 5 + 1)


def test_a_mistake_is_said_to_the_client(client: Any) -> None:
    wrong = tensor("x", "FP64", np.ones((1, 3)))
    with pytest.raises(InferenceServerException, match=r"input 'x': datatype 'FP64', the model takes FP32") as refused:
        client.infer("affine", [wrong])
    assert refused.value.status() == "400"


def test_the_asyncio_client(house: Served) -> None:
    async def run() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{house.port}") as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready("affine")
            assert (await client.get_server_metadata())["name"] == "millstream"
            assert (await client.get_model_metadata("affine"))["name"] == "affine"
            assert (await client.get_model_config("affine"))["name"] == "affine"
            assert len((await client.get_inference_statistics())["model_stats"]) > 10, "long, and read uncompressed"
            assert len(await client.get_model_repository_index()) > 10
            await client.unload_model("echo-BOOL")
            assert not await client.is_model_ready("echo-BOOL")
            await client.load_model("echo-BOOL")
            for datatype in DTYPES:
                found = await client.infer(f"echo-{datatype}", [tensor("v", datatype, values(datatype))])
                assert same(found.as_numpy("v"), values(datatype))
            for coding in ("gzip", "deflate"):
                found = await client.infer(
                    "affine",
                    [tensor("x", "FP32", LARGE)],
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
                assert found.as_numpy("y").shape == (20_000, 2)
            with pytest.raises(InferenceServerException, match="nobody"):
                await client.infer("nobody", [tensor("x", "FP32", LARGE)])

    asyncio.run(run())
