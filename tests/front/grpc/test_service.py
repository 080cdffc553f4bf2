"""The V2 service without a transport: messages, bytes, order, cancelling, bounds. The oracle is tritonclient's own
generated code, which shares nothing with ours."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from front_house import House
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from millstream import errors
from millstream.clock import FakeClock
from millstream.front import model_config
from millstream.front.codec import Plan
from millstream.front.grpc import messages, read, service, wire
from millstream.front.grpc.methods import SERVICE, methods
from millstream.meter import Meter
from millstream.types import (
    DTYPES,
    Config,
    Description,
    Output,
    Principal,
    Request,
    Spent,
    Statistics,
    TensorSpec,
    Turn,
)

THEIRS = {**model_config_pb2.DESCRIPTOR.message_types_by_name, **service_pb2.DESCRIPTOR.message_types_by_name}
# Of these only what is said here is declared.
IN_PART = {"ModelStatistics"} | set(model_config_pb2.DESCRIPTOR.message_types_by_name)


class Said:
    """A Call that keeps what it is told."""

    def __init__(self, path: str, metadata: dict[bytes, bytes] | None = None, timeout_s: float = 0.0) -> None:
        self.path = path.encode()
        self.metadata = metadata or {}
        self.peer = "127.0.0.1"
        self.timeout_s = timeout_s
        self.sent: list[bytes] = []
        self.headers: list[tuple[tuple[bytes, bytes], ...]] = []
        self.ends: list[Exception | None] = []
        self.holds: list[bool] = []

    def send(self, message: bytes, metadata: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        assert not self.ends, "a message after the end"
        self.sent.append(message)
        self.headers.append(metadata)

    def finish(self, error: Exception | None = None) -> None:
        assert not self.ends, "two ends"
        self.ends.append(error)

    def hold(self) -> None:
        self.holds.append(True)

    def go_on(self) -> None:
        self.holds.append(False)

    @property
    def error(self) -> errors.Error:
        assert len(self.ends) == 1
        error = self.ends[0]
        assert isinstance(error, errors.Error), repr(error)
        return error

    @property
    def answers(self) -> list[Any]:
        return [service_pb2.ModelInferResponse.FromString(message) for message in self.sent]

    @property
    def streamed(self) -> list[Any]:
        return [service_pb2.ModelStreamInferResponse.FromString(message) for message in self.sent]


class Desk:
    """The service in front of a House, called without a transport."""

    def __init__(self) -> None:
        self.door = House(Meter())
        self.clock = FakeClock()
        self.service = service.Inference(self.door, self.clock)

    def infer(self, data: bytes, metadata: dict[bytes, bytes] | None = None, timeout_s: float = 0.0) -> Said:
        call = Said(f"/{SERVICE}/ModelInfer", metadata, timeout_s)
        receiver = self.service.open(call)
        receiver.message(data)
        receiver.ended()
        return call

    def stream(self, metadata: dict[bytes, bytes] | None = None, timeout_s: float = 0.0) -> tuple[Said, Any]:
        call = Said(f"/{SERVICE}/ModelStreamInfer", metadata, timeout_s)
        return call, self.service.open(call)

    def ask(self, method: str, /, metadata: dict[bytes, bytes] | None = None, **fields: Any) -> Any:
        """The answer of another method, or its error raised."""
        call = Said(f"/{SERVICE}/{method}", metadata)
        receiver = self.service.open(call)
        receiver.message(getattr(service_pb2, f"{method}Request")(**fields).SerializeToString())
        receiver.ended()
        if call.ends[0] is not None:
            raise call.ends[0]
        return getattr(service_pb2, f"{method}Response").FromString(call.sent[0])


def with_desk(test: Callable[[Desk], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(100):
            await test(Desk())

    asyncio.run(run())


def request(model: str, tensors: dict[str, tuple[str, np.ndarray[Any, Any]]], **fields: Any) -> Any:
    """A ModelInferRequest with raw contents."""
    message = service_pb2.ModelInferRequest(model_name=model, **fields)
    for name, (datatype, array) in tensors.items():
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


def affine(x: list[list[float]] | None = None, **fields: Any) -> Any:
    return request("affine", {"x": ("FP32", np.array(x or [[1, 0, 0]], np.float32))}, **fields)


def step(ident: str, sequence: int, start: bool = False, end: bool = False) -> bytes:
    message = request("count", {"x": ("FP32", np.zeros((1, 1), np.float32))}, id=ident)
    message.parameters["sequence_id"].int64_param = sequence
    message.parameters["sequence_start"].bool_param = start
    message.parameters["sequence_end"].bool_param = end
    return bytes(message.SerializeToString())


# The messages.


def fields_of(descriptor: Any) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return {
            field.name: (
                field.number,
                field.type,
                field.label,
                field.message_type.full_name if field.message_type else None,
                {value.name: value.number for value in field.enum_type.values} if field.enum_type else None,
                field.enum_type.full_name if field.enum_type else None,
                field.containing_oneof.name if field.containing_oneof else None,
                field.message_type.GetOptions().map_entry if field.message_type else None,
                field.is_packed,
            )
            for field in descriptor.fields
        }


def all_of(descriptors: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for descriptor in descriptors.values():
        found[descriptor.full_name] = descriptor
        found |= all_of(descriptor.nested_types_by_name)
    return found


def test_every_field_of_every_message_is_that_of_the_protocol() -> None:
    theirs = all_of(THEIRS)
    ours = all_of({c.DESCRIPTOR.name: c.DESCRIPTOR for n, c in messages.CLASSES.items() if n.startswith("inference.")})
    for name, descriptor in ours.items():
        declared, known = fields_of(descriptor), fields_of(theirs[name])
        if name.split(".")[1] in IN_PART:
            known = {field: known.get(field) for field in declared}
        assert declared == known, name
    said = set(service_pb2.DESCRIPTOR.message_types_by_name) - {"InferResponseStatistics", "MemoryUsage"}
    assert said <= {name.split(".")[1] for name in ours}, "a message of the service is missing"


def test_every_method_of_the_protocol_is_there() -> None:
    theirs = {f"/{SERVICE}/{method.name}" for method in service_pb2.DESCRIPTOR.services_by_name[SERVICE[10:]].methods}
    ours = {path.decode() for path in methods(House(Meter()))} | {service.INFER.decode(), service.STREAM.decode()}
    assert ours == theirs | {"/grpc.health.v1.Health/Check"}


# The bytes.

texts = st.text(max_size=5)
values = st.builds(lambda number: service_pb2.InferParameter(int64_param=number), st.integers(-(2**63), 2**63 - 1))
requests = st.builds(
    service_pb2.ModelInferRequest,
    model_name=texts,
    model_version=texts,
    id=st.text(max_size=200),
    parameters=st.dictionaries(texts, values, max_size=2),
    inputs=st.lists(
        st.builds(
            service_pb2.ModelInferRequest.InferInputTensor,
            name=texts,
            datatype=st.sampled_from([*DTYPES, "no"]),
            shape=st.lists(st.integers(-1, 300), max_size=3),
        ),
        max_size=3,
    ),
    outputs=st.lists(st.builds(service_pb2.ModelInferRequest.InferRequestedOutputTensor, name=texts), max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=3),
)
foreign = st.sampled_from([b"", b"\x78\x05", b"\xa2\x06\x03abc", b"\x81\x01" + bytes(8), b"\x85\x01" + bytes(4)])


@given(requests, st.randoms(use_true_random=False), foreign)
def test_a_message_taken_apart_is_the_message(message: Any, random: Any, unknown: bytes) -> None:
    """Whatever the order of its fields, and with fields of a later version of the protocol in between."""
    parts = []
    for field, value in message.ListFields():
        entries = value if field.is_repeated and field.name != "parameters" else [value]
        parts += [
            service_pb2.ModelInferRequest(
                **{field.name: [v] if field.is_repeated and field.name != "parameters" else v}
            )
            for v in entries
        ]
    random.shuffle(parts)
    data = unknown.join(part.SerializeToString() for part in parts) + unknown
    rest, said, ident, raws = wire.split(data)
    whole = service_pb2.ModelInferRequest.FromString(data)
    assert ident.decode() == whole.id
    assert [data[start : start + size] for start, size in raws] == list(whole.raw_input_contents)
    assert service_pb2.ModelInferRequest.FromString(said).parameters == whole.parameters
    for field in ("id", "raw_input_contents", "parameters"):
        whole.ClearField(field)
    assert service_pb2.ModelInferRequest.FromString(rest) == whole


def test_a_message_cut_anywhere_is_refused_or_is_a_message() -> None:
    whole = affine(id="x" * 200, outputs=[{"name": "y"}]).SerializeToString()
    for end in range(1, len(whole)):
        try:
            service_pb2.ModelInferRequest.FromString(whole[:end])
            valid = True
        except Exception:
            valid = False
        try:
            read.rest(wire.split(whole[:end])[0])
            assert valid, end
        except errors.BadInput:
            assert not valid, end


def test_a_message_of_a_million_fields_costs_no_memory() -> None:
    for empty in (b"\x3a\x00", b"\x2a\x00", b"\x22\x00", b"\x78\x01"):
        with pytest.raises(errors.BadInput, match="more than 4096 fields"):
            wire.split(empty * 1_000_000)


@given(st.integers(0, 2**63 - 1), st.text(max_size=300), st.booleans())
def test_an_answer_s_parameters_are_read_as_they_were_written(number: int, text: str, flag: bool) -> None:
    data = wire.parameter("n", number) + wire.parameter("t", text) + wire.parameter("f", flag)
    found = service_pb2.ModelInferResponse.FromString(data).parameters
    assert (found["n"].int64_param, found["t"].string_param, found["f"].bool_param) == (number, text, flag)
    assert found["f"].WhichOneof("parameter_choice") == "bool_param"


def test_an_answer_of_a_session_says_where_it_stands() -> None:
    async def test(desk: Desk) -> None:
        answer = desk.infer(step("a", 7, start=True)).answers[0]
        said = {name: json_format.MessageToDict(value) for name, value in answer.parameters.items()}
        assert said == {
            "arm": {"stringParam": "live"},
            "policy": {"int64Param": "3"},
            "sequence_id": {"stringParam": "7"},
            "sequence_step": {"int64Param": "1"},
            "resume_token": {"stringParam": "token-anyone-7"},
        }

    with_desk(test)


@pytest.mark.parametrize("size", [1, 127, 128, 256])
def test_an_id_of_any_length_comes_back(size: int) -> None:
    async def test(desk: Desk) -> None:
        for ident in ("i" * size, "é" * size, "語" * size):
            assert desk.infer(affine(id=ident).SerializeToString()).answers[0].id == ident
        assert "at most 256 characters" in str(desk.infer(affine(id="i" * 257).SerializeToString()).error)

    with_desk(test)


# What is remembered.


def test_a_request_seen_before_is_read_as_the_first_time() -> None:
    async def test(desk: Desk) -> None:
        for number in range(5):
            message = affine([[number, 0, 0], [0, number, 0]], id=f"r{number}")
            answer = desk.infer(message.SerializeToString()).answers[0]
            assert answer.id == f"r{number}" and answer.outputs[0].shape == [2, 2]
            found = np.frombuffer(answer.raw_output_contents[0], np.float32)
            assert found.tolist() == [number * 1, number * 2, number * 3, number * 4]
        assert len(desk.service._forms) == 1

    with_desk(test)


def test_a_request_seen_before_with_other_sizes_is_refused() -> None:
    async def test(desk: Desk) -> None:
        message = affine()
        desk.infer(message.SerializeToString())
        for raws, said in (
            ([bytes(8)], "binary_data_size 8, FP32 [1, 3] has 12 bytes"),
            ([bytes(16)], "binary_data_size 16, FP32 [1, 3] has 12 bytes"),
            ([], "no data"),
            ([bytes(12), bytes(12)], "raw_input_contents: 2 for 1 inputs"),
        ):
            del message.raw_input_contents[:]
            message.raw_input_contents.extend(raws)
            error = desk.infer(message.SerializeToString()).error
            assert isinstance(error, errors.BadInput) and said in str(error)

    with_desk(test)


def test_what_is_remembered_is_bounded_and_follows_the_model() -> None:
    async def test(desk: Desk) -> None:
        for rows in range(1, 1500):
            desk.infer(affine([[1, 0, 0]] * rows).SerializeToString())
        assert len(desk.service._forms) <= service.FORMS_MAX
        for number in range(1, 1500):
            message = affine()
            message.parameters["timeout"].int64_param = number
            desk.infer(message.SerializeToString())
            message.parameters["key"].string_param = str(number)
            desk.infer(message.SerializeToString())
        assert 0 < len(desk.service._said) <= service.FORMS_MAX
        assert not any(said.key for said in desk.service._said.values()), "a key is of one call"
        for number in range(1200):  # names that nobody serves
            desk.infer(affine(model_version=str(number + 3)).SerializeToString())
        assert len(desk.service._models) == 1
        wider = TensorSpec("x", "FP32", (-1, 4))
        old = desk.door.served["affine"]
        desk.door.served["affine"] = Description("affine", old.versions, old.platform, (wider,), old.outputs)
        assert "the model takes [-1, 4]" in str(desk.infer(affine().SerializeToString()).error)

    with_desk(test)


def test_a_key_without_the_right_learns_nothing_from_another_s_request() -> None:
    async def test(desk: Desk) -> None:
        desk.door.keys = {"a": Principal("a", ("affine:infer",)), "b": Principal("b", ("pair:infer",))}
        message = affine(id="x").SerializeToString()
        assert desk.infer(message, {b"authorization": b"Bearer a"}).answers[0].id == "x"
        broken = affine([[1, 2]])
        for data in (message, broken.SerializeToString()):
            assert isinstance(desk.infer(data, {b"authorization": b"bearer  b"}).error, errors.Forbidden)
        for metadata in ({}, {b"authorization": b"Bearer z"}, {b"authorization": b"Basic a"}):
            with pytest.raises(errors.Unauthenticated):
                desk.infer(message, metadata)
        with pytest.raises(errors.Unauthenticated):
            desk.ask("ModelMetadata", name="affine")
        assert desk.ask("ServerReady").ready, "who balances load has no key"
        desk.door.up = False
        assert not desk.ask("ServerReady").ready and desk.ask("ServerLive").live

    with_desk(test)


# What reaches the Door.


def test_what_a_request_says_of_itself_reaches_the_door() -> None:
    async def test(desk: Desk) -> None:
        message = affine(outputs=[{"name": "n"}], model_version="2")
        for name, value in (("priority", 3), ("timeout", 2_000_000), ("sequence_step", 4)):
            message.parameters[name].int64_param = value
        message.parameters["key"].string_param = "user-1"
        message.parameters["sequence_id"].string_param = "s"
        message.parameters["sequence_start"].bool_param = True
        call = desk.infer(message.SerializeToString(), {b"x-request-id": b"from-metadata"})
        found: Any = desk.door.calls[-1]
        assert (found.id, found.version, found.key, found.outputs) == ("from-metadata", "2", "user-1", ("n",))
        assert (found.priority, found.timeout_s) == (3, 2.0)
        assert found.turn == Turn("s", True, False, 4)
        assert call.answers[0].id == "from-metadata"
        for left, limit in ((0.5, 0.5), (5.0, 2.0), (0.0, 2.0)):
            desk.infer(message.SerializeToString(), timeout_s=left)
            found = desk.door.calls[-1]
            assert found.timeout_s == limit
        desk.infer(affine().SerializeToString(), timeout_s=0.25)
        found = desk.door.calls[-1]
        assert found.timeout_s == 0.25

    with_desk(test)


def test_equal_steps_are_two_steps() -> None:
    async def test(desk: Desk) -> None:
        for start in (True, False, False):
            desk.infer(step("a", 7, start))
        first, second = desk.door.calls[-2:]
        assert isinstance(first, Request) and isinstance(second, Request)
        assert first.turn == second.turn and first.turn is not second.turn, "whoever owns it is written into it"

    with_desk(test)


def test_ids_that_are_made_differ_and_a_bad_one_is_refused() -> None:
    async def test(desk: Desk) -> None:
        made = {desk.infer(affine().SerializeToString()).answers[0].id for _ in range(10)}
        assert len(made) == 10 and "" not in made
        assert "x-request-id" in str(desk.infer(affine().SerializeToString(), {b"x-request-id": b"\xff"}).error)
        call, receiver = desk.stream({b"x-request-id": b"mine"})
        for _ in range(2):
            receiver.message(affine().SerializeToString())
        streamed = {answer.infer_response.id for answer in call.streamed}
        assert len(streamed) == 2 and "mine" not in streamed, "one id cannot name two requests"
        bad = affine().SerializeToString() + b"\x1a\x01\xff"
        assert "not UTF-8" in str(desk.infer(bad).error)

    with_desk(test)


def test_an_explanation_is_given_where_it_is_asked_for() -> None:
    async def test(desk: Desk) -> None:
        asked = affine()
        asked.parameters["explain"].bool_param = True
        for call in (
            desk.infer(affine().SerializeToString(), {b"millstream-explain": b"1"}),
            desk.infer(asked.SerializeToString()),
        ):
            ((key, text),) = call.headers[0]
            assert key == b"millstream-explain" and text.startswith(b'version="1", queue_us=120, mates=1, ')
        assert desk.infer(affine().SerializeToString()).headers == [()]

    with_desk(test)


def test_a_bug_of_ours_is_logged_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(desk: Desk) -> None:
        desk.door.fault = ZeroDivisionError("secret")
        call = desk.infer(affine().SerializeToString())
        assert call.ends == [desk.door.fault]
        stream, receiver = desk.stream()
        receiver.message(affine(id="q").SerializeToString())
        receiver.ended()
        assert stream.streamed[0].error_message == "internal error, see the log"
        assert stream.ends == [None]
        assert caplog.text.count("secret") == 1, "the transport logs what ends a call"

    with_desk(test)


def test_a_call_that_ends_without_a_message_and_one_of_two() -> None:
    async def test(desk: Desk) -> None:
        for path in ("ModelInfer", "ModelMetadata"):
            call = Said(f"/{SERVICE}/{path}")
            receiver = desk.service.open(call)
            receiver.ended()
            receiver.ended()
            assert "without a message" in str(call.error)
            receiver = desk.service.open(call := Said(f"/{SERVICE}/{path}"))
            receiver.message(b"")
            receiver.message(b"")
            receiver.ended()
            assert isinstance(call.error, errors.BadInput) and "empty" in str(call.error)

    with_desk(test)


# Going away.


def test_a_client_that_goes_away_gives_its_place_up() -> None:
    async def test(desk: Desk) -> None:
        desk.door.held = []
        call = Said(f"/{SERVICE}/ModelInfer")
        receiver = desk.service.open(call)
        receiver.message(affine().SerializeToString())
        stream, streaming = desk.stream()
        for number in range(3):
            streaming.message(affine(id=str(number)).SerializeToString())
        receiver.cancelled()
        streaming.cancelled()
        assert all(future.cancelled() for future, _ in desk.door.held) and len(desk.door.held) == 4
        receiver.ended()
        streaming.ended()
        streaming.message(affine().SerializeToString())
        await asyncio.sleep(0)
        assert len(desk.door.held) == 4 and not (call.sent or call.ends or stream.sent or stream.ends)

    with_desk(test)


def test_a_load_goes_on_without_the_client_that_asked_for_it(caplog: pytest.LogCaptureFixture) -> None:
    async def test(desk: Desk) -> None:
        desk.door.served.pop("pair")
        for model in ("pair", "broken"):
            call = Said(f"/{SERVICE}/RepositoryModelLoad")
            receiver = desk.service.open(call)
            receiver.message(service_pb2.RepositoryModelLoadRequest(model_name=model).SerializeToString())
            receiver.cancelled()
            for _ in range(3):
                await asyncio.sleep(0)
            assert not call.sent and not call.ends
        assert "pair" in desk.door.served and not caplog.text

    with_desk(test)


def test_a_service_that_stops_says_so() -> None:
    async def test(desk: Desk) -> None:
        desk.door.held = []
        call = desk.infer(affine().SerializeToString())
        stream, receiver = desk.stream()
        receiver.message(affine(id="s").SerializeToString())
        receiver.ended()
        for future, _ in desk.door.held:
            future.cancel()
        await asyncio.sleep(0)
        assert isinstance(call.error, errors.Busy) and "stopped" in str(call.error)
        assert "stopped" in stream.streamed[0].error_message and stream.ends == [None]

    with_desk(test)


# Streams.


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(6)))
def test_a_stream_s_answers_keep_the_order_of_its_requests(order: list[int]) -> None:
    async def test(desk: Desk) -> None:
        desk.door.held = []
        call, receiver = desk.stream()
        for number in range(6):
            receiver.message(affine([[number, 0, 0]], id=f"r{number}").SerializeToString())
            if number == 2:
                receiver.message(request("nope", {}, id="lost").SerializeToString())
        receiver.ended()
        for at in order:
            future, answer = desk.door.held[at]
            future.set_result(answer)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        found = [answer.infer_response.id for answer in call.streamed]
        assert found == ["r0", "r1", "r2", "lost", "r3", "r4", "r5"]
        assert "no model 'nope'" in call.streamed[3].error_message
        for answer in call.streamed[:3]:
            assert not answer.error_message
            number = int(answer.infer_response.id[1])
            assert np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32)[0] == number
        assert call.ends == [None]

    with_desk(test)


def test_the_steps_of_a_sequence_start_in_order_at_once() -> None:
    async def test(desk: Desk) -> None:
        desk.door.held = []
        call, receiver = desk.stream()
        for number in range(4):
            receiver.message(step(str(number), 7, start=number == 0, end=number == 3))
        assert len(desk.door.held) == 4, "none waits for the answer of the one before"
        desk.door.release(range(4))
        await asyncio.sleep(0)
        steps = [np.frombuffer(a.infer_response.raw_output_contents[0], np.int64)[0] for a in call.streamed]
        assert steps == [1, 2, 3, 4] and not call.ends
        receiver.message(step("late", 7))
        assert "sequence_start" in call.streamed[4].error_message and call.streamed[4].infer_response.id == "late"

    with_desk(test)


def test_a_stream_that_sends_faster_than_is_answered_has_to_wait() -> None:
    async def test(desk: Desk) -> None:
        desk.door.held = []
        call, receiver = desk.stream()
        for _ in range(service.IN_FLIGHT_MAX - 1):
            receiver.message(affine().SerializeToString())
        assert call.holds == []
        receiver.message(b"\xff")  # a request that fails takes its place in the order too
        assert call.holds == [True]
        desk.door.held[1][0].set_result(desk.door.held[1][1])
        await asyncio.sleep(0)
        assert call.holds == [True] and not call.sent
        desk.door.held[0][0].set_result(desk.door.held[0][1])
        await asyncio.sleep(0)
        assert call.holds == [True, False] and len(call.sent) == 2
        for _ in range(2):
            receiver.message(affine().SerializeToString())
        assert call.holds == [True, False, True]
        desk.door.release(range(len(desk.door.held)))
        receiver.ended()
        await asyncio.sleep(0)
        assert len(call.sent) == service.IN_FLIGHT_MAX + 2 and call.ends == [None]

    with_desk(test)


def test_a_stream_s_time_is_what_is_left_of_it() -> None:
    async def test(desk: Desk) -> None:
        _, receiver = desk.stream(timeout_s=10.0)
        for passed, left in ((0.0, 10.0), (4.0, 6.0), (7.0, 1e-6)):
            desk.clock.advance(passed)
            receiver.message(affine().SerializeToString())
            found: Any = desk.door.calls[-1]
            assert found.timeout_s == pytest.approx(left)

    with_desk(test)


def test_the_last_answer_is_marked_for_a_client_that_waits_for_it() -> None:
    async def test(desk: Desk) -> None:
        call, receiver = desk.stream()
        message = affine(id="last")
        message.parameters["triton_enable_empty_final_response"].bool_param = True
        receiver.message(message.SerializeToString())
        receiver.message(affine().SerializeToString())
        marked, plain = (answer.infer_response for answer in call.streamed)
        assert marked.parameters["triton_final_response"].bool_param and len(marked.raw_output_contents) == 2
        assert "triton_final_response" not in plain.parameters

    with_desk(test)


# The other methods.


def test_configuration_and_statistics_are_read_by_the_client_s_own_messages() -> None:
    spec = TensorSpec("x", "BYTES", (-1, 3))
    described = Description("m", ("1", "12"), "onnxruntime_onnx", (spec,), (TensorSpec("y", "FP16", (-1,)),))
    plain = Config(description=described, version="12", rows_max=0)
    full = Config(
        description=described,
        version="12",
        rows_max=64,
        instances=2,
        device="cuda:1",
        preferred=(8, 32),
        wait_s=0.0015,
        timeout_s=2.0,
        p99_s=0.015,
        queue_rows_max=100,
    )
    stateful = Config(description=described, version="12", rows_max=64, sessions=9, idle_s=30.0, preferred=(4,))
    for config in (plain, full, stateful):
        theirs = json_format.ParseDict(model_config.config(config), model_config_pb2.ModelConfig())
        ours = json_format.ParseDict(model_config.config(config), messages.of("ModelConfig")())
        assert model_config_pb2.ModelConfig.FromString(ours.SerializeToString()) == theirs
    found = model_config.config(full)
    assert (found["max_batch_size"], found["backend"]) == (64, "onnxruntime")
    assert found["input"] == [{"name": "x", "data_type": "TYPE_STRING", "dims": [3]}]
    assert found["instance_group"] == [{"name": "m_0", "count": 2, "kind": "KIND_GPU", "gpus": [1]}]
    assert found["dynamic_batching"] == {
        "preferred_batch_size": [8, 32],
        "max_queue_delay_microseconds": 1500,
        "default_queue_policy": {
            "allow_timeout_override": True,
            "default_timeout_microseconds": 2000000,
            "max_queue_size": 100,
        },
    }
    assert found["parameters"] == {"p99_ms": {"string_value": "15"}}
    assert model_config.config(plain)["input"] == [{"name": "x", "data_type": "TYPE_STRING", "dims": [-1, 3]}]
    assert "dynamic_batching" not in model_config.config(plain)
    assert model_config.config(stateful)["sequence_batching"]["max_sequence_idle_microseconds"] == 30_000_000  # type: ignore[index]
    spent = Spent(3, 4_000)
    done = Statistics(
        model="m", version="12", success=spent, fail=Spent(), queue=spent, copy=spent, compute=spent, split=spent
    )
    theirs = json_format.ParseDict(model_config.statistics([done]), service_pb2.ModelStatisticsResponse())
    assert theirs.model_stats[0].inference_stats.compute_infer.ns == 4_000


def test_rows_that_do_not_come_first_are_not_a_batch() -> None:
    fixed = Description("m", ("1",), "p", (TensorSpec("x", "FP32", (2, 3)),), (TensorSpec("y", "FP32", (-1,)),))
    found = model_config.config(Config(description=fixed, version="1", rows_max=8))
    assert found["max_batch_size"] == 0 and found["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [2, 3]}]


def test_methods_that_are_not_offered_say_what_to_do_instead() -> None:
    async def test(desk: Desk) -> None:
        for name in ("SystemSharedMemory", "CudaSharedMemory"):
            assert not desk.ask(f"{name}Status").regions
            desk.ask(f"{name}Unregister")
            with pytest.raises(errors.NotFound):
                desk.ask(f"{name}Status", name="r")
            with pytest.raises(errors.Missing, match="raw_input_contents"):
                desk.ask(f"{name}Register", name="r")
        for name in ("TraceSetting", "LogSettings"):
            with pytest.raises(errors.Missing, match="not set here"):
                desk.ask(name)
        with pytest.raises(errors.Missing, match="ModelDance"):
            desk.service.open(Said(f"/{SERVICE}/ModelDance"))
        with pytest.raises(errors.BadInput, match="put a new version there"):
            desk.ask("RepositoryModelLoad", model_name="affine", parameters={"config": {"string_param": "{}"}})
        listed = {one.state for one in desk.ask("RepositoryIndex").models}
        assert listed == {"READY", "UNAVAILABLE"}
        assert {one.state for one in desk.ask("RepositoryIndex", ready=True).models} == {"READY"}
        with pytest.raises(errors.BadInput, match="repository_name"):
            desk.ask("RepositoryIndex", repository_name="other")
        with pytest.raises(errors.BadInput, match="protobuf"):
            call = Said(f"/{SERVICE}/ModelMetadata")
            desk.service.open(call).message(b"\xff")
            raise call.error

    with_desk(test)


def test_the_health_check_of_load_balancers() -> None:
    async def test(desk: Desk) -> None:
        asked, answered = (messages.CLASSES[f"grpc.health.v1.HealthCheck{n}"] for n in ("Request", "Response"))
        desk.door.keys = {}

        def check(name: str) -> Said:
            call = Said("/grpc.health.v1.Health/Check")
            desk.service.open(call).message(asked(service=name).SerializeToString())
            return call

        for name in ("", SERVICE):
            assert answered.FromString(check(name).sent[0]).status == 1
        desk.door.up = False
        assert answered.FromString(check("").sent[0]).status == 2
        assert isinstance(check("other").error, errors.NotFound)

    with_desk(test)


# Anything at all.

seeds = [
    affine(id="a", outputs=[{"name": "y"}]).SerializeToString(),
    step("b", 7, start=True),
    request(
        "echo-BYTES", {"v": ("BYTES", np.frombuffer(b"\x03\0\0\0abc\0\0\0\0", np.uint8).reshape(1, 11))}
    ).SerializeToString(),
    service_pb2.ModelInferRequest(
        model_name="pair",
        inputs=[
            {"name": "a", "datatype": "INT64", "shape": [1, 2], "contents": {"int64_contents": [1, 2]}},
            {"name": "b", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [3.0]}},
        ],
        outputs=[{"name": "s", "parameters": {"classification": {"int64_param": 1}}}],
    ).SerializeToString(),
]


def survive(data: bytes) -> None:
    async def test(desk: Desk) -> None:
        call = desk.infer(data)
        assert call.ends[0] is None or (isinstance(call.ends[0], errors.Error) and call.ends[0].status < 500), data
        stream, receiver = desk.stream()
        receiver.message(data)
        receiver.message(affine(id="next").SerializeToString())
        receiver.ended()
        assert stream.streamed[-1].infer_response.id == "next" and stream.ends == [None]
        assert "internal" not in stream.streamed[0].error_message

    with_desk(test)


def mutated(data: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    found = bytearray(data)
    for place, kind, new in mutations:
        at = int(place * len(found))
        if kind == "delete":
            del found[at : at + 2]
        else:
            found[at : at + (len(new) if kind == "replace" else 0)] = new
    return bytes(found)


changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.sampled_from(["replace", "delete", "insert"]), st.binary(max_size=4)
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.builds(mutated, st.sampled_from(seeds), changes)))
def test_no_bytes_are_a_bug_of_ours(data: bytes) -> None:
    survive(data)


@pytest.mark.slow
@settings(max_examples=6000, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(mutated, st.sampled_from(seeds), changes),
        requests.map(lambda m: m.SerializeToString()),
    )
)
def test_no_bytes_are_a_bug_of_ours_at_length(data: bytes) -> None:
    survive(data)


def test_answers_of_equal_shapes_are_told_apart() -> None:
    """The part of an answer that is kept is of everything that is in it."""
    outputs = (TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT32", (-1,)))
    plan = Plan(Description("m", ("1",), "p", (TensorSpec("x", "FP32", (-1,)),), outputs))
    written = wire.Answers(plan)
    arrays = {"a": np.ones(2, np.float32), "b": np.ones(2, np.int32)}
    x = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}

    def answered(name: str, version: str, arm: str, policy: int) -> tuple[str, str, str, str, int]:
        layout = plan.layout({"inputs": [x], "outputs": [{"name": name}]}, binary=True)
        data = written.write(layout, b"i", Output(arrays, "m", version, policy, arm), False)
        found = service_pb2.ModelInferResponse.FromString(data)
        said = found.parameters
        assert found.raw_output_contents[0] == arrays[name].tobytes() and found.id == "i"
        tensor = found.outputs[0]
        return tensor.name, tensor.datatype, found.model_version, said["arm"].string_param, said["policy"].int64_param

    for _ in range(2):
        assert answered("a", "1", "live", 3) == ("a", "FP32", "1", "live", 3)
        assert answered("b", "1", "live", 3) == ("b", "INT32", "1", "live", 3)
        assert answered("b", "2", "live", 3) == ("b", "INT32", "2", "live", 3)
        assert answered("b", "2", "canary", 4) == ("b", "INT32", "2", "canary", 4)
