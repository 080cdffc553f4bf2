"""A story as one trace, for a collector that speaks OTLP over HTTP: the answer, what people did, examples, pushes and
the first answers with them, as spans with their real times. It needs the extra `otel`.

Rules of the room:
- The trace's id is made of the request's id, so a story that is sent again is the same trace, and goes on.
- A span says no more than the story: ids, versions, labels. What a person wrote is not sent.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from millstream.app.trace.told import Story
from millstream.errors import BadInput, Busy
from millstream.front.trace import Origin, Told, exporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

TIMEOUT_S: Final = 10.0
SPANS_MAX: Final = 500
"""Of outcomes, of examples and of pushes."""


def send(story: Story, url: str) -> str:
    """Send a story to a collector, such as http://127.0.0.1:4318; the trace's id, in hex.

    BadInput: that is no URL, or the story has no time to begin at; Busy: the collector did not take it; Missing: the
    extra `otel`.
    """
    if not url.startswith(("http://", "https://")):
        raise BadInput(f"--otlp: got {url[:200]!r}; send a URL such as http://127.0.0.1:4318")
    made = spans(story)
    out = exporter(url, TIMEOUT_S)
    try:
        sent = out.export(made).name == "SUCCESS"
    finally:
        out.shutdown()
    if not sent:
        raise Busy(f"{url} did not take the trace; is a collector for OTLP over HTTP listening there?")
    return f"{_trace(story):032x}"


def spans(story: Story) -> list[ReadableSpan]:
    """The spans of a story, the answer's first."""
    made = _Spans(story)
    root = made.add("request", "", 0, made.begin, made.end, made.about)
    for one in story.outcomes[:SPANS_MAX]:
        told: Told = {"item": one.item, "kind": one.kind, "value": one.value, "end": one.end, "cause": one.cause}
        made.add("outcome", one.key, root, made.begin, one.arrival, told)
    for example in story.examples[:SPANS_MAX]:
        told = {
            "item": example.item, "task": example.task, "label": example.label, "weight": example.weight,
            "offset": example.offset, "form": example.form, "why_not": example.why_not,
        }  # fmt: skip
        made.add("example", str(example.offset), root, example.arrival, example.known, told)
    for number, push in enumerate(story.pushes[:SPANS_MAX]):
        known = max((one.known for one in story.examples if number in one.pushes), default=push.at)
        told = {
            "model": push.model, "version": push.version, "upto": push.upto, "examples": push.examples,
            "staleness_s": push.staleness_s,
        }  # fmt: skip
        below = made.add("push", push.version, root, min(known, push.at), push.at, told)
        if push.seen is not None:
            told = {"request": push.seen.request, "version": push.seen.version}
            made.add("first answer with it", push.version, below, push.at, push.seen.at, told)
    return made.spans


class _Spans:
    def __init__(self, story: Story) -> None:
        times = [one.arrival for one in story.outcomes] + [one.known for one in story.examples]
        times += [one.at for one in story.pushes] + [one.seen.at for one in story.pushes if one.seen is not None]
        begin = story.place.arrival if story.place is not None else min(times, default=None)
        if begin is None:
            raise BadInput("the story has nothing that happened at any time, so there is no trace of it")
        self.begin, self.end = begin, max([begin, *times])
        self.spans: list[ReadableSpan] = []
        self._trace, self._origin = _trace(story), Origin()
        by = story.answered
        self.about: Told = {
            "request": story.request, "kind": story.kind, "tenant": story.tenant, "model": by.model,
            "version": by.version, "arm": by.arm, "policy": by.policy, "placement": story.asked.placement,
            "rules": story.asked.rules, "candidates": len(story.candidates),
        }  # fmt: skip

    def add(self, name: str, of: str, above: int, begin: float, end: float, told: Told) -> int:
        """A span, by whose id those below it name it."""
        ident = _number(f"{self._trace}/{name}/{of}/{len(self.spans)}", 8)
        known = {f"millstream.{key}": value for key, value in told.items() if value != ""}
        served = above == 0
        self.spans.append(self._origin.span(self._trace, name, ident, above, begin, end, known, served))
        return ident


def _trace(story: Story) -> int:
    return _number(f"{story.tenant}/{story.request}", 16)


def _number(text: str, size: int) -> int:
    """A number of so many bytes that is not 0."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size, person=b"story")
    return int.from_bytes(digest.digest(), "big") or 1
