"""What counts as a speaker that was shown wrongly: only a change of one that was shown."""

import asyncio

import pytest
from speech_house import Desk, live, pcm, said, talk

from millstream.flows.speech.speakers import Moved, Shown, Speakers
from millstream.spoken import Correction, Speaker


class Changing(Speakers):
    """Shows the first segment with `shown`, and changes it to each of `later`, one at a time."""

    def __init__(self, shown, later):
        super().__init__("none")
        self.shown, self.later, self.heard = shown, list(later), False

    def hear(self, segment, start, end, voices, now, seen=()):
        self.heard = True
        return Shown(Speaker(id=self.shown))

    def due(self, now):
        if not (self.heard and self.later):
            return []
        return [Moved("1", Speaker(id=self.later.pop(0)), "compared anew")]

    def end(self, now):
        return [change for _ in range(len(self.later)) for change in self.due(now)]


@pytest.mark.parametrize(
    ("shown", "later", "flips"),
    [
        ("", ["S1"], 0),  # it was unknown, or not decided yet
        ("S1", ["S1"], 0),  # another name, a better score
        ("S1", ["S2"], 1),
        ("S1", ["S2", "S1"], 2),
        ("S1", [""], 1),
        ("", ["S1", "S2"], 1),
    ],
)
def test_a_flip_is_a_shown_speaker_that_changes(shown, later, flips):
    async def test():
        hall = live(Desk(), speakers=lambda profile, saved: Changing(shown, later))
        told = await said(hall, pcm(talk("one two three")))
        assert [one.speaker.id for one in told if isinstance(one, Correction)] == later
        assert hall._wiring.numbers.flips.value == flips

    asyncio.run(test())
