"""Who speaks: windows of audio, their voices, which are the same, and what of that is told when."""

from millstream.flows.speech.speakers.changes import Change, Moved, Named, Shown
from millstream.flows.speech.speakers.enrolled import Known
from millstream.flows.speech.speakers.policy import Speakers
from millstream.flows.speech.speakers.windows import Look, Run, Voiced, looked

__all__ = ["Change", "Known", "Look", "Moved", "Named", "Run", "Shown", "Speakers", "Voiced", "looked"]
