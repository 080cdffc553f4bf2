"""How many live sessions and how many hours of recordings this machine can follow: measured here, and reckoned on.

Rules of the room:
- What was measured and what follows by arithmetic is told apart: `measured` names the sound that calls were timed on.
- CPU time counts where the cores compute: what else runs on the machine does not.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace

from millstream.app.transcribing import Source, offline
from millstream.errors import BadInput
from millstream.flows.speech import files
from millstream.flows.speech.live import Live
from millstream.flows.speech.pressure import SESSION_S, USED_MAX, fits, room, second_s
from millstream.flows.speech.recognise import Asker
from millstream.flows.speech.settings import RATE, Profile, SpeechSettings
from millstream.flows.speech.speakers import Speakers
from millstream.flows.speech.trial import ELSEWHERE, HERE, PAUSE_S, listening, syllables, trial
from millstream.flows.speech.wiring import Wiring
from millstream.machine import cores
from millstream.models.speech import heard
from millstream.spoken import Start
from millstream.types import Output, Request

SESSIONS: Final = 6
"""Whose memory is measured."""
HEARD_S: Final = 8.0
"""What each of them hears."""
GPU_STREAMS: Final = 100
RECORDING_S_MAX: Final = 600.0


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """By arithmetic: of a device that follows `streams`, rows that share a call, calls a second, and what a call may
    take so that it is busy USED_MAX of the time."""

    streams: int
    rows: int
    calls_s: float
    call_ms_max: float


class SpeechCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """What `millstream speech capacity` found. Of a profile: `rtf`, seconds of a core that a second of a session takes
    in which somebody speaks; `streams_core`, sessions a core at USED_MAX of it; `streams`, on all `cores`; `refused`:
    why the recogniser is too slow for the profile, "" where it is not. Of recordings: `recording_rtf`, and hours of
    them an hour of all cores. `session_bytes`: memory of a session beside the models. `measured`: on which sound."""

    recogniser: str
    profile: str
    cores: int
    measured: str
    first_ms: float
    step_ms: float
    final_ms: float
    voices_ms_s: float
    rtf: float
    streams_core: float
    streams: int
    refused: str
    recording_rtf: float
    recording_hours_hour: float
    session_bytes: int
    gpu: list[Gpu]


async def speech_capacity(
    of: Source, settings: SpeechSettings, profile: str = "", audio: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> SpeechCapacity:  # fmt: skip
    """Measure the recogniser of `of`: on made sound, and on a recording of speech where there is one, which tells more.
    NotFound, Misconfigured as transcribing; BadInput: there is no such profile, the file is no sound or has no speech.
    """
    asked = settings.asked(profile)
    async with offline(of) as opened:
        wiring = opened.wiring
        clocks = HERE if of.device == "cpu" else ELSEWHERE
        say("asking the recogniser")
        asker = Asker(wiring.submit, wiring.model, language=of.language, fills=wiring.fills)
        cost = await trial(asker, asked, wiring.streaming, clocks)
        cost = replace(cost, voices_s=await listening(wiring.embed, wiring.listen))
        rtf, recorded = second_s(asked, cost), SESSION_S + cost.final_s / cost.segment_s + cost.voices_s
        if audio is not None:
            say("hearing the recording, live and as a file")
            seconds = _seconds(audio)
            rtf = await _live_rtf(wiring, settings, profile, audio, seconds)
            spent = time.process_time()
            await opened.transcribe(audio, audio.name, of.language, speakers=wiring.embed is not None)
            recorded = (time.process_time() - spent) / seconds
        say("measuring memory")
        memory = await _memory(wiring, settings, profile)
    return SpeechCapacity(
        recogniser=wiring.model,
        profile=profile or settings.profile,
        cores=cores(),
        measured=audio.name if audio is not None else "made sound",
        first_ms=(cost.step_s if cost.first_s is None else cost.first_s) * 1000,
        step_ms=cost.step_s * 1000,
        final_ms=cost.final_s * 1000,
        voices_ms_s=cost.voices_s * 1000 if asked.speakers != "none" else 0.0,
        rtf=rtf,
        streams_core=USED_MAX / rtf,
        streams=room(rtf, asked, cost, cores()),
        refused=fits(asked, cost) or "",
        recording_rtf=recorded,
        recording_hours_hour=cores() / recorded,
        session_bytes=memory,
        gpu=[gpu(asked, rows) for rows in (1, 8, 32)],
    )


def gpu(profile: Profile, rows: int, streams: int = GPU_STREAMS) -> Gpu:
    """What a device must do for so many streams, `rows` of which share a call: arithmetic, nothing is measured."""
    calls = streams / PAUSE_S + (streams * 1000 / profile.step_ms if profile.partials else 0.0)
    return Gpu(streams=streams, rows=rows, calls_s=calls / rows, call_ms_max=USED_MAX * 1000 * rows / calls)


def _seconds(audio: Path) -> float:
    seconds = sum(len(block) for (block, *_) in files.blocks(audio, audio.name)) / RATE
    if not 2 <= seconds <= RECORDING_S_MAX:
        raise BadInput(f"{audio}: {seconds:.1f} s of sound; 2 to {RECORDING_S_MAX:g} s of speech are wanted")
    return seconds


async def _live_rtf(wiring: Wiring, settings: SpeechSettings, profile: str, audio: Path, seconds: float) -> float:
    """Seconds of the cores a second of a session that hears a recording, as fast as it can."""
    # All of it comes at once: that is no overload.
    patient = replace(settings, recogniser=wiring.model, degrade_queue_ms=10**6)
    apart = wiring.embed is not None
    whole = dataclasses.replace(wiring, speakers=lambda asked, _: Speakers(asked.speakers if apart else "none"))
    hall = Live(patient, whole, lambda: [""], 1)
    spent = time.process_time()
    session = await hall.open(Start(profile=profile))

    async def read() -> int:
        found = 0
        async for told in session.messages():
            found += len(getattr(told, "words", []))
        return found

    reading = asyncio.create_task(read())
    for block, *_ in files.blocks(audio, audio.name):
        await session.hear(np.round(np.clip(block, -1, 1) * 32767).astype("<i2").tobytes())
    session.finish()
    words = await reading
    await session.close()
    if not words:
        raise BadInput(f"{audio}: nobody speaks in it, as {wiring.model} hears it; take a recording of speech")
    return (time.process_time() - spent) / seconds


async def _memory(wiring: Wiring, settings: SpeechSettings, profile: str) -> int:
    """Bytes of an open session (what Python and numpy hold for it), with a recogniser that answers nothing at once."""
    silent, held = _silent(wiring), 0
    tracemalloc.start()
    try:
        for many in (1, SESSIONS):  # the first one meets what every process makes once
            hall = Live(settings, silent, lambda: [""], many)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for n in range(many):
                session = await hall.open(Start(profile=profile))
                data = np.round(syllables(HEARD_S, n) * 32767).astype("<i2").tobytes()
                for at in range(0, len(data), 6400):
                    await session.hear(data[at : at + 6400])
            await asyncio.sleep(0.1)
            del data, session
            gc.collect()
            held = (tracemalloc.get_traced_memory()[0] - before) // many
            await hall.close()
    finally:
        tracemalloc.stop()
    return held


def _silent(wiring: Wiring) -> Wiring:
    """The same, with a recogniser that has heard nothing."""
    nothing = np.array([heard.told(heard.Heard())], np.object_)

    def submit(request: Request) -> asyncio.Future[Output]:
        answer: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
        answer.set_result(Output({"heard": nothing}, request.model, ""))
        return answer

    return dataclasses.replace(wiring, submit=submit, streaming=False, embed=None, listen=None)
