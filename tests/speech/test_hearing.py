"""What a serving process does about live speech when nobody speaks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from msgspec.structs import replace
from speech_house import Desk, live
from test_speakers_enrolled import Recorder

from millstream.app import voices
from millstream.app.hearing import Hearing
from millstream.app.installation import Installation
from millstream.app.looking import folder_of
from millstream.engine import Engine
from millstream.errors import Misconfigured
from millstream.flows.speech.settings import PROFILES
from millstream.meter import Meter
from millstream.spoken import Start

TOML = """
[speech]
recogniser = "fake"
"""


def test_what_is_kept_no_longer_goes_also_where_nobody_comes_any_more(tmp_path: Path) -> None:
    (tmp_path / "millstream.toml").write_text(TOML)
    sessions = tmp_path / "sessions"

    async def run(at: Installation) -> None:
        hall = live(Desk(), sessions, clock=at.clock)
        session, other = await hall.open(Start()), await hall.open(Start())
        await session.close()
        for path in sessions.iterdir():
            os.utime(path, (0, 0))
        meter = Meter()
        hearing = Hearing(at, Engine(at.repository, at.clock, meter), meter)
        tidying = asyncio.create_task(hearing._tidy(hall))
        async with asyncio.timeout(10):
            while list(folder_of(at).iterdir()) or list(sessions.glob(f"{session.id}.*")):
                await asyncio.sleep(0.01)
        tidying.cancel()
        assert list(sessions.glob(f"{other.id}.*"))  # it is in use
        await other.close()
        await hearing.close()

    with Installation.open(tmp_path / "millstream.toml") as at:
        folder_of(at).mkdir(parents=True)
        (folder_of(at) / "0000000000001-s1-1.wav").write_bytes(b"RIFF")
        asyncio.run(run(at))


def test_voices_of_another_model_name_nobody_and_refuse_who_needs_them(tmp_path: Path) -> None:
    """As after an enrolment with a version that this process has not loaded."""
    (tmp_path / "millstream.toml").write_text(TOML)
    Recorder().enrol(voices.kept_in(tmp_path), "Ann", (0, 8), model="wespeaker/2")
    with Installation.open(tmp_path / "millstream.toml") as at:
        meter = Meter()
        hearing = Hearing(at, Engine(at.repository, at.clock, meter), meter)
        hearing._voice = "wespeaker/1"
        assert hearing._speakers(PROFILES["caption"], None).known == []
        with pytest.raises(Misconfigured, match="Ann: enrolled with wespeaker/2, and wespeaker/1 tells voices here"):
            hearing._speakers(replace(PROFILES["caption"], speakers="enrolled"), None)
        hearing._voice = "wespeaker/2"
        assert [one.name for one in hearing._speakers(PROFILES["caption"], None).known] == ["Ann"]
