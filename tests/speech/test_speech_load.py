"""Live speech under load, in real processes: what gives way, that it comes back, and who goes elsewhere.

The recogniser is scripted, and takes its time for each second of audio; speech and the detector are real.
"""

import asyncio
import queue
import sys
import threading
import time
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest

from millstream import errors
from millstream.client.speech import Speech
from millstream.front.grpc import speech as messages
from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.models.runtimes.scripted import Script
from millstream.models.speech.tensors import WINDOWED, batching
from millstream.spoken import Metrics, Vad

sys.path.append(str(Path(__file__).parent.parent))
from service import Served, free_port

WORDS = ("alpha", "bravo", "charlie", "delta.", "echo", "foxtrot", "golf", "hotel", "india.", "juliett", "kilo")
RATE = 16_000
PIECE = 3200
SAID, TOLD = (messages.CLASSES[f"{messages.SPEECH}.{name}"] for name in ("Said", "Told"))


def installed(folder, speech_models, *, speech="", **script):
    """The millstream.toml of an installation that hears, with one instance of its recogniser."""
    repository = Repository(folder / "models")
    manifest = Manifest(format="scripted", file="script.json")
    if script.get("kind") != "streaming":
        shares = msgspec.structs.replace(batching(), instances=1)
        manifest = msgspec.structs.replace(manifest, batching=shares, inputs=WINDOWED)
    repository.put("recogniser", manifest, {"script.json": msgspec.json.encode(Script(words=WORDS, **script))})
    weights = Repository(speech_models)
    version = weights.policy("silero-vad").live
    kept, manifest = weights.folder("silero-vad", version), weights.manifest("silero-vad", version)
    repository.put("silero-vad", manifest, {name: kept / name for name in manifest.digests})
    file = folder / "millstream.toml"
    file.write_text(
        f'http_port = {free_port()}\ngrpc_port = 0\n[speech]\nrecogniser = "recogniser"\n{speech}\n'
        "[speech.profiles.caption]\nsegment_s_max = 3.0\nfirst_token_ms_max = 5000\n"
    )
    return file


def started(file, log="up.log"):
    return Served("", file.parent / log, verb=["up", "-c", str(file), "--role", "serve"])


def pcm(sound):
    return (np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


async def heard(port, audio, told=None):
    """The final texts of a session that is fed as fast as it hears. `told`: gets what it is told."""
    async with Speech(f"http://127.0.0.1:{port}", retry_s=60) as live:

        async def send():
            for at in range(0, len(audio), PIECE):
                await live.send(audio[at : at + PIECE])
            await live.finish()

        sending = asyncio.create_task(send())
        async for one in live:
            if told is not None:
                told.append(one)
        await sending
    return [(round(line.start, 3), round(line.end, 3), line.text) for line in live.transcript.shown()]


async def accepted(port):
    """None: a new session was begun; else why not."""
    try:
        async with Speech(f"http://127.0.0.1:{port}", retry_s=0.1):
            return None
    except errors.Busy as error:
        return error


def parted(sound, told):
    """The sound of a session without what the detector heard as silence: to the script a breath is part of a word, or
    not by where a window ends, and a final text that needs no call of its own has heard less silence than one that
    does."""
    edges = [one.t for one in told if isinstance(one, Vad)]
    quiet = np.zeros_like(sound)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        kept = slice(int((start - 0.064) * RATE), int((end + 0.032) * RATE))
        quiet[kept] = sound[kept]
    return quiet


@pytest.mark.slow
def test_hypotheses_give_way_then_new_sessions_are_refused_and_no_final_is_lost(tmp_path, speech_models, speech):
    file = installed(
        tmp_path, speech_models, cost_ms_s=25.0, speech="sessions_max = 50\ndegrade_queue_ms = 100\nsilence_s_max = 300"
    )

    async def test(served):
        first: list = []
        twice = np.concatenate([speech, speech])
        await heard(served.http, pcm(twice), first)
        audio = pcm(parted(twice, first))
        alone: list = []
        whole = await heard(served.http, audio, alone)
        assert len(whole) >= 3 and not any(one.degraded for one in alone if isinstance(one, Metrics))
        assert served.metrics("millstream_speech_steps_skipped_total") == [0]
        assert await accepted(served.http) is None

        told: list = []
        refused: list = []
        running = asyncio.gather(*(heard(served.http, audio, told) for _ in range(10)))
        while not running.done():
            if (why := await accepted(served.http)) is not None:
                refused.append(why)
            await asyncio.sleep(0.2)
        assert await running == [whole] * 10  # none lost, doubled or another

        skipped, asked, failed = served.metrics(
            "millstream_speech_steps_skipped_total",
            "millstream_speech_steps_total",
            "millstream_speech_finals_failed_total",
        )
        assert skipped and failed == 0 and asked
        assert {one.degraded for one in told if isinstance(one, Metrics)} & {
            "hypotheses half as often",
            "no hypotheses",
        }
        assert any(isinstance(one, Metrics) and one.queue_ms > 50 for one in told)
        assert refused and all("wait for each other" in str(why) and why.retry_after_s > 0 for why in refused)

        end = time.monotonic() + 15
        while await accepted(served.http) is not None:  # and it comes back
            assert time.monotonic() < end
            await asyncio.sleep(0.2)
        again: list = []
        assert await heard(served.http, audio, again) == whole
        assert [one.degraded for one in again if isinstance(one, Metrics)][-1:] in ([], [""])

    with started(file) as served:
        asyncio.run(test(served))


@pytest.mark.slow
def test_a_recogniser_that_streams_and_costs_nothing_has_a_bound_of_sessions(tmp_path, speech_models):
    file = installed(tmp_path, speech_models, kind="streaming")
    with started(file) as served:
        assert 1 <= int(served.said(r"(\d+) sessions at once here")) < 10_000


class Caller:
    """A call over gRPC that sends when it is told to; `told` holds what came, `over` is set at its end."""

    def __init__(self, port, start):
        self.out: queue.Queue = queue.Queue()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        call = self.channel.stream_stream(
            "/millstream.speech.v1.Speech/Converse", SAID.SerializeToString, TOLD.FromString
        )
        self.call = call(iter(self.out.get, None), timeout=60)
        self.told: list = []
        self.ready = threading.Event()
        self.out.put(SAID(start=start))
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        assert self.ready.wait(20)

    def _read(self):
        try:
            for one in self.call:
                self.told.append(one)
                self.ready.set()
        except grpc.RpcError as error:
            self.error = error

    def kinds(self):
        return [one.WhichOneof("told") for one in self.told]

    def finals(self):
        found = [one.segment for one in self.told if one.WhichOneof("told") == "segment"]
        return {one.id: " ".join(word.text for word in one.words) for one in found if one.state == "final"}

    def wait(self):
        self._reading.join(30)
        assert not self._reading.is_alive()
        self.out.put(None)
        self.channel.close()


def test_a_server_that_is_stopped_tells_callers_of_grpc_to_move_and_they_lose_nothing(tmp_path, speech_models, speech):
    file, audio = installed(tmp_path, speech_models), pcm(speech)
    with started(file) as served:
        alone = Caller(served.grpc, {})
        alone.out.put(SAID(audio=audio))
        alone.out.put(SAID(finish={}))
        alone.wait()
        assert alone.kinds()[-1] == "end" and len(alone.finals()) >= 3

        first = Caller(served.grpc, {})
        first.out.put(SAID(audio=audio[: len(audio) // 2]))
        end = time.monotonic() + 20
        while not first.finals():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert served.stop() == 0
        first.wait()
        assert first.kinds()[-1] == "move" and "connect again" in first.told[-1].move.why
        assert first.call.code() == grpc.StatusCode.OK
    token, seq = first.told[0].ready.resume_token, max(one.segment.seq for one in first.told)
    with started(file, "next.log") as served:
        second = Caller(served.grpc, {"resume_token": token, "seq": seq})
        at = second.told[0].ready.audio_ms * 32
        assert at > 0
        second.out.put(SAID(audio=audio[at:]))
        second.out.put(SAID(finish={}))
        second.wait()
        assert first.finals() | second.finals() == alone.finals()
        assert not set(first.finals()) & set(second.finals())


@pytest.mark.slow
def test_twenty_sessions_at_the_pace_of_speech_lose_and_double_nothing(speech_models):
    """Minutes of a hundred: `python bench/speech/sessions.py`."""
    import json
    import subprocess

    bench = Path(__file__).parents[2] / "bench" / "speech" / "sessions.py"
    command = [sys.executable, str(bench), "--models", str(speech_models), "--sessions", "20", "--seconds", "20"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == 0 and found["finals"] >= 60
