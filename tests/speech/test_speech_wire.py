"""Live speech through a whole service: real processes, speech and detector, and a recogniser that is scripted."""

import asyncio
import os
import signal
import sys
import wave
from pathlib import Path

import grpc
import httpx
import msgspec
import numpy as np
import pytest

from millstream import errors
from millstream.client.speech import Speech, transcribe_live
from millstream.front.grpc import speech as messages
from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.models.runtimes.scripted import Script
from millstream.models.speech.tensors import WINDOWED, batching

sys.path.append(str(Path(__file__).parent.parent))
from service import Served, free_port

WORDS = ("alpha", "bravo", "charlie", "delta.", "echo", "foxtrot", "golf", "hotel", "india.", "juliett", "kilo")


@pytest.fixture
def house(tmp_path, speech_models):
    """The millstream.toml of an installation that hears."""
    repository = Repository(tmp_path / "models")
    script = msgspec.json.encode(Script(words=WORDS))
    repository.put(
        "recogniser",
        Manifest(format="scripted", file="script.json", batching=batching(), inputs=WINDOWED),
        {"script.json": script},
    )
    weights = Repository(speech_models)
    version = weights.policy("silero-vad").live
    folder, manifest = weights.folder("silero-vad", version), weights.manifest("silero-vad", version)
    repository.put("silero-vad", manifest, {name: folder / name for name in manifest.digests})
    file = tmp_path / "millstream.toml"
    file.write_text(
        f'http_port = {free_port()}\ngrpc_port = 0\n[speech]\nrecogniser = "recogniser"\nprofile = "caption"\n'
        "[speech.profiles.caption]\nsegment_s_max = 3.0\n"
    )
    return file


def started(file, log="up.log"):
    return Served("", file.parent / log, verb=["up", "-c", str(file), "--role", "serve"])


def pcm(sound):
    return (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


def finals(live):
    assert all(line.state == "final" for line in live.transcript.shown())
    return [(round(line.start, 3), round(line.end, 3), line.text) for line in live.transcript.shown()]


async def heard(port, audio, size=3200, pause=None):
    """What a whole conversation leaves."""
    async with Speech(f"http://127.0.0.1:{port}", retry_s=60) as live:
        for n, at in enumerate(range(0, len(audio), size)):
            await live.send(audio[at : at + size])
            if pause is not None:
                await pause(n, live)
    return finals(live), live


def test_every_border_tells_the_same(house, speech, tmp_path):
    audio = pcm(speech)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(audio)
    with started(house) as served:
        first, live = asyncio.run(heard(served.http, audio))
        assert len(first) >= 3 and live.transcript.ended
        again = transcribe_live(f"http://127.0.0.1:{served.http}", tmp_path / "a.wav")
        assert [line.text for line in again.shown()] == [text for _, _, text in first]

        said, told = (messages.CLASSES[f"{messages.SPEECH}.{name}"] for name in ("Said", "Told"))
        asked = [said(start={}), *(said(audio=audio[at : at + 64_000]) for at in range(0, len(audio), 64_000))]
        with grpc.insecure_channel(f"127.0.0.1:{served.grpc}") as channel:
            call = channel.stream_stream(
                "/millstream.speech.v1.Speech/Converse", said.SerializeToString, told.FromString
            )
            answers = [answer.segment for answer in call(iter(asked), timeout=60) if answer.segment.state == "final"]
        assert [" ".join(word.text for word in one.words) for one in answers] == [text for _, _, text in first]

        with (tmp_path / "a.wav").open("rb") as file:
            answer = httpx.post(
                f"http://127.0.0.1:{served.http}/v1/audio/transcriptions",
                files={"file": ("a.wav", file)},
                data={"model": "whisper-1", "response_format": "verbose_json"},
                timeout=60,
            )
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert all(any(word.startswith(said) for word in WORDS) for said in found["text"].split())  # or cut short
        assert len(found["text"].split()) > 9 and found["segments"]
        refused = httpx.post(
            f"http://127.0.0.1:{served.http}/v1/audio/transcriptions",
            files={"file": ("a.wav", b"no sound")},
            data={"model": "whisper-1"},
        )
        assert refused.status_code == 400, refused.text
        with pytest.raises(errors.BadInput, match="no profile"):
            asyncio.run(Speech(f"http://127.0.0.1:{served.http}", profile="none such").__aenter__())
        assert served.metrics("millstream_speech_sessions_total") == [3]


@pytest.mark.slow
def test_a_session_outlives_a_server_that_is_killed(house, speech):
    """kill -9 in the middle, and another process at the port: the transcript is as without it."""
    audio = pcm(speech)
    with started(house) as served:
        whole, _ = asyncio.run(heard(served.http, audio))
        serving = [served]

        async def pause(n, live):
            await asyncio.sleep(0.02)
            if n in (40, 70):
                while not live.transcript.lines:
                    await asyncio.sleep(0.01)
                os.kill(serving[-1].pid, signal.SIGKILL)
                serving[-1].process.wait()
                serving.append(await asyncio.to_thread(started, house, f"up{n}.log"))
                while live.connections < len(serving):
                    await asyncio.sleep(0.01)

        try:
            again, live = asyncio.run(heard(served.http, audio, pause=pause))
        finally:
            for one in serving:
                one.__exit__()
        assert live.connections == 3
        assert again == whole


@pytest.mark.slow
def test_a_server_that_is_stopped_sends_its_clients_on(house, speech):
    audio = pcm(speech)
    with started(house) as served:
        whole, _ = asyncio.run(heard(served.http, audio))
        serving = [served]

        async def pause(n, live):
            await asyncio.sleep(0.01)
            if n == 50:
                assert await asyncio.to_thread(serving[-1].stop) == 0
                serving.append(await asyncio.to_thread(started, house, "next.log"))

        try:
            again, live = asyncio.run(heard(served.http, audio, pause=pause))
        finally:
            for one in serving:
                one.__exit__()
        assert live.connections == 2 and again == whole
