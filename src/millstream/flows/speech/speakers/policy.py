"""Who is shown as the speaker of a segment, and when that changes: the policies.

    speakers = Speakers(policy, decide_s, horizon_s, known)
    speakers.wants(start, upto, closed)        windows of the open segment to embed
    speakers.looks(start, upto, closed)        and those to listen to for turns
    speakers.guess(segment, voices)            who its partials are shown with
    speakers.split(words, voices, start, end, seen)  at its end: which words are whose
    speakers.hear(segment, start, end, voices, now, seen)  each of these parts, as it is told as final
    speakers.due(now)                          what is to be told of others since
    speakers.end(now)                          ... and at the end

Rules of the room:
- All positions are samples of the session, and calls come in the order of `now`, the position at which the session came
  to know what it says. Nothing depends on when, or in how large pieces, the audio came.
- correctable: a speaker is shown at once, the nearest voice or a new one, and "unknown" where too little was said.
  Every 8 s of audio, and at the end, all segments are compared anew; who turns out to be another is told by segment,
  and an id that was another's all along is told as merged. Nothing is told of segments that ended more than the horizon
  ago.
- delayed: a final segment is shown as "analysing", until it is sure who speaks, or until `decide_s` after its end; who
  was decided then stays, whatever comes.
- enrolled: the known voices or "unknown". A partial may be "analysing"; what else was shown stays.
- none: nobody is told apart, and nothing is computed.
- What a person says of a speaker stands, and counts as certain for others.
- Where two speak at once one of them is shown, and `overlap` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millstream.errors import TooLarge
from millstream.flows.speech.settings import RATE, Policy
from millstream.flows.speech.speakers import windows
from millstream.flows.speech.speakers.changes import ANALYSING, UNKNOWN, Change, Moved, Named, Shown, match
from millstream.flows.speech.speakers.cluster import Scale, group, scale
from millstream.flows.speech.speakers.enrolled import Known, nearest
from millstream.flows.speech.speakers.units import Unit, condensed, means
from millstream.flows.speech.speakers.windows import TURN, Look, Run, Voiced, mean_within, split
from millstream.models.speech.turns import Span
from millstream.spoken import Speaker, Word

AGAIN: Final = 8 * RATE
"""Samples between two comparisons of everything."""
EARLY: Final = 16
"""The first so many segments are compared anew with each one that comes."""
NEW: Final = 2.0
"""Seconds of speech that make a voice nobody had before a speaker."""
WEAK: Final = 0.5
"""Who said little goes to the nearest voice already at this share of the bound."""
IDS_MAX: Final = 256
"""Ids that a session gives; whoever comes then goes to the nearest, or is unknown."""


class Speakers:
    """The speakers of one session. `decide_s`: of policy delayed; `horizon_s`: of corrections; `known`: enrolled
    voices, which also name the speakers of the other policies."""

    def __init__(
        self, policy: Policy, decide_s: float = 2.5, horizon_s: float = 3600.0, known: Sequence[Known] = ()
    ) -> None:
        self.policy = policy
        self.decide_s, self.horizon_s = decide_s, horizon_s
        self.known = list(known)
        self._windows, self._looks = windows.Windows(), windows.looks()
        self._units: list[Unit] = []
        # Of every id that was given, the id itself where it has no name. Enrolled voices have theirs from the
        # beginning, so that a guess needs to tell nothing.
        names = [voice.name for voice in self.known] if policy == "enrolled" else []
        self._names = {f"S{k}": name for k, name in enumerate(names, 1)}
        self._since: dict[str, int] = {}  # the first sample of the first segment that an id was told of
        self._into: dict[str, str] = {}
        self._sure = ("", "")  # policy enrolled: the open segment, and the id that it is shown with
        self._again, self._fresh = AGAIN, False

    # -- the open segment

    def wants(self, start: int, upto: int, closed: bool) -> list[Span]:
        """Windows to embed, first .. last sample, that were not given before: of speech that began at `start` and is
        known up to `upto`; `closed`: it ends there. Audio before and behind speech is none of it."""
        return [] if self.policy == "none" else self._windows.wanted(start, upto, closed)

    def looks(self, start: int, upto: int, closed: bool) -> list[Span]:
        """As `wants`, of windows of up to 10 s."""
        return [] if self.policy == "none" else self._looks.wanted(start, upto, closed)

    def guess(self, segment: str, voices: Sequence[Voiced]) -> Speaker:
        """Who a partial is shown with, by the windows so far. Changes nothing, but that under policy enrolled a name
        that is shown stays this segment's."""
        if self.policy == "none":
            return Speaker()
        if self.policy == "delayed":
            return Speaker(name=ANALYSING)
        if not voices:
            return Speaker(name=ANALYSING if self.policy == "enrolled" else UNKNOWN)
        mean, seconds, _, _ = mean_within(voices, voices[0].start, voices[-1].end)
        of = self._scale()
        if self.policy == "enrolled":
            return self._guess_known(segment, mean, seconds, of)
        ident, best, second = self._nearest(mean)
        if not ident or best < of.bound(seconds):
            return Speaker()
        return self._speaker(ident, of.score(best, second, seconds))

    def _guess_known(self, segment: str, mean: NDArray[np.float32], seconds: float, of: Scale) -> Speaker:
        if self._sure[0] != segment:
            found, best, second, bound = nearest(self.known, mean, of, seconds)
            clear = best >= (bound + of.same) / 2 and best - second >= (of.same - bound) / 2
            if not (found and seconds >= 1.5 * NEW and clear):
                return Speaker(name=ANALYSING)
            self._sure = (segment, found.name)
        return Speaker(id=self._id_of(self._sure[1]), name=self._sure[1], score=1.0)

    def split(
        self, words: Sequence[Word], voices: Sequence[Voiced], start: int, end: int, seen: Sequence[Look] = ()
    ) -> list[Run]:
        """Which words are whose in a segment with speech from `start` to `end`: nearly always one Run with all."""
        if self.policy == "none" or end - start < 2 * TURN:
            return [Run(0, len(words), start, end)]
        if self.policy == "enrolled":
            heard = [(voice.voice.astype(np.float64), voice.seconds) for voice in self.known]
        else:
            heard = list(means(self._units).values())
        return split(words, voices, start, end, self._scale(), heard, seen)

    # -- what was told

    def hear(
        self, segment: str, start: int, end: int, voices: Sequence[Voiced], now: int, seen: Sequence[Look] = ()
    ) -> Shown:
        """A segment is final: who it is shown with. Of `voices` those count whose middle lies in it; without any it is
        nobody's for ever. By `seen` it is flagged where two speak at once. What is `due` until then is told with it."""
        told = self.due(now)
        mean, weight, alike, pairs = mean_within(voices, start, end)
        overlap = windows.within(windows.overlaps(seen), start, end) >= windows.OVERLAP
        if self.policy == "none" or not weight:
            return Shown(Speaker(overlap=overlap), told)
        unit = Unit(segment, start, end, mean.astype(np.float16), weight, alike, pairs, overlap)
        self._units = condensed(self._units)
        self._units.append(unit)
        self._fresh = True
        if self.policy == "enrolled":
            return self._hear_known(unit, told)
        of = self._scale()
        ident, best, second = self._nearest(unit.voice, but=unit)
        if self.policy == "delayed":
            if not (ident and unit.strong and of.score(best, second, weight) >= 0.9):
                unit.waits = max(end + int(self.decide_s * RATE), now + 1)  # with what else became known now
                return Shown(Speaker(name=ANALYSING, overlap=unit.overlap), told)
            unit.fixed = True
        speaker = self._tell(unit, self._whose(unit, ident, best, told), of, best, second)
        if self.policy == "correctable" and len(self._units) <= EARLY:
            speaker = self._compared_early(unit, speaker, now, told)
        return Shown(speaker, told)

    def _compared_early(self, unit: Unit, speaker: Speaker, now: int, told: list[Change]) -> Speaker:
        """Compare everything, as there is little of it yet; who is shown with `unit`, of which nothing was told."""
        found: list[Change] = []
        self._compare(now, found)
        for change in found:
            if isinstance(change, Moved) and change.segment == unit.segment:
                speaker = change.speaker
            else:
                told.append(change)
        return speaker

    def _hear_known(self, unit: Unit, told: list[Change]) -> Shown:
        of = self._scale()
        found, best, second, bound = nearest(self.known, unit.voice, of, unit.weight)
        shown = self._sure[1] if self._sure[0] == unit.segment else ""
        self._sure, unit.fixed = ("", ""), True
        name = shown or (found.name if found and best >= bound * (1.0 if unit.strong else 0.75) else "")
        if not name:
            return Shown(Speaker(overlap=unit.overlap), told)
        ident = self._id_of(name)
        if ident not in self._since:
            told.append(Named("new", ident, name))
        return Shown(self._tell(unit, ident, of, best, second), told)

    def due(self, now: int) -> list[Change]:
        """What is to be told because the session has come to `now`."""
        told: list[Change] = []
        if self.policy == "delayed":
            for unit in sorted((u for u in self._units if 0 <= u.waits <= now), key=lambda u: (u.waits, u.start)):
                self._decide(unit, told)
        while self.policy == "correctable" and self._again <= now:
            at, self._again = self._again, self._again + AGAIN
            self._compare(at, told)
        return told

    def end(self, now: int) -> list[Change]:
        """What is to be told because nothing comes any more."""
        told = self.due(now)
        if self.policy == "delayed":
            for unit in [u for u in self._units if u.waits >= 0]:
                self._decide(unit, told)
        if self.policy == "correctable":
            self._compare(now, told)
        return told

    def fix(self, segment: str, who: str) -> tuple[Speaker, list[Change]]:
        """A person says that `who` spoke: an id, a name, or a name that nobody had. It is not changed any more."""
        told: list[Change] = []
        ident = who if who in self._names else next((k for k, name in self._names.items() if name == who), "")
        ident = self._resolved(ident)
        unit = next((u for u in self._units if u.segment == segment), None)
        if not ident and len(self._names) >= 2 * IDS_MAX + len(self.known):
            raise TooLarge(f"speech: {who!r}: a session has names for at most {2 * IDS_MAX} speakers; take one it has")
        if not ident:
            ident = self._given(who, unit.start if unit else 0, told)
        if unit:
            unit.id, unit.told, unit.fixed, unit.waits = ident, ident, True, -1
        return self._speaker(ident, 1.0), told

    # -- deciding

    def _decide(self, unit: Unit, told: list[Change]) -> None:
        """Policy delayed: it is time to say who speaks in `unit`, and to stay with it."""
        of = self._scale()
        ident, best, second = self._nearest(unit.voice, but=unit)
        mine = self._whose(unit, ident, best, told)
        unit.waits, unit.fixed = -1, True
        told.append(Moved(unit.segment, self._tell(unit, mine, of, best, second), "decided"))

    def _whose(self, unit: Unit, nearest: str, best: float, told: list[Change]) -> str:
        """The id of a unit while everybody else's stay, a new one if need be; "" if too little was said to know.
        `nearest`: the id that it is most like, by `best`."""
        of = self._scale()
        if unit.strong:
            units = [u for u in self._units if u.strong]
            labels = _grouped(units, of, [u.id for u in units])
            label = labels[units.index(unit)]
            same = [u for u, its in zip(units, labels, strict=True) if its == label]
            mine = next((u.id for u in same if u.id), "")
            if not mine and sum(u.weight for u in same) >= NEW:
                mine = self._new(unit, told)
            if mine:
                return mine
        return nearest if best >= of.bound(unit.weight) * WEAK else ""

    def _compare(self, at: int, told: list[Change]) -> None:
        """Policy correctable: find the voices anew in all that was said, and tell what has changed."""
        strong = [u for u in self._units if u.strong]
        if not self._fresh or not strong:
            return
        self._fresh = False
        of = self._scale()
        labels = _grouped(strong, of, [u.id if u.fixed else "" for u in strong])
        weights = np.bincount(labels, [u.weight for u in strong])
        ids = match(labels, [u.id for u in strong], [u.weight for u in strong], [u.fixed for u in strong])
        for unit, label in zip(strong, labels, strict=True):
            if label not in ids and weights[label] >= NEW and not unit.fixed:
                ids[label] = self._new(unit, told)
        before = {id(u): u.id for u in self._units}
        for unit in self._units:
            unit.id = unit.id if unit.fixed else ""
        for unit, label in zip(strong, labels, strict=True):
            unit.id = unit.id or ids.get(label, "")
        centres = means(self._units)
        for unit in [u for u in self._units if not u.id]:
            ident, best, _ = self._nearest(unit.voice, centres=centres)
            unit.id = ident if best >= of.bound(unit.weight) * WEAK else ""
        self._merge(before, at, told)
        self._correct(at, of, told)
        self._rename(of, told)

    def _merge(self, before: dict[int, str], at: int, told: list[Change]) -> None:
        """An id that no segment has any more, whose speech is nearly all one other's now, was that one's all along;
        unless segments that may not change any more are shown with it."""
        left = {u.id for u in self._units}
        for gone in sorted({ident for ident in before.values() if ident} - left, key=_number):
            units = [u for u in self._units if before[id(u)] == gone]
            shares: dict[str, float] = {}
            for u in units:
                shares[u.id] = shares.get(u.id, 0.0) + u.weight
            into = max(shares, key=lambda ident: shares[ident])
            most = shares[into] >= 0.8 * sum(shares.values())
            if into and most and self._since.get(gone, at) >= at - self.horizon_s * RATE:
                self._into[gone] = into
                self._since[into] = min(self._since.get(into, at), self._since.get(gone, at))
                told.append(Named("merge", gone, into=into))

    def _correct(self, at: int, of: Scale, told: list[Change]) -> None:
        centres = means(self._units)
        for unit in self._units:
            shown = self._resolved(unit.told)
            if unit.fixed or not unit.segment or not unit.id or shown == unit.id:
                unit.told = shown
                continue
            if unit.end >= at - self.horizon_s * RATE:
                _, best, second = self._nearest(unit.voice, centres=centres)
                told.append(Moved(unit.segment, self._tell(unit, unit.id, of, best, second), "compared anew"))

    def _rename(self, of: Scale, told: list[Change]) -> None:
        """Who sounds like an enrolled voice gets its name, if nobody else has it."""
        if not self.known:
            return
        for ident, (mean, weight) in means(self._units).items():
            if self._names[ident] == ident and weight >= NEW:
                name = self._name_of(mean, weight, of)
                if name:
                    self._names[ident] = name
                    told.append(Named("rename", ident, name))

    # -- voices and ids

    def _scale(self) -> Scale:
        return scale([u.alike for u in self._units if u.pairs])

    def _nearest(
        self,
        voice: NDArray[Any],
        but: Unit | None = None,
        centres: dict[str, tuple[NDArray[np.float64], float]] | None = None,
    ) -> tuple[str, float, float]:
        """The id that a voice is most like, how much, and how much like the next one. Nobody yet: "" and -1."""
        if centres is None:
            centres = means(u for u in self._units if u is not but)
        if not centres:
            return "", -1.0, -1.0
        likeness = {ident: float(mean @ voice.astype(np.float64)) for ident, (mean, _) in centres.items()}
        first, *rest = sorted(likeness, key=lambda ident: (-likeness[ident], _number(ident)))
        return first, likeness[first], likeness[rest[0]] if rest else -1.0

    def _tell(self, unit: Unit, ident: str, of: Scale, best: float, second: float) -> Speaker:
        unit.id = unit.told = ident
        if not ident:
            return Speaker(overlap=unit.overlap)
        self._since[ident] = min(self._since.get(ident, unit.start), unit.start)
        return self._speaker(ident, of.score(best, second, unit.weight), unit.overlap)

    def _speaker(self, ident: str, score: float, overlap: bool = False) -> Speaker:
        return Speaker(id=ident, name=self._names[ident], score=round(score, 3), overlap=overlap)

    def _new(self, unit: Unit, told: list[Change]) -> str:
        """A speaker that nobody heard before, under the name of the enrolled voice that it is like. "": no more."""
        if len(self._names) >= IDS_MAX:
            return ""
        return self._given(
            self._name_of(unit.voice, unit.weight, self._scale()) if self.known else "", unit.start, told
        )

    def _given(self, name: str, start: int, told: list[Change]) -> str:
        ident = f"S{len(self._names) + 1}"
        self._names[ident], self._since[ident] = name or ident, start
        told.append(Named("new", ident, name))
        return ident

    def _name_of(self, voice: NDArray[Any], seconds: float, of: Scale) -> str:
        found, best, _, bound = nearest(self.known, voice, of, seconds)
        return found.name if found and best >= bound and found.name not in self._names.values() else ""

    def _id_of(self, name: str) -> str:
        return next(ident for ident, given in self._names.items() if given == name)

    def _resolved(self, ident: str) -> str:
        while ident in self._into:
            ident = self._into[ident]
        return ident

    # -- the session's state

    def save(self) -> dict[str, Any]:
        """All but which windows of the open segment were given, of msgpack's types: who goes on with a session hears
        that segment again from its first sample. `restored` goes on exactly."""
        return {
            "policy": self.policy,
            "decide_s": self.decide_s,
            "horizon_s": self.horizon_s,
            "units": [unit.save() for unit in self._units],
            "names": self._names,
            "since": self._since,
            "into": self._into,
            "sure": list(self._sure),
            "again": [self._again, self._fresh],
        }

    @classmethod
    def restored(cls, saved: dict[str, Any], known: Sequence[Known] = ()) -> Speakers:
        """The speakers of a session that was saved. Under policy enrolled it knows those voices that it knew at its
        begin, of what is enrolled now."""
        if saved["policy"] == "enrolled":
            known = [voice for voice in known if voice.name in saved["names"].values()]
        made = cls(saved["policy"], saved["decide_s"], saved["horizon_s"], known)
        made._units = [Unit.restored(unit) for unit in saved["units"]]
        made._names, made._since, made._into = dict(saved["names"]), dict(saved["since"]), dict(saved["into"])
        made._sure = (saved["sure"][0], saved["sure"][1])
        made._again, made._fresh = saved["again"]
        return made

    @staticmethod
    def unheard(saved: dict[str, Any]) -> dict[str, Any]:
        """What was saved, without voices that another model made and what waits for them; no id is given again."""
        return saved | {"units": []} if saved else saved


def _grouped(units: Sequence[Unit], of: Scale, fixed: Sequence[str]) -> list[int]:
    """Which of the units are one voice's: a label of each; what has the same name in `fixed` stays together."""
    voices = np.stack([u.voice for u in units]).astype(np.float64)
    weight = np.array([u.weight for u in units])
    alike, pairs = voices @ voices.T, np.outer(weight, weight)
    np.fill_diagonal(alike, [u.alike for u in units])
    np.fill_diagonal(pairs, [u.weight**2 * u.pairs / (u.pairs + 2) for u in units])
    return group(alike, pairs, weight, of, fixed)


def _number(ident: str) -> int:
    return int(ident[1:])
