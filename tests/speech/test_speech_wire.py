"""Live speech through a whole service: real processes, speech and detector, and a recogniser that is scripted."""

import asyncio
import os
import signal
import struct
import sys
import wave
from pathlib import Path

import grpc
import msgspec
import numpy as np
import openai
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


def installed(folder, speech_models):
    """The millstream.toml of an installation that hears."""
    repository = Repository(folder / "models")
    script = msgspec.json.encode(Script(words=WORDS))
    repository.put(
        "recogniser",
        Manifest(format="scripted", file="script.json", batching=batching(), inputs=WINDOWED),
        {"script.json": script},
    )
    weights = Repository(speech_models)
    version = weights.policy("silero-vad").live
    kept, manifest = weights.folder("silero-vad", version), weights.manifest("silero-vad", version)
    repository.put("silero-vad", manifest, {name: kept / name for name in manifest.digests})
    file = folder / "millstream.toml"
    file.write_text(
        f"http_port = {free_port()}\ngrpc_port = 0\n[http]\nrecording_s_max = 40.0\n"
        '[speech]\nrecogniser = "recogniser"\nprofile = "caption"\n'
        'language = "de"\n'
        "[speech.profiles.caption]\nsegment_s_max = 3.0\n"
    )
    return file


@pytest.fixture
def house(tmp_path, speech_models):
    return installed(tmp_path, speech_models)


def started(file, log="up.log"):
    return Served("", file.parent / log, verb=["up", "-c", str(file), "--role", "serve"])


@pytest.fixture(scope="module")
def served(tmp_path_factory, speech_models):
    with started(installed(tmp_path_factory.mktemp("installation"), speech_models)) as served:
        yield served


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


def test_every_border_tells_the_same(served, speech, tmp_path):
    audio = pcm(speech)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(audio)
    first, live = asyncio.run(heard(served.http, audio))
    assert len(first) >= 3 and live.transcript.ended
    again = transcribe_live(f"http://127.0.0.1:{served.http}", tmp_path / "a.wav")
    assert [line.text for line in again.shown()] == [text for _, _, text in first]

    said, told = (messages.CLASSES[f"{messages.SPEECH}.{name}"] for name in ("Said", "Told"))
    asked = [said(start={}), *(said(audio=audio[at : at + 64_000]) for at in range(0, len(audio), 64_000))]
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc}") as channel:
        call = channel.stream_stream("/millstream.speech.v1.Speech/Converse", said.SerializeToString, told.FromString)
        answers = [answer.segment for answer in call(iter(asked), timeout=60) if answer.segment.state == "final"]
    assert [" ".join(word.text for word in one.words) for one in answers] == [text for _, _, text in first]

    with pytest.raises(errors.BadInput, match="no profile"):
        asyncio.run(Speech(f"http://127.0.0.1:{served.http}", profile="none such").__aenter__())
    assert served.metrics("millstream_speech_sessions_total") == [3]


def test_openais_client_gets_what_it_expects(served, speech, tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(pcm(speech))
    base = f"http://127.0.0.1:{served.http}/v1"
    asked = openai.OpenAI(api_key="none", base_url=base, max_retries=0).audio.transcriptions.create
    plain = asked(model="whisper-1", file=tmp_path / "a.wav").text
    assert len(plain.split()) > 9
    assert all(any(word.startswith(said) for word in WORDS) for said in plain.split())  # or cut short
    verbose = asked(
        model="recogniser",
        file=("a.wav", (tmp_path / "a.wav").read_bytes(), "audio/wav"),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        temperature=0.2,
    )
    assert verbose.text == plain and verbose.segments and verbose.words
    assert verbose.language == "german", "as configured, where the client names none"
    assert float(verbose.duration) == pytest.approx(len(speech) / 16_000, abs=0.1)
    assert "-->" in asked(model="whisper-1", file=tmp_path / "a.wav", response_format="srt")
    with pytest.raises(openai.BadRequestError, match="no file of sound"):
        asked(model="whisper-1", file=("a.wav", b"no sound"))
    with pytest.raises(openai.NotFoundError, match="recogniser"):
        asked(model="gpt-4o-transcribe", file=tmp_path / "a.wav")
    for said, known in (("zh-CN", "chinese"), ("english", "english")):
        told = asked(model="whisper-1", file=tmp_path / "a.wav", language=said, response_format="verbose_json")
        assert told.language == known
    with pytest.raises(openai.BadRequestError, match="'Elvish': say a code of two or three letters"):
        asked(model="whisper-1", file=tmp_path / "a.wav", language="Elvish")
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 41 * 16_000))
    with pytest.raises(openai.APIStatusError, match=r"long\.wav: longer than 40 s") as refused:
        asked(model="whisper-1", file=tmp_path / "long.wav")
    assert refused.value.status_code == 413


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


@pytest.mark.slow
def test_sessions_are_shared_out_by_workers_and_outlive_one_of_them(house, speech):
    audio = pcm(speech)
    house.write_text(f"workers = 2\n{house.read_text()}")
    lost = []

    async def test(served):
        whole, _ = await heard(served.http, audio)
        loads = served.run_folder() / "speech.loads"

        async def pause(n, live):
            await asyncio.sleep(0.02)
            if n == 50:
                while not lost and sum(struct.unpack("<2I", loads.read_bytes())) != 4:
                    await asyncio.sleep(0.01)
                if not lost:
                    lost.append(struct.unpack("<2I", loads.read_bytes())[0])
                    os.kill(served.workers()["serve-0"], signal.SIGKILL)

        found = await asyncio.gather(*(heard(served.http, audio, pause=pause) for _ in range(4)))
        assert [again for again, _ in found] == [whole] * 4
        assert lost in ([1], [2], [3])  # all came at once; who comes later evens it out
        assert sum(live.connections for _, live in found) == 4 + lost[0]

    with Served("", house.parent / "up.log", verb=["up", "-c", str(house)]) as served:
        asyncio.run(test(served))
