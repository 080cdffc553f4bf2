"""Who speaks: windows of audio, their voices, which are the same, and what of that is told when."""

from millstream.flows.speech.speakers.changes import Change, Moved, Named, Shown
from millstream.flows.speech.speakers.enrolled import Known
from millstream.flows.speech.speakers.policy import Speakers
from millstream.flows.speech.speakers.windows import Run, Span, Voiced, united

__all__ = ["Change", "Known", "Moved", "Named", "Run", "Shown", "Span", "Speakers", "Voiced", "united"]
