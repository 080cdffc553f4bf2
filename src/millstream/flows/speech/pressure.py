"""How hard a process is pressed, what gives way first, and what a recogniser must be able to do for a profile.

What gives way, in this order, by how long hypotheses (and final texts) wait in the engine: they come half as often, and
new sessions are refused (1); there are none (2). Final texts wait behind hypotheses and are never left out.

The first words of a segment are told after

    what the detector takes for the onset of speech (LAG_MS after it)  +  the first step behind the moment when
    it is sure (SURE_MS after that)  +  the recogniser's time for a step

where the first step lies FIRST_MS (cut.py) behind that onset, or step_ms where that is less; network apart. Of the
built-in profiles, 95 of 100 times:

    profile     step_ms   first step after   first_token_ms_max   left for the recogniser
    assistant      128             212 ms                  300                      88 ms
    caption        992             724 ms                 1300                     576 ms
    meeting        992             724 ms                 2000                    1276 ms
    court          992             724 ms                 2000                    1276 ms

A word is stable one step after it was first said alike, and look_ahead_ms later if that is set; a final text comes
hangover_ms (punctuation_ms behind a full stop) after the end of speech, plus one call over the segment.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from millstream.clock import Clock
from millstream.flows.speech.cut import first_step
from millstream.flows.speech.settings import RATE, Profile

LAG_MS: Final = 84
"""The cutter's onset lies at most so far behind the first sample of speech, 95 of 100 times (labelled clips)."""
SURE_MS: Final = 64
"""And so long after that onset it says so."""
USED_MAX: Final = 0.7
"""Of a core, by sessions: more of it, and hypotheses begin to wait for each other."""
SESSION_S: Final = 0.007
"""Seconds of a core that a second of a session takes beside its recogniser and its voices: decoding, the detector,
messages, its file (bench/speech/sessions.py)."""
SMOOTHING: Final = 0.2
FORGET_S: Final = 5.0
"""Without a hypothesis for so long, nothing presses."""
PATIENCE: Final = 4.0
"""A final text may wait so many times longer than a hypothesis: it stands behind all of them, and would wait for ever
behind those that take every moment of the cores and do not wait themselves."""


class Pressure:
    """`limit_s`: hypotheses that wait longer mean overload."""

    def __init__(self, limit_s: float, clock: Clock) -> None:
        self._limit_s, self._now = limit_s, clock.monotonic
        self._waited_s = [0.0, 0.0]  # hypotheses, final texts
        self._at = [-FORGET_S, -FORGET_S]
        self._level = 0

    def waited(self, seconds: float, final: bool = False) -> None:
        """A hypothesis, or a final text, waited so long."""
        self._forget()
        self._at[final] = self._now()
        self._waited_s[final] += SMOOTHING * ((seconds / PATIENCE if final else seconds) - self._waited_s[final])
        waited_s = max(self._waited_s)
        if waited_s > 2 * self._limit_s:
            self._level = 2
        elif waited_s > self._limit_s:
            self._level = max(self._level, 1)
        elif waited_s < self._limit_s / 2:
            self._level = 0

    def level(self) -> int:
        """0 at ease, 1 hypotheses half as often, 2 none."""
        self._forget()
        return self._level

    def _forget(self) -> None:
        now = self._now()
        for kind in (0, 1):
            if now - self._at[kind] > FORGET_S:
                self._waited_s[kind] = 0.0
        if not any(self._waited_s):
            self._level = 0


class Cost(msgspec.Struct, frozen=True):
    """What a recogniser takes here, in seconds, at best: `step_s` for a hypothesis of a segment that grows, `final_s`
    for the final text of `segment_s` of speech, `first_s` for the first hypothesis (None: as step_s). `pause_s`:
    seconds of speech after which there is a pause, and so a final text to be made (None: segment_s). `voices_s`: what
    telling speakers apart takes of a second of speech."""

    step_s: float
    final_s: float = 0.0
    segment_s: float = 10.0
    first_s: float | None = None
    voices_s: float = 0.0
    pause_s: float | None = None


def first_step_ms(profile: Profile) -> int:
    """From the first sample of speech to the first hypothesis that is asked for, 95 of 100 times."""
    step = first_step(profile) * 1000 / RATE
    return LAG_MS + round(step * math.ceil(SURE_MS / step))


def fits(profile: Profile, cost: Cost) -> str | None:
    """Why this recogniser cannot do what the profile promises; None: it can."""
    if not profile.partials:
        return None
    first, step_ms = first_step_ms(profile), cost.step_s * 1000
    first_ms = step_ms if cost.first_s is None else cost.first_s * 1000
    if first + first_ms > profile.first_token_ms_max:
        return (
            f"first_token_ms_max = {profile.first_token_ms_max}: the first hypothesis is asked for {first} ms after "
            f"speech begins and takes {first_ms:.0f} ms here; take a faster recogniser, or allow {first + first_ms:.0f}"
        )
    if step_ms > USED_MAX * profile.step_ms:
        return (
            f"step_ms = {profile.step_ms}: a hypothesis takes {step_ms:.0f} ms here, so one session alone would fall "
            f"behind; say step_ms = {math.ceil(step_ms / USED_MAX / 32) * 32} or more"
        )
    return None


def second_s(profile: Profile, cost: Cost) -> float:
    """Seconds of a core that a second of a session takes in which somebody speaks."""
    second = SESSION_S + cost.final_s / max(cost.pause_s or cost.segment_s, 0.1)
    if profile.partials:
        second += cost.step_s * 1000 / profile.step_ms
    return second + (cost.voices_s if profile.speakers != "none" else 0.0)


def follows(profile: Profile, cost: Cost, cores: float) -> int:
    """How many sessions so many cores can follow at once; at least one."""
    return room(second_s(profile, cost), profile, cost, cores)


def room(second: float, profile: Profile, cost: Cost, cores: float) -> int:
    """The same, by what a second of a session is known to take. Who speaks is listened to on one of the cores."""
    most = cores * USED_MAX / second
    if profile.speakers != "none" and cost.voices_s:
        most = min(most, USED_MAX / cost.voices_s)
    return max(1, int(most))
