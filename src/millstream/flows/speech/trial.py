"""What a recogniser takes on this machine, found out by asking it: before anybody is promised anything.

No recording is at hand where a service starts, so the sound is made: syllables of vowels and hisses, which recognisers
take for a few words, and noise, which they do not. A call's time is taken to be that of the same length of noise, and
so much more for each token of its text, as people speak TOKENS_S of these a second. Of calls that are alike the fastest
counts: a machine that was busy with something else for a moment must not keep a service from starting.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream.flows.speech.cut import Ended
from millstream.flows.speech.pressure import Cost
from millstream.flows.speech.recognise import BEAM, FINAL, STEP, Asker, Streamed
from millstream.flows.speech.settings import RATE, Profile
from millstream.flows.speech.wiring import Embed

TRIES: Final = 3
SEEDS: Final = 4
"""Sounds that are made until one of them is taken for words."""
LONG_S: Final = 9.0
"""Seconds of the longer calls: of a long window, of a long final text."""
TOKENS_S: Final = 4.0
"""Tokens of the text of a second of speech: what whisper-base takes for a second of English read aloud is 3.5."""
TOKEN_SHARE: Final = 0.05
"""A token is taken to cost this share of a call of noise where nothing that is made is taken for words."""
PAUSE_S: Final = 0.25
TIMEOUT_S: Final = 60.0
Samples = NDArray[np.float32]
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


def noise(seconds: float) -> Samples:
    """No speech, and no silence that a recogniser might pass over: float32 [n]."""
    return (0.05 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


async def trial(asker: Asker, profile: Profile, streaming: bool, here: bool, tries: int = TRIES) -> Cost:
    """What a recogniser takes for a profile. `here`: the cores compute it, and what others take of them meanwhile does
    not count, as several processes that start at once would else refuse each other. What the engine raises."""
    if not asker.language:
        asker.language = "en"  # a recogniser that looks for the language of noise may look for long
    if streaming:
        return min([await _streamed(asker, profile, here) for _ in range(tries)], key=lambda cost: cost.step_s)
    return await _windowed(asker, profile, here, tries)


async def voiced(embed: Embed, here: bool, window_s: float, hop_s: float) -> float:
    """Seconds that telling voices apart takes of a second of speech: windows of so long, so far apart."""
    took = []
    for seed in range(TRIES):
        watch = _Watch(here)
        await embed([syllables(window_s, seed)])
        took.append(watch.seconds())
    return min(took) / hop_s


class _Watch:
    """What was spent since it was made: of this process's time on the cores where that is less."""

    def __init__(self, here: bool) -> None:
        self._here, self._began, self._spent = here, time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        took = time.perf_counter() - self._began
        return min(took, time.process_time() - self._spent) if self._here else took


async def _windowed(asker: Asker, profile: Profile, here: bool, tries: int) -> Cost:
    short_s = (profile.step_ms + profile.pre_roll_ms) / 1000
    spoken, tokens = await _worded(asker, short_s)
    took: dict[str, list[float]] = {}
    for n in range(tries):
        await asyncio.sleep(PAUSE_S if n else 0)
        for name, sound, beam in (
            ("short", noise(short_s), 1),
            ("long", noise(LONG_S), 1),
            ("final", noise(LONG_S), BEAM),
            ("spoken", spoken, 1),
            ("spoken final", spoken, BEAM),
            ("short final", noise(short_s), BEAM),
        ):
            watch = _Watch(here)
            stamps, priority = beam == BEAM, FINAL if beam == BEAM else STEP
            await asker.heard(sound, beam=beam, stamps=stamps, priority=priority, timeout_s=TIMEOUT_S)
            took.setdefault(name, []).append(watch.seconds())
    best = {name: min(times) for name, times in took.items()}
    token = _token(best["spoken"], best["short"], tokens)
    token_final = max(token, _token(best["spoken final"], best["short final"], tokens))
    first = best["short"] + TOKENS_S * profile.step_ms / 1000 * token
    long = best["long"] + TOKENS_S * LONG_S * token
    return Cost(
        step_s=(first + long) / 2,  # of the windows of a segment that grows, one each step
        final_s=best["final"] + TOKENS_S * LONG_S * token_final,
        segment_s=LONG_S,
        first_s=first,
    )


async def _worded(asker: Asker, seconds: float) -> tuple[Samples, int]:
    """Made speech that this recogniser takes for words, and how many tokens; 0: for none."""
    for seed in range(SEEDS):
        sound = syllables(seconds, seed)
        heard, _ = await asker.heard(sound, timeout_s=TIMEOUT_S)
        if 2 <= heard.tokens <= 4 * TOKENS_S * seconds:
            return sound, heard.tokens
    return syllables(seconds), 0


def _token(spoken_s: float, noise_s: float, tokens: int) -> float:
    """Seconds of a token."""
    return max(0.0, spoken_s - noise_s) / tokens if tokens else TOKEN_SHARE * noise_s


async def _streamed(asker: Asker, profile: Profile, here: bool) -> Cost:
    """One utterance of LONG_S, a step each step_ms, as a session has it."""
    sound = syllables(LONG_S)

    def cut(start: int, end: int) -> Samples:
        return sound[start:end]

    heard, step = Streamed(asker, profile, 0), round(profile.step_ms * RATE / 1000)
    took = []
    for upto in range(step, len(sound), step):
        watch = _Watch(here)
        await heard.step(cut, upto)
        took.append(watch.seconds())
    watch = _Watch(here)
    end = len(sound)
    settled = await heard.final(cut, Ended(end, 0, 0, end, end, end, "end"))
    final_s = watch.seconds()
    if asker.turn is not None:
        await asker.leave()
    assert not settled.problem, settled.problem
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
