"""Voices made of numbers, for tests of who spoke: windows of one person are `alike` to each other, and two persons as
much as their line makes them."""

import numpy as np

from millstream.flows.speech.settings import RATE
from millstream.flows.speech.speakers import Voiced
from millstream.flows.speech.speakers.windows import Windows
from millstream.spoken import Correction, Segment, SpeakerTold, Transcript, Word


class People:
    """`alike`: cosine of two windows of one person; `line`: of two persons' windows."""

    def __init__(self, count, seed=0, alike=0.6, line=0.05):
        self.chance = np.random.default_rng(seed)
        self.line, self.own, self.noise = np.sqrt(line), np.sqrt(alike - line), np.sqrt(1 - alike)
        basis, _ = np.linalg.qr(self.chance.standard_normal((256, count + 1)))
        self.common, self.persons = basis[:, 0], basis[:, 1:].T

    def voice(self, person):
        noise = self.chance.standard_normal(256)
        mixed = self.line * self.common + self.own * self.persons[person] + self.noise * noise / np.linalg.norm(noise)
        return (mixed / np.linalg.norm(mixed)).astype(np.float32)

    def windows(self, start, end, person):
        """A segment's windows, samples; `person` may be a function of the middle of each."""
        who = person if callable(person) else lambda at: person
        return [Voiced(a, b, self.voice(who((a + b) // 2))) for a, b in Windows().wanted(start, end, closed=True)]


def words(start, end, pause=None, length=0.3):
    """Words of .3 s from second `start` to `end`, and none in `pause`."""
    edges = np.arange(start, end - 1e-6, length)
    made = [Word("w", float(a), float(min(a + length - 0.02, end))) for a in edges]
    return [w for w in made if pause is None or w.end <= pause[0] or w.start >= pause[1]]


def samples(seconds):
    return int(seconds * RATE)


class Listener:
    """A client: it folds what is told, and writes down all of it."""

    def __init__(self):
        self.transcript, self.log, self.seq, self.revs = Transcript(), [], 0, {}

    def tell(self, changes):
        for change in changes:
            self.seq += 1
            self.log.append(change)
            if hasattr(change, "op"):
                told = SpeakerTold(seq=self.seq, op=change.op, id=change.id, name=change.name, into=change.into)
            else:
                self.revs[change.segment] += 1
                rev = self.revs[change.segment]
                told = Correction(seq=self.seq, id=change.segment, rev=rev, speaker=change.speaker)
            self.transcript.hear(told)

    def final(self, segment, start, end, shown):
        self.tell(shown.told)
        self.seq, self.revs[segment] = self.seq + 1, 1
        self.log.append((segment, shown.speaker))
        told = Segment(
            seq=self.seq, id=segment, rev=1, state="final", start=start, end=end, words=[], speaker=shown.speaker
        )
        self.transcript.hear(told)

    def who(self, segment):
        return self.transcript.who(self.transcript.lines[segment])

    def whos(self):
        return [self.transcript.who(line) for line in self.transcript.shown()]


def talk(speakers, listener, people, turns, begin=0, finish=True):
    """`turns`: (person, start, end) in seconds, a segment each; the session calls as it does."""
    for number, (person, start, end) in enumerate(turns, begin):
        a, b = samples(start), samples(end)
        now = b + samples(0.7)
        listener.tell(speakers.due(now))
        voices = people.windows(a, b, person) if speakers.policy != "none" else []
        listener.final(f"s{number}", start, end, speakers.hear(f"s{number}", a, b, voices, now))
    if finish and turns:
        listener.tell(speakers.end(samples(turns[-1][2] + 1)))
    return listener


def partition(labels):
    """Labels as sets of positions: what is together, whatever it is called."""
    return {frozenset(k for k, other in enumerate(labels) if other == label) for label in labels}
