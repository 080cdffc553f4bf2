"""What a serving process does about live speech when nobody speaks."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import cast

import msgspec
import pytest
from msgspec.structs import replace
from recordings import TONES, models, said
from sound_files import wav
from speech_house import Desk, live
from test_speakers_enrolled import Recorder

from millstream.app import voices
from millstream.app.hearing import Hearing
from millstream.app.house import House
from millstream.app.installation import Installation
from millstream.app.looking import folder_of
from millstream.app.steering import Steering
from millstream.cli import main
from millstream.engine import Engine, EngineLimits
from millstream.errors import BadInput, Busy, Misconfigured, Overloaded
from millstream.flows.predict import Predict
from millstream.flows.recommend.upsert import UpsertLimits, Upserts
from millstream.flows.served import ServedLog
from millstream.flows.speech.settings import PROFILES
from millstream.flows.speech.speakers import Speakers
from millstream.guard.auth import ANYBODY_HERE
from millstream.meter import Meter
from millstream.models.manifest import Manifest, Sessions
from millstream.spoken import Ready, Start
from millstream.types import Output, Request
from millstream.watch.shadow import Comparisons

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


def test_an_enrolled_profile_with_nobody_enrolled_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = f'{TOML}voice = "wespeaker"\nprofile = "court"\n[speech.profiles.court]\nspeakers = "enrolled"\n'
    (tmp_path / "millstream.toml").write_text(text)
    with Installation.open(tmp_path / "millstream.toml") as at:
        meter = Meter()
        hearing = Hearing(at, Engine(at.repository, at.clock, meter), meter)
        hearing._voice = "wespeaker/1"
        hearing._nobody(hearing._known(True))
        (record,) = caplog.records
        assert "profile court" in record.getMessage() and "millstream speech enrol" in record.getMessage()
        caplog.clear()
        Recorder().enrol(voices.kept_in(tmp_path), "Ann", (0, 8), model="wespeaker/1")
        hearing._nobody(hearing._known(True))
        assert not caplog.records
        speakers = hearing._speakers(replace(PROFILES["caption"], speakers="enrolled"), None)
        assert asyncio.run(_caps(speakers))["enrolled"] == 1
        asyncio.run(hearing.close())


def test_a_list_of_no_voices_says_what_that_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "millstream.toml").write_text(TOML)
    main(["speech", "voices", "-c", str(tmp_path / "millstream.toml"), "--json"])
    told = capsys.readouterr()
    assert told.out == "[]\n" and "nobody is enrolled" in told.err
    Recorder().enrol(voices.kept_in(tmp_path), "Ann", (0, 8))
    main(["speech", "voices", "-c", str(tmp_path / "millstream.toml"), "--json"])
    told = capsys.readouterr()
    assert "Ann" in told.out and not told.err


def test_where_there_are_tenants_nobody_says_whose_speech_it_is(tmp_path: Path) -> None:
    (tmp_path / "millstream.toml").write_text(TOML)
    with Installation.open(tmp_path / "millstream.toml") as at:
        meter = Meter()
        engine = Engine(at.repository, at.clock, meter)
        predict, steering = (
            Predict(engine.submit, at.clock),
            Steering(at.repository, engine, meter, Comparisons(at.clock)),
        )
        house, hearing = House(engine, predict, meter, None, steering), Hearing(at, engine, meter)
        house.furnish_speech(hearing)
        with pytest.raises(Busy, match="starting"):
            asyncio.run(house.speech(Start(user="ann"), ANYBODY_HERE))
        house.furnish_lists(Upserts(at.log.writer, at.clock, meter, UpsertLimits()), {}, ("acme",))
        with pytest.raises(BadInput, match="tenants"):
            asyncio.run(house.speech(Start(user="ann"), ANYBODY_HERE))
        asyncio.run(hearing.close())


def test_a_session_that_cannot_be_said_whose_it_is_takes_no_room(tmp_path: Path) -> None:
    (tmp_path / "millstream.toml").write_text(TOML)

    class Full(Exception):
        pass

    class Log:
        async def append(self, served: object) -> None:
            raise Full

    async def run(at: Installation) -> None:
        meter, hall = Meter(), live(Desk(), tmp_path / "sessions", clock=at.clock)
        hearing = Hearing(at, Engine(at.repository, at.clock, meter), meter, cast(ServedLog, Log()))
        hearing._live = hall
        with pytest.raises(Full):
            await hearing.open(Start(user="ann"), "")
        assert len(hall) == 0
        await hearing.open(Start(), "")
        assert len(hall) == 1
        await hearing.close()

    with Installation.open(tmp_path / "millstream.toml") as at:
        asyncio.run(run(at))


@pytest.mark.parametrize(("workers", "instances", "together"), [(1, 1, 1), (1, 3, 2), (4, 8, 1), (1, 16, 7)])
def test_a_process_that_serves_keeps_an_instance_from_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, instances: int, together: int
) -> None:
    (tmp_path / "millstream.toml").write_text(f'workers = {workers}\n[speech]\nrecogniser = "tones"\n')
    models(tmp_path / "models")
    monkeypatch.setattr("millstream.app.hearing.cores", lambda: 8)

    async def run(at: Installation) -> None:
        meter = Meter()
        engine = Engine(at.repository, at.clock, meter, EngineLimits(instances=instances))
        await engine.start()
        hearing = Hearing(at, engine, meter)
        await hearing.start()
        try:
            most, running, path = 0, 0, wav(tmp_path / "a.wav", said(*["delta echo"] * 9, pause_s=0.8))

            async def submit(request: Request) -> Output:
                nonlocal most, running
                running += 1
                most = max(most, running)
                output = await engine.submit(request)
                await asyncio.sleep(0.05 * together)  # the more shall meet, the longer it waits for them
                running -= 1
                return output

            offline = hearing._offline
            assert offline is not None
            offline.wiring = dataclasses.replace(offline.wiring, submit=submit)
            made = await asyncio.gather(*(offline.transcribe(path, "a", "en") for _ in range(2)))
            assert [len(one.lines) for one in made] == [9, 9] and most == together
        finally:
            await hearing.close()
            await engine.stop()

    with Installation.open(tmp_path / "millstream.toml") as at:
        asyncio.run(run(at))


def test_a_streaming_recogniser_has_no_more_sessions_than_slots(tmp_path: Path) -> None:
    (tmp_path / "millstream.toml").write_text('[speech]\nrecogniser = "tones"\nsessions_max = 50\n')
    models(tmp_path / "models")
    manifest = Manifest(format="scripted", file="script.json", sessions=Sessions(slots=5))
    script = msgspec.json.encode(replace(TONES, kind="streaming"))

    async def run(at: Installation) -> None:
        meter = Meter()
        version = at.repository.put("tones", manifest, {"script.json": script})
        at.repository.change_policy("tones", lambda old: replace(old, live=version), "a test", "why not")
        engine = Engine(at.repository, at.clock, meter)
        await engine.start()
        hearing = Hearing(at, engine, meter)
        try:
            await hearing.start()
            held = [await hearing.open(Start(), "") for _ in range(5)]
            with pytest.raises(Overloaded, match="of 5;"):
                await hearing.open(Start(), "")
            assert len(held) == 5
        finally:
            await hearing.close()
            await engine.stop()

    with Installation.open(tmp_path / "millstream.toml") as at:
        asyncio.run(run(at))


async def _caps(speakers: Speakers) -> dict[str, str | float | bool]:
    """What a session that knows these says of itself."""
    hall = live(Desk(), speakers=lambda profile, saved: speakers)
    session = await hall.open(Start())
    ready = await anext(session.messages())
    await hall.close()
    assert isinstance(ready, Ready)
    return ready.caps


def test_a_detector_that_is_promoted_is_said_once_and_not_exchanged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "millstream.toml").write_text(TOML)
    models(tmp_path / "models")
    with Installation.open(tmp_path / "millstream.toml") as at:
        kept, meter = at.repository, Meter()
        version = kept.policy("silero-vad").live
        hearing = Hearing(at, Engine(kept, at.clock, meter), meter)
        hearing._loaded("silero-vad")
        hearing._outdated()
        assert caplog.messages == []
        folder = kept.folder("silero-vad", version)
        again = kept.put("silero-vad", kept.manifest("silero-vad", version), {"model.onnx": folder / "model.onnx"})
        for live in (again, again, version, again):
            kept.change_policy("silero-vad", lambda old, live=live: replace(old, live=live), "a test", "why not")
            hearing._outdated()
        said = f"silero-vad {again} was promoted, and this process hears with version {version} until"
        assert [said in message for message in caplog.messages] == [True, True]
        (kept.root / "silero-vad" / "policy.toml").write_text("no policy")
        hearing._outdated()
