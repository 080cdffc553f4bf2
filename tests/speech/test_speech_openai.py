"""The form that OpenAI's clients send, and the answers that they read."""

import json

import pytest

from millstream.errors import BadInput
from millstream.flows.speech.languages import LANGUAGES
from millstream.flows.speech.openai import Form, answer, read
from millstream.spoken import Line, Word

WORDS = [
    Word(text="Hello", start=0.5, end=1.0, confidence=0.5),
    Word(text="world.", start=1.0, end=1.5, confidence=0.5),
]
HELLO = Line(id="1", rev=1, start=0.5, end=1.5, words=WORDS)
AGAIN = Line(id="2", rev=1, start=3.0, end=4.0, words=[Word(text="Again!", start=3.0, end=4.0, confidence=1.0)])
HAN = [
    Line(id=f"{k}", rev=1, start=k, end=k + 1, words=[Word(text=text, start=k, end=k + 1, space=False)])
    for k, text in enumerate(["你好。", "世界。"])
]


def test_the_fields_of_a_client():
    form = read([
        ("model", "whisper-1"), ("language", "en"), ("prompt", "Names: Jo"), ("response_format", "verbose_json"),
        ("temperature", "0.2"), ("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment"),
        ("stream", "false"),
    ])  # fmt: skip
    assert form == Form(
        model="whisper-1", language="en", prompt="Names: Jo", response_format="verbose_json", temperature=0.2,
        timestamp_granularities=["word", "segment"],
    )  # fmt: skip
    assert read([("model", "x")]) == Form(model="x")


@pytest.mark.parametrize(("said", "code"), [
    ("en-US", "en"), ("zh-CN", "zh"), ("zh_Hant_TW", "zh"), ("EN", "en"), ("english", "en"), ("Chinese", "zh"),
    ("Haitian Creole", "ht"), ("yue", "yue"), ("", ""),
])  # fmt: skip
def test_a_language_is_taken_as_people_write_it(said, code):
    assert read([("model", "x"), ("language", said)]).language == code


@pytest.mark.parametrize(("fields", "what"), [
    ([], "no 'model'"), ([("model", "")], "length"), ([("model", "x"), ("stream", "true")], "stream"),
    ([("model", "x"), ("model", "y")], "twice"), ([("model", "x"), ("response_format", "xml")], "xml"),
    ([("model", "x"), ("include[]", "logprobs")], r"include\[\]"), ([("model", "x"), ("temperature", "hot")], "float"),
    ([("model", "x"), ("temperature", "2")], "temperature"),
    ([("model", "x"), ("language", "Elvish")], "a code of two or three letters"),
    ([("model", "x"), ("timestamp_granularities[]", "word")], "verbose_json"),
    ([("model", "x"), ("prompt", "p" * 5000)], "prompt"),
])  # fmt: skip
def test_what_is_not_taken_is_said(fields, what):
    with pytest.raises(BadInput, match=what):
        read(fields)


def test_answers_by_format():
    lines = [HELLO, AGAIN]
    assert answer(Form(model="x", response_format="text"), lines, "en", 5.2) == (
        "text/plain; charset=utf-8", b"Hello world. Again!\n",
    )  # fmt: skip
    kind, body = answer(Form(model="x"), lines, "en", 5.2)
    assert kind == "application/json"
    assert json.loads(body) == {"text": "Hello world. Again!", "usage": {"type": "duration", "seconds": 6}}
    assert answer(Form(model="x", response_format="srt"), lines, "en", 5.2)[1].startswith(b"1\n00:00:00,500 --> ")
    kind, body = answer(Form(model="x", response_format="vtt"), lines, "en", 5.2)
    assert kind.startswith("text/vtt") and body.startswith(b"WEBVTT\n")
    assert json.loads(answer(Form(model="x"), HAN, "zh", 2.0)[1])["text"] == "你好。世界。"


def test_verbose_json_has_what_was_asked_for():
    form = Form(model="x", response_format="verbose_json")
    told = json.loads(answer(form, [HELLO, AGAIN], "en", 5.2)[1])
    assert told["task"] == "transcribe" and told["language"] == "english" and told["duration"] == 5.2
    assert "words" not in told
    first, second = told["segments"]
    assert first["text"] == " Hello world." and (first["start"], first["end"]) == (0.5, 1.5)
    assert first["avg_logprob"] == pytest.approx(-0.6931, abs=1e-3) and second["avg_logprob"] == 0
    assert json.loads(answer(form, HAN, "zh", 2.0)[1])["segments"][0]["avg_logprob"] == 0, "no confidence was told"
    words = Form(model="x", response_format="verbose_json", timestamp_granularities=["word"])
    only = json.loads(answer(words, [HELLO], "xx", 5.2)[1])
    assert "segments" not in only and only["language"] == "xx"
    assert only["words"] == [
        {"word": "Hello", "start": 0.5, "end": 1.0}, {"word": "world.", "start": 1.0, "end": 1.5},
    ]  # fmt: skip


def test_nothing_said_is_an_answer():
    for form in ("json", "text", "srt", "vtt", "verbose_json"):
        assert answer(Form(model="x", response_format=form), [], "", 0.0)[1] is not None


def test_every_language_of_whisper_has_its_name():
    assert len(LANGUAGES) == 100 and LANGUAGES["zh"] == "chinese" and LANGUAGES["ht"] == "haitian creole"
