"""What a recogniser takes on this machine, found out by asking it: before anybody is promised anything.

No recording is at hand where a service starts, so the sound is made: syllables of vowels and hisses, which recognisers
take for a few words, and a hush, in which there are none. The difference is the price of a token. A call is taken to
cost what a hush of its length does, and so much more for each token of what people say in that time, TOKENS_S a second.
Of calls that are alike the fastest counts: a machine that was busy with something else for a moment must not keep a
service from starting. What it then really takes is counted in service (millstream_speech_first_token_late_total).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.flows.speech.cut import Ended, first_step
from millstream.flows.speech.pressure import Cost
from millstream.flows.speech.recognise import BEAM, FINAL, STEP, WINDOW_S, Asker, Streamed
from millstream.flows.speech.settings import RATE, Profile
from millstream.flows.speech.speakers.windows import HOP, LOOK, LOOK_HOP, WINDOW
from millstream.flows.speech.wiring import Embed, Listen

TRIES: Final = 3
SEEDS: Final = 6
"""Sounds that are made, in search of WORDED that are taken for words; the one whose tokens came fastest counts, as a
recogniser may try again and again on another."""
WORDED: Final = 2
LONG_S: Final = WINDOW_S
"""Seconds of the longer calls: of a long window, of a long final text."""
PAUSE_S: Final = 3.0
"""Seconds of speech between two pauses in which a final text is made (cut.py): LibriSpeech read aloud has 3.3."""
TOKENS_S: Final = 4.0
"""Tokens of the text of a second of speech: what whisper-base takes for a second of English read aloud is 3.5."""
TOKEN_SHARE: Final = 0.05
"""A token is taken to cost this share of a call of a hush, where nothing that is made is taken for words."""
TIMEOUT_S: Final = 60.0
Samples = NDArray[np.float32]
Clocks = Sequence[Callable[[], float]]
HERE: Final[Clocks] = (time.perf_counter, time.process_time)
"""For what the cores compute: what others take of them meanwhile does not count, as several processes that start at
once would else refuse each other."""
ELSEWHERE: Final[Clocks] = (time.perf_counter,)
_VOWELS: Final = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""Hz of formants (Peterson and Barney, "Control methods used in a study of the vowels", 1952)."""
_WIDTHS, _HEIGHTS = (80, 100, 140), (1.0, 0.5, 0.25)


def syllables(seconds: float, seed: int = 0) -> Samples:
    """Sound that is like speech and says nothing, float32 [n] at 16 kHz."""
    chance = np.random.default_rng(seed)
    made: list[Samples] = []
    while sum(map(len, made)) < seconds * RATE:
        made += [_hiss(chance), _vowel(chance)]
        if chance.random() < 0.15:
            made.append(np.zeros(RATE // 8, np.float32))
    return np.concatenate(made)[: round(seconds * RATE)]


def hush(seconds: float) -> Samples:
    """Next to nothing, and no silence that a recogniser might pass over: float32 [n]."""
    return (0.0003 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


async def trial(asker: Asker, profile: Profile, streaming: bool, clocks: Clocks, tries: int = TRIES) -> Cost:
    """What a recogniser takes for a profile. Raises what the engine does."""
    if not asker.language:
        asker.language = "en"  # a recogniser that looks for the language of nothing may look for long
    if streaming:
        return min([await _streamed(asker, profile, clocks) for _ in range(tries - 1)], key=lambda cost: cost.step_s)
    return await _windowed(asker, profile, clocks, tries)


async def listening(embed: Embed | None, listen: Listen | None, clocks: Clocks = HERE) -> float:
    """Seconds that telling voices apart, and turns, takes of a second of speech. Speech for turns is listened to at its
    end, too, and a short stretch costs what a long one does."""
    voices = await _window(embed, clocks, WINDOW) * RATE / HOP if embed is not None else 0.0
    pause_s = min(LOOK_HOP / RATE, PAUSE_S)
    return voices + (await _window(listen, clocks, LOOK) / pause_s if listen is not None else 0.0)


async def _window(listen: Embed | Listen, clocks: Clocks, size: int) -> float:
    """Seconds of a window."""
    took = []
    for seed in range(TRIES):
        sound = syllables(size / RATE, seed)
        watch = _Watch(clocks)
        await listen([sound])
        took.append(watch.seconds())
    return min(took)


class _Watch:
    """What was spent since it was made, by the clock by which it was least."""

    def __init__(self, clocks: Clocks) -> None:
        self._began = [(now, now()) for now in clocks]

    def seconds(self) -> float:
        return min(now() - began for now, began in self._began)


async def _windowed(asker: Asker, profile: Profile, clocks: Clocks, tries: int) -> Cost:
    async def call(sound: Samples, beam: int) -> tuple[float, int]:
        watch, final = _Watch(clocks), beam > 1
        heard, _ = await asker.heard(sound, "", beam, final, FINAL if final else STEP, TIMEOUT_S)
        return watch.seconds(), heard.tokens

    first_s = first_step(profile) / RATE
    short_s = first_s + profile.pre_roll_ms / 1000
    sounds = {"short": hush(short_s), "long": hush(LONG_S)}
    worded: list[tuple[float, int]] = []
    for seed in range(SEEDS):
        took, tokens = await call(syllables(short_s, seed), 1)
        if 2 <= tokens <= 4 * TOKENS_S * short_s:
            worded.append((took / tokens, seed))
        if len(worded) == WORDED:
            break
    if worded:
        sounds["spoken"] = syllables(short_s, min(worded)[1])
    best: dict[tuple[str, int], tuple[float, int]] = {}
    for _ in range(tries):  # of all kinds in turn: a moment in which the machine is busy is not that of one kind
        for kind in ((name, beam) for name in sounds for beam in (1, BEAM)):
            best[kind] = min(best.get(kind, (np.inf, 0)), await call(sounds[kind[0]], kind[1]))
    token = _token(best, 1)
    fresh_s = min(LONG_S, (profile.look_ahead_ms + 2 * profile.step_ms) / 1000)  # of a window, what is not stable yet
    short, long, final = best["short", 1][0], best["long", 1][0], best["long", BEAM][0]
    return Cost(
        step_s=(short + long) / 2 + TOKENS_S * fresh_s * token,  # windows grow
        final_s=final + TOKENS_S * LONG_S * max(token, _token(best, BEAM)),
        segment_s=LONG_S,
        pause_s=PAUSE_S,
        first_s=short + TOKENS_S * first_s * token,
    )


def _token(best: dict[tuple[str, int], tuple[float, int]], beam: int) -> float:
    """Seconds of a token."""
    empty, _ = best["short", beam]
    if ("spoken", beam) not in best:
        return TOKEN_SHARE * empty
    took, tokens = best["spoken", beam]
    return max(0.0, took - empty) / max(tokens, 2)


async def _streamed(asker: Asker, profile: Profile, clocks: Clocks) -> Cost:
    """One utterance of LONG_S, a step each step_ms, as a session has it."""
    sound = syllables(LONG_S)

    def cut(start: int, end: int) -> Samples:
        return sound[start:end]

    heard, step = Streamed(asker, profile, 0), round(profile.step_ms * RATE / 1000)
    took = []
    for upto in range(step, len(sound), step):
        watch = _Watch(clocks)
        await heard.step(cut, upto)
        took.append(watch.seconds())
    watch = _Watch(clocks)
    end = len(sound)
    settled = await heard.final(cut, Ended(end, 0, 0, end, end, end, "end"))
    final_s = watch.seconds()
    if asker.turn is not None:
        await asker.leave()
    if settled.problem:
        raise errors.Misconfigured(f"{asker.model}: it cannot be measured: {settled.problem}")
    return Cost(step_s=float(np.median(took)), final_s=final_s, segment_s=LONG_S, first_s=took[0])


def _vowel(chance: np.random.Generator) -> Samples:
    length = int(chance.uniform(0.12, 0.25) * RATE)
    pitch = np.cumsum(np.linspace(1.0, 0.85, length) * chance.uniform(100, 140)) / RATE
    pulses = np.diff(np.floor(pitch), prepend=0.0)
    shape = sum(
        height / (1 + ((np.fft.rfftfreq(2 * length, 1 / RATE) - formant) / width) ** 2)
        for formant, width, height in zip(_VOWELS[chance.integers(len(_VOWELS))], _WIDTHS, _HEIGHTS, strict=True)
    )
    sound = np.fft.irfft(np.fft.rfft(pulses, 2 * length) * shape)[:length] * np.hanning(length) ** 0.3
    return _loud(sound, 0.3)


def _hiss(chance: np.random.Generator) -> Samples:
    length = int(chance.uniform(0.04, 0.1) * RATE)
    middle = chance.choice((650, 1950, 3900))
    shape = np.exp(-(((np.fft.rfftfreq(length, 1 / RATE) - middle) / (middle / 2)) ** 2))
    sound = np.fft.irfft(np.fft.rfft(chance.standard_normal(length)) * shape, length) * np.hanning(length)
    return _loud(sound, 0.08)


def _loud(sound: NDArray[np.float64], peak: float) -> Samples:
    return (sound * (peak / max(float(np.abs(sound).max()), 1e-9))).astype(np.float32)
