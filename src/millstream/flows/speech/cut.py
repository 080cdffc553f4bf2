"""From how likely each frame is speech to segments: where one begins, when its words are due, where it ends.

Rules of the room:
- Everything is decided at the end of a frame, by that frame and those before it: however the audio was cut into
  messages, and however late it came, the same is decided at the same samples.
- Positions are samples of the session. A segment's audio begins before its speech (pre-roll) and never before the
  speech that the segment before it has; where speech is cut for its length, the next begins at that very sample.
- Times of the profile are rounded up to whole frames (32 ms).
- What is remembered is bounded by the longest segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

from millstream.flows.speech.settings import FRAME, RATE, Profile

ON: Final = 0.5
"""A frame at least as likely begins speech, or goes on with it after a pause."""
OFF: Final = 0.35
"""Speech goes on while frames are as likely."""
FAINT: Final = 0.1
"""Speech is taken to begin where frames before it were as likely: a quiet fricative is hardly speech to a detector."""
CLICK: Final = 3
"""Fewer frames of speech than these in a whole segment are no word."""
CUT_S: Final = 3.0
"""Speech that is cut for its length is cut within its last seconds."""
FIRST_MS: Final = 640
"""A segment is recognised after so much speech for the first time, where a step is longer: a few words are there. Where
a recogniser makes nothing of them, it is asked again when a step is over, else a step later."""

Why = Literal["silence", "punctuation", "length", "end", "click"]


def frames(ms: float) -> int:
    """So many frames are at least so long."""
    return -int(-ms * RATE // (1000 * FRAME))


def first_step(profile: Profile) -> int:
    """Samples of speech after which a segment is recognised for the first time."""
    return min(frames(FIRST_MS), frames(profile.step_ms)) * FRAME


class Began(NamedTuple):
    """Speech was noticed `at`; it is taken to begin at `onset`, and the audio that belongs to it at `start`."""

    at: int
    start: int
    onset: int


class Step(NamedTuple):
    """The open segment's audio is to be recognised, up to `at`. `pause`: somebody speaks no more; if it stays so, what
    is heard now is the final text, and nobody waits for it when the segment ends."""

    at: int
    pause: bool = False


class Ended(NamedTuple):
    """The segment is closed, which was decided `at`. Its final text is made of the audio from `start` to `end`; its
    speech lies between `onset` and `speech_end`, `speech` samples of it were heard as such. `why` "click": that is too
    little to be a word."""

    at: int
    start: int
    onset: int
    end: int
    speech_end: int
    speech: int
    why: Why


Event = Began | Step | Ended


class Cutter:
    """Cuts one session. `feed` every frame in order, once, and `finish` after the last.

    Between events the caller may say what it knows of the open segment, and the next frames are decided by it:
    `worded`, that it has words (then its first step is the beginning of a row of them); `full_stop`, that its words end
    a sentence (then punctuation_ms of silence are enough); `stable_to`, the sample up to which its words are settled
    (speech is cut for its length behind that). All are forgotten at its end.

    `hindsight` False: speech is cut for its length at the first pause in its last seconds, never at a sample that lies
    back, as what a streaming recogniser was given cannot be taken from it; and no step in a pause is a final text.
    """

    def __init__(self, profile: Profile, hindsight: bool = True) -> None:
        self._hindsight = hindsight
        self._pre, self._trailing = frames(profile.pre_roll_ms) * FRAME, frames(profile.trailing_ms) * FRAME
        self._hangover = frames(profile.hangover_ms)
        self._punctuation = min(frames(profile.punctuation_ms), self._hangover) or self._hangover
        self._step = frames(profile.step_ms) * FRAME if profile.partials else 0
        self._first = first_step(profile)
        self._pause = min(self._punctuation, self._hangover // 2) if hindsight else self._punctuation
        self._longest = int(profile.segment_s_max * RATE) // FRAME * FRAME
        self.at = 0
        """Samples decided on."""
        self.worded = self.full_stop = False
        self.stable_to = 0
        self._open = False
        self._start = self._onset = self._speech_end = self._floor = 0
        self._voiced = self._news = False  # whether the last frame was speech; whether any was since the last step
        self._due = False  # whether a step is: a row of them goes on when speech does, as a pause has its own
        self._speech = 0  # frames of speech in the segment
        self._recent: list[float] = []  # of the segment and its pre-roll; while there is none, of what could be that

    @property
    def open(self) -> bool:
        """Whether a segment is open."""
        return self._open

    @property
    def start(self) -> int:
        """Where the audio of the open segment begins."""
        return self._start

    @property
    def onset(self) -> int:
        """Where its speech does."""
        return self._onset

    @property
    def speech_end(self) -> int:
        """Where speech was heard last."""
        return self._speech_end

    @property
    def needed_from(self) -> int:
        """No audio before this sample is asked for any more by what is open or still to begin."""
        return self._start if self._open else max(self._floor, self.at - 2 * self._pre - FRAME)

    def feed(self, probabilities: Iterable[float]) -> Iterator[Event]:
        """What happens at these frames, in order. Lazily: a frame is decided when the events before it were taken."""
        for probability in probabilities:
            self.at += FRAME
            self._recent.append(float(probability))
            if self._open:
                yield from self._inside(float(probability))
            else:
                yield from self._outside(float(probability))

    def finish(self) -> Iterator[Event]:
        """No more audio comes: what is open ends here."""
        if self._open:
            yield self._end(min(self._speech_end + self._trailing, self.at), "end")

    def save(self) -> dict[str, Any]:
        """Where it stands, as plain values."""
        plain = {name: value for name, value in vars(self).items() if name not in _OF_PROFILE}
        return {**plain, "_recent": list(self._recent)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from there, under the same profile."""
        vars(self).update({**saved, "_recent": list(saved["_recent"])})

    def _outside(self, probability: float) -> Iterator[Event]:
        if probability < ON:
            del self._recent[: -(2 * self._pre // FRAME + 1)]
            return
        back = 1
        while back < min(len(self._recent), self._pre // FRAME) and self._recent[-back - 1] >= FAINT:
            back += 1
        onset = max(self.at - back * FRAME, self._floor)
        self._begin(onset, max(onset - self._pre, self._floor, 0))
        self._voiced = self._news = True
        self._speech, self._speech_end = 1, self.at
        yield Began(self.at, self._start, self._onset)

    def _begin(self, onset: int, start: int) -> None:
        self._open, self._onset, self._start = True, onset, start
        del self._recent[: len(self._recent) - (self.at - start) // FRAME]
        self.worded, self.full_stop, self.stable_to = False, False, 0

    def _inside(self, probability: float) -> Iterator[Event]:
        self._voiced = probability >= (OFF if self._voiced else ON)
        if self._voiced:
            self._speech, self._speech_end, self._news = self._speech + 1, self.at, True
        silent = (self.at - self._speech_end) // FRAME
        pause = silent == self._pause < self._hangover
        draft = pause and self._hindsight
        if self._step and self._speech >= CLICK:
            spoken = self.at - self._onset
            first = spoken == self._first
            due = first or (spoken - (self._first if self.worded else 0)) % self._step == 0
            self._due = self._news and (self._due or due)
            if draft or (self._due and not (self.worded and silent)) or (self._news and pause):
                self._news = self._due = False
                yield Step(self.at, draft)
        if silent >= self._hangover or (self.full_stop and silent >= self._punctuation):
            why: Why = "silence" if silent >= self._hangover else "punctuation"
            yield self._end(min(self._speech_end + self._trailing, self.at), why)
        elif self.at - self._start >= self._longest - (0 if self._hindsight or probability >= OFF else CUT_S * RATE):
            yield from self._cut()

    def _cut(self) -> Iterator[Event]:
        """End the segment at its least likely frame of late, and begin the next there."""
        back = int(CUT_S * RATE) if self._hindsight else 0
        first = max(self.at - back, self.stable_to, self._start + self._longest // 2)
        late = self._recent[-(-(first - self._start) // FRAME) :]
        least = min(range(len(late)), key=lambda n: (late[n], n), default=0)
        where = self.at - (len(late) - least) * FRAME
        behind, speech_end, voiced = self._recent[(where - self._start) // FRAME :], self._speech_end, self._voiced
        speech = min(sum(one >= OFF for one in behind), self._speech)
        self._speech, self._speech_end = self._speech - speech, min(speech_end, where)
        ended = self._end(where, "length")
        self._floor, self._recent = where, behind
        if speech_end > where:  # it goes on: both happen at once, so that whoever saves between the two finds it open
            self._begin(where, where)
            self._voiced, self._news, self._speech, self._speech_end = voiced, True, speech, speech_end
        yield ended
        if speech_end > where:
            yield Began(self.at, where, where)

    def _end(self, end: int, why: Why) -> Ended:
        if self._speech < CLICK and why != "length":
            why = "click"
        ended = Ended(self.at, self._start, self._onset, end, self._speech_end, self._speech * FRAME, why)
        self._open = self._voiced = False
        self._floor = self._speech_end
        del self._recent[: len(self._recent) - (self.at - self._speech_end) // FRAME]
        self._speech, self.worded, self.full_stop, self.stable_to = 0, False, False, 0
        return ended


_OF_PROFILE = {
    "_hindsight", "_pre", "_trailing", "_hangover", "_punctuation", "_pause", "_step", "_first", "_longest"
}  # fmt: skip
