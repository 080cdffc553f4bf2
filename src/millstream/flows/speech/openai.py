"""What OpenAI's clients send to `/v1/audio/transcriptions`, and what they expect back.

https://platform.openai.com/docs/api-reference/audio/createTranscription. The file itself is the border's. `prompt`,
`temperature` and `chunking_strategy` are taken and change nothing: nothing is sampled here. What would change the form
of the answer and is not done here (`stream`, `include`) is refused.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

import msgspec

from millstream.errors import BadInput
from millstream.flows.speech.languages import LANGUAGES, tag
from millstream.flows.speech.written import Who, render, timed
from millstream.spoken import Line

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
PROMPT_MAX: Final = 4096
_IGNORED = {"chunking_strategy"}
_MANY = {"timestamp_granularities[]": "timestamp_granularities", "timestamp_granularities": "timestamp_granularities"}


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields beside the file. `language`: as `languages.tag` takes it, "": found out; `timestamp_granularities`: of
    verbose_json."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    language: str = ""
    prompt: Annotated[str, msgspec.Meta(max_length=PROMPT_MAX)] = ""
    response_format: ResponseFormat = "json"
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    timestamp_granularities: list[Literal["word", "segment"]] = []


def read(fields: Iterable[tuple[str, str]]) -> Form:
    """The form of the text fields, in the order in which they came. BadInput: one that is not known, or not taken."""
    found: dict[str, str | list[str]] = {}
    for name, value in fields:
        if name in _MANY:
            many = found.setdefault(_MANY[name], [])
            assert isinstance(many, list)
            many.append(value)
        elif name == "stream" and value.lower() in ("true", "1"):
            raise BadInput("stream: this answer comes in one piece; leave it out, or use the WebSocket /v1/speech")
        elif name == "stream" or name in _IGNORED:
            continue
        elif name in found:
            raise BadInput(f"{name!r} is there twice; send it once")
        else:
            found[name] = value
    if "model" not in found:
        raise BadInput("the form has no 'model'; name the model that transcribes")
    try:
        form = msgspec.convert(found, Form, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(f"the form of a transcription: {error}; it takes: {', '.join(Form.__struct_fields__)}") from None
    if form.timestamp_granularities and form.response_format != "verbose_json":
        raise BadInput(
            f"timestamp_granularities with response_format {form.response_format!r}: only verbose_json has times"
        )
    return msgspec.structs.replace(form, language=tag(form.language))


def answer(
    form: Form, lines: Sequence[Line], language: str, seconds: float, who: Who | None = None
) -> tuple[str, bytes]:
    """Content type and body for a recording of so many `seconds`, in `language` as a code."""
    text = _text(lines)
    match form.response_format:
        case "text":
            return "text/plain; charset=utf-8", f"{text}\n".encode()
        case "srt":
            return "text/plain; charset=utf-8", render("srt", lines, who).encode()
        case "vtt":
            return "text/vtt; charset=utf-8", render("vtt", lines, who).encode()
    body: dict[str, object] = {"text": text}
    if form.response_format == "verbose_json":
        body = {
            "task": "transcribe",
            "language": LANGUAGES.get(language, language),
            "duration": round(seconds, 3),
        } | body
        asked = form.timestamp_granularities or ["segment"]
        if "word" in asked:
            body["words"] = [
                {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
                for line in lines
                for word in timed(line)
            ]
        if "segment" in asked:
            body["segments"] = [_segment(number, line, form.temperature) for number, line in enumerate(lines)]
    body["usage"] = {"type": "duration", "seconds": math.ceil(seconds)}
    return "application/json", json.dumps(body, ensure_ascii=False).encode()


def _text(lines: Sequence[Line]) -> str:
    """All lines as one text: a space between two unless the next begins without one, as Chinese does."""
    text = ""
    for line in lines:
        spaced = not line.words or line.words[0].space
        text += f" {line.text}" if spaced else line.text
    return text.strip()


def _segment(number: int, line: Line, temperature: float) -> dict[str, object]:
    told = line.text.encode()
    told_any = any(word.confidence for word in line.words)  # some recognisers tell none, which is no doubt
    sure = [math.log(max(word.confidence, 1e-4)) for word in line.words if told_any]
    return {
        "id": number, "seek": 0, "start": round(line.start, 3), "end": round(line.end, 3), "text": f" {line.text}",
        "tokens": [], "temperature": temperature, "avg_logprob": round(sum(sure) / len(sure), 4) if sure else 0.0,
        "compression_ratio": round(len(told) / len(zlib.compress(told)), 4) if told else 0.0, "no_speech_prob": 0.0,
    }  # fmt: skip
