"""Live speech over gRPC, with grpcio; the file for other languages says the same as the table."""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_house import GrpcServed, until
from hypothesis import given
from hypothesis import strategies as st
from talk_house import BLOCK, Hearing, texts_of

from millstream import errors, spoken
from millstream.front.grpc import speech
from millstream.types import Principal

PROTO = Path(__file__).parents[3] / "docs" / "speech.proto"
AUDIO = bytes(range(200)) * (BLOCK * 10 // 200)
Said, Told = speech.CLASSES["millstream.speech.v1.Said"], speech.CLASSES["millstream.speech.v1.Told"]


@pytest.fixture
def served() -> Iterator[GrpcServed]:
    with GrpcServed() as house:
        house.door.hearing = house.run(_hearing())
        yield house


async def _hearing() -> Hearing:
    return Hearing()


class Caller:
    """One call; `said` is put, `told` comes."""

    def __init__(self, house: GrpcServed, metadata: Any = ()) -> None:
        self.channel = grpc.insecure_channel(house.url)
        self.out: queue.Queue[Any] = queue.Queue()
        call = self.channel.stream_stream(
            "/millstream.speech.v1.Speech/Converse", Said.SerializeToString, Told.FromString
        )
        self.told = call(iter(self.out.get, None), metadata=metadata, timeout=20)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.out.put(None)
        self.channel.close()

    def say(self, **said: Any) -> None:
        self.out.put(Said(**said))

    def finals(self) -> list[str]:
        return [
            " ".join(word.text for word in told.segment.words) for told in self.told if told.segment.state == "final"
        ]

    def fails(self) -> tuple[Any, Any]:
        """(the code of the call, the last message)."""
        last = None
        with pytest.raises(grpc.RpcError) as raised:
            for told in self.told:
                last = told
        return raised.value.code(), last  # type: ignore[attr-defined]


def test_a_conversation(served: GrpcServed) -> None:
    with Caller(served) as call:
        call.say(start={"profile": "court", "rate": 16_000})
        ready = next(call.told)
        assert (ready.WhichOneof("told"), ready.ready.resume_token) == ("ready", "token-0")
        for at in range(0, len(AUDIO), 999):
            call.say(audio=AUDIO[at : at + 999])
        call.say(ack={"seq": 2})
        call.out.put(None)  # the end of the stream is finish
        assert call.finals() == texts_of(AUDIO)
        assert call.told.code() == grpc.StatusCode.OK
    hearing = served.door.hearing
    assert hearing.begun[0][0] == spoken.Start(profile="court")
    assert hearing.open[0].acked == 2
    until(lambda: hearing.closed == 1)


def test_an_edit_and_a_session_that_is_gone_on_with(served: GrpcServed) -> None:
    with Caller(served) as call:
        call.say(start={})
        call.say(audio=AUDIO[: BLOCK * 6])
        call.say(edit={"segment": "none", "text": "x"})
        call.say(edit={"segment": "g0", "text": "", "speaker": "S1"})
        told = next(told for told in call.told if told.WhichOneof("told") == "error")
        assert (told.error.code, told.error.fatal) == ("not_found", False)
        edited = next(told.edited for told in call.told if told.WhichOneof("told") == "edited")
        assert edited.HasField("text") and edited.text == "" and edited.speaker.id == "S1"
        seq = edited.seq
        call.told.cancel()
    until(lambda: served.door.hearing.closed == 1)
    with Caller(served) as call:
        call.say(start={"resume_token": "token-0", "seq": seq})
        assert next(call.told).ready.audio_ms == 400
        call.say(audio=AUDIO[400 * 32 :])
        call.say(finish={})
        assert call.finals() == texts_of(AUDIO)[1:]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([{}], "INVALID_ARGUMENT"),
        ([{"audio": b"\0\0"}], "INVALID_ARGUMENT"),
        ([{"start": {"rate": 3}}], "INVALID_ARGUMENT"),
        ([{"start": {"form": "mp3"}}], "INVALID_ARGUMENT"),
        ([{"start": {}}, {"start": {}}], "INVALID_ARGUMENT"),
        ([{"start": {}}, {"audio": b"broken"}], "INVALID_ARGUMENT"),
        ([{"start": {"resume_token": "x"}}], "NOT_FOUND"),
        ([{"start": {}}, {"audio": bytes(1 << 20)}], "RESOURCE_EXHAUSTED"),
        ([], "INVALID_ARGUMENT"),
    ],
)
def test_what_cannot_be_understood_is_told_and_ends_the_call(
    served: GrpcServed, said: list[dict[str, Any]], code: str
) -> None:
    with Caller(served) as call:
        for one in said:
            call.say(**one)
        if not said:
            call.out.put(None)
        status, last = call.fails()
        assert status.name == code
        assert last.error.code == code.lower() and last.error.fatal and last.error.error


@pytest.mark.parametrize(
    ("refuse", "code"),
    [(errors.Overloaded("full"), "RESOURCE_EXHAUSTED"), (RuntimeError("a secret"), "INTERNAL")],
)
def test_what_the_house_refuses_is_the_status(served: GrpcServed, refuse: Exception, code: str) -> None:
    served.door.hearing.refuse = refuse
    with Caller(served) as call:
        call.say(start={})
        status, last = call.fails()
        assert (status.name, last.error.code) == (code, code.lower())
        assert "secret" not in call.told.details()


def test_keys_are_asked_for_with_every_message(served: GrpcServed) -> None:
    served.door.keys = {"k": Principal("shop", ("*:speech",)), "o": Principal("o", ("*:infer",))}
    for metadata, code in (((), "UNAUTHENTICATED"), ((("authorization", "Bearer o"),), "PERMISSION_DENIED")):
        with Caller(served, metadata) as call:
            call.say(start={})
            assert call.fails()[0].name == code
    for left, code in (({"k": Principal("shop", ("*:infer",))}, "PERMISSION_DENIED"), ({}, "UNAUTHENTICATED")):
        served.door.keys = {"k": Principal("shop", ("*:speech",))}
        with Caller(served, (("authorization", "Bearer k"),)) as call:
            call.say(start={})
            next(call.told)
            served.door.keys = left
            call.say(audio=b"\0\0")
            assert call.fails()[0].name == code


def test_a_caller_that_sends_faster_than_it_is_heard_waits(served: GrpcServed) -> None:
    hearing = served.door.hearing
    hearing.deaf = True
    served.run(_set(hearing.go.clear))
    sent = 0

    def many() -> Iterator[Any]:
        nonlocal sent
        yield Said(start={})
        for _ in range(500):
            sent += 1
            yield Said(audio=bytes(32_000))

    with grpc.insecure_channel(served.url) as channel:
        call = channel.stream_stream("/millstream.speech.v1.Speech/Converse", Said.SerializeToString, Told.FromString)(
            many(), timeout=20
        )
        assert next(call).WhichOneof("told") == "ready"
        before = -1
        while sent != before:
            before = sent
            served.run(_wait(0.2))
        assert sent < 250
        (session,) = hearing.open
        served.run(_set(hearing.go.set))
        until(lambda: session.taken == 500 * 32_000)
        call.cancel()


async def _set(change: Callable[[], object]) -> None:
    change()


async def _wait(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


# -- the same fields everywhere ----------------------------------------------------------------------------------------


def test_the_file_for_other_languages_is_the_table() -> None:
    text = re.sub(r"//.*", "", PROTO.read_text())
    kinds = {1: "double", 3: "int64", 5: "int32", 8: "bool", 9: "string", 12: "bytes"}
    told = {}
    for name, body in re.findall(r"message (\w+) \{((?:[^{}]|\{[^{}]*\})*)\}", text):
        fields = re.findall(r"(optional |repeated |)(map<string, \w+>|\w+) (\w+) = (\d+);", body)
        choices = [
            (one, re.findall(r"(\w+) = \d+;", inner)) for one, inner in re.findall(r"oneof (\w+) \{([^}]*)\}", body)
        ]
        told[name] = (sorted((f[2], f[1], f[3], f[0].strip()) for f in fields), choices)
    made = {}
    for full, made_class in speech.CLASSES.items():
        found, choices = [], []
        descriptor = made_class.DESCRIPTOR
        for field in descriptor.fields:
            kind = kinds.get(field.type) or field.message_type.name
            label = "repeated" if field.is_repeated else ""
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                kind, label = f"map<string, {field.message_type.fields_by_name['value'].message_type.name}>", ""
            if field.containing_oneof is not None and field.containing_oneof.name == f"_{field.name}":
                label = "optional"
            found.append((field.name, kind, str(field.number), label))
        for one in descriptor.oneofs:
            if not one.name.startswith("_"):
                choices.append((one.name, [field.name for field in one.fields]))
        made[full.rpartition(".")[2]] = (sorted(found), choices)
    assert told == made


def test_every_message_has_the_fields_of_the_websocket() -> None:
    names = {str(one.__struct_config__.tag): one for one in spoken.Told.__args__}
    assert [field.name for field in Told.DESCRIPTOR.fields] == list(names)
    for field in Told.DESCRIPTOR.fields:
        assert [part.name for part in field.message_type.fields] == list(names[field.name].__struct_fields__)
    assert [field.name for field in Said.DESCRIPTOR.fields] == [
        *(str(one.__struct_config__.tag) for one in spoken.Said.__args__),
        "audio",
    ]


WORDS = st.builds(
    spoken.Word, text=st.text(max_size=5), start=st.floats(0, 9), end=st.floats(0, 9), space=st.booleans()
)
SPEAKERS = st.builds(spoken.Speaker, id=st.text(max_size=3), score=st.floats(0, 1), overlap=st.booleans())
SEQ = st.integers(0, 1 << 40)
CAPS = st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.floats(0, 9) | st.booleans(), max_size=3)
TOLD = st.one_of(
    st.builds(spoken.Ready, session=st.text(max_size=4), resume_token=st.text(max_size=4), audio_ms=SEQ, caps=CAPS),
    st.builds(spoken.Segment, seq=SEQ, id=st.text(), rev=st.integers(0, 9), state=st.sampled_from(["partial", "final"]),
              start=st.floats(0, 9), end=st.floats(0, 9), words=st.lists(WORDS, max_size=3), speaker=SPEAKERS),
    st.builds(spoken.Edited, seq=SEQ, id=st.text(), rev=st.integers(0, 9), text=st.none() | st.text(),
              speaker=st.none() | SPEAKERS),
    st.builds(spoken.Trouble, code=st.text(), error=st.text(), fatal=st.booleans(), retry_s=st.floats(0, 9)),
    st.builds(spoken.End, seq=SEQ, last_seq=SEQ, audio_ms=SEQ),
)  # fmt: skip


@given(TOLD)
def test_what_is_told_arrives_whole(told: Any) -> None:
    message = Told.FromString(speech.written(told))
    part = getattr(message, message.WhichOneof("told"))

    def back(value: Any, like: Any) -> Any:
        if isinstance(like, msgspec.Struct):
            return type(like)(**{name: back_field(value, like, name) for name in like.__struct_fields__})
        return value

    def back_field(value: Any, like: Any, name: str) -> Any:
        given, held = getattr(like, name), getattr(value, name)
        if given is None:
            assert not value.HasField(name)
            return None
        if isinstance(given, list):
            return [back(one, word) for one, word in zip(held, given, strict=True)]
        if isinstance(given, dict):
            return {key: getattr(cap, cap.WhichOneof("cap")) for key, cap in held.items()}
        return back(held, given)

    assert back(part, told) == told


@given(st.binary(max_size=60))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        speech.read(data)
    except errors.Error as error:
        assert error.status == 400
