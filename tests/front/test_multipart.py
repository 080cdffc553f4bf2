"""Forms of multipart/form-data: as an independent client writes them, and as nobody should."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from front_house import Served, http
from hypothesis import given
from hypothesis import strategies as st
from talk_house import BLOCK, Hearing, words_of

from millstream import errors
from millstream.front import HttpLimits, multipart


def written(fields: dict[str, list[str]], name: str, data: bytes) -> bytes:
    """A form, by httpx."""
    request = httpx.Request("POST", "http://x/", data=fields, files={"file": (name, data)})
    return request.read()


@given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.lists(st.text(max_size=9), min_size=1, max_size=3)), st.binary()
)
def test_what_a_client_writes_is_read(fields: dict[str, list[str]], data: bytes) -> None:
    # a client writes line breaks and quotes of names as %0D%0A and %22, as browsers do
    fields = {name: values for name, values in fields.items() if not set(name) & set('"\r\n\\') and name.isprintable()}
    body = written(fields, "a b.wav", data)
    read = multipart.read(body, 1 << 20)
    assert (read.name, read.data) == ("a b.wav", data)
    assert {name: list(values) for name, values in read.fields.items()} == fields


@given(st.binary(max_size=200), st.integers(0, 60))
def test_whatever_comes_is_read_or_refused(junk: bytes, at: int) -> None:
    whole = written({"model": ["whisper-1"]}, "a.wav", b"abc")
    for body in (junk, whole[:at] + junk + whole[at:], whole[: len(whole) - at], b"--x\r\n" + junk):
        try:
            multipart.read(body, 100)
        except errors.Error as error:
            assert error.status in (400, 413)


def test_a_file_may_hold_what_looks_like_a_boundary() -> None:
    data = b"\r\n--x--\r\n--\r\n\r\n"
    body = b'--xy\r\ncontent-disposition: FORM-DATA; filename="\\"q\\".wav"; name=file\r\n\r\n' + data + b"\r\n--xy--"
    assert multipart.read(body, 100).data == data
    assert multipart.read(body, 100).name == '"q".wav'


def test_names_as_rfc_5987_writes_them() -> None:
    said = b"Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''%e6%b3%95%e5%ba%ad.wav"
    body = b"--x\r\n" + said + b"\r\n\r\n1\r\n--x--\r\n"
    assert multipart.read(body, 100).name == "法庭.wav"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "begins with no boundary"),
        (b'{"file": 1}', 400, "begins with no boundary"),
        (b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n1", 400, "cut off"),
        (b"--x\r\nContent-Type: audio/wav\r\n\r\n1\r\n--x--", 400, "no name"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--", 400, "no part called file"),
        (
            b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\n1\r\n--x--",
            400,
            "in the part called file",
        ),
        (b"--x\r\nContent-Disposition: form-data; name=file; filename=b\r\n\r\n%b\r\n--x--" % bytes(101), 413, "101"),
        (b"--x" + b"\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x" * 70, 413, "64 parts"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--xtra\r\n", 400, "broken behind a boundary"),
    ],
)
def test_what_is_no_such_form_is_refused(body: bytes, status: int, said: str) -> None:
    with pytest.raises(errors.Error, match=said) as refused:
        multipart.read(body, 100)
    assert refused.value.status == status


def test_a_file_is_transcribed_over_http() -> None:
    async def test() -> None:
        audio = bytes(range(256)) * (BLOCK // 128)
        body = written({"model": ["whisper-1"], "response_format": ["json"]}, "a.wav", audio)
        async with Served(HttpLimits(recording_bytes_max=len(audio))) as house:
            assert (await house.ask(http("POST", "/v1/audio/transcriptions", body))).status == 404
            house.door.hearing = Hearing()
            reply = await house.ask(http("POST", "/v1/audio/transcriptions", body))
            assert (reply.status, reply.json) == (200, {"text": " ".join(words_of(audio))})
            refused = await house.ask(http("POST", "/v1/audio/transcriptions", body, Origin="https://a.example"))
            assert refused.status == 403
            large = written({}, "a.wav", audio + b"1")
            assert (await house.ask(http("POST", "/v1/audio/transcriptions", large))).status == 413
            house.door.keys = {}
            assert (await house.ask(http("POST", "/v1/audio/transcriptions", body))).status == 401

    asyncio.run(test())
