"""What clients should not send, to a whole service: each is told, keeps what was final, and disturbs nobody.

Beside every one of them somebody speaks as one should, to the same process: that transcript is always the same.
"""

import asyncio
import io
import json
import subprocess
import sys
from contextlib import suppress

import numpy as np
import orjson
import pytest
import soundfile
from test_speech_wire import finals, installed, pcm, started
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from millstream.client.speech import Speech
from millstream.spoken import Trouble

RATE = 16_000


@pytest.fixture(scope="module")
def served(tmp_path_factory, speech_models):
    file = installed(tmp_path_factory.mktemp("installation"), speech_models)
    file.write_text(file.read_text().replace("[speech]\n", "[speech]\nbehind_s_max = 4.0\nsilence_s_max = 3.0\n"))
    with started(file) as served:
        yield served


@pytest.fixture(scope="module")
def spoken(speech):
    return pcm(speech)


@pytest.fixture(scope="module")
def plain(served, spoken):
    """What a session without any fault leaves."""
    return asyncio.run(well(served, spoken))


async def well(served, spoken, size=3200, pause_s=0.0, **start):
    """A whole conversation: what it leaves."""
    async with Speech(f"http://127.0.0.1:{served.http}", **start) as live:
        for at in range(0, len(spoken), size):
            await live.send(spoken[at : at + size])
            if pause_s:
                await asyncio.sleep(pause_s)
    return finals(live)


def beside(served, spoken, plain, bad):
    """What `bad()` gives, while somebody else speaks well."""

    async def both():
        return await asyncio.gather(bad(), well(served, spoken, pause_s=0.002))

    found, other = asyncio.run(asyncio.wait_for(both(), 60))
    assert other == plain
    return found


def talk(served, **more):
    return connect(f"ws://127.0.0.1:{served.http}/v1/speech", compression=None, max_size=None, **more)


async def hears(client):
    """All messages up to the close, and its code."""
    told = []
    with suppress(ConnectionClosed):
        while True:
            told.append(json.loads(await client.recv()))
    return told, client.close_code


async def goes_on(served, data, per_ms, token, **start):
    """What a session tells that is gone on with, once its last connection has let go of it, with the rest of its
    audio: `per_ms` bytes a millisecond."""
    while True:
        async with talk(served) as client:
            await client.send(orjson.dumps({"type": "start", "resume_token": token, **start}).decode())
            ready = json.loads(await client.recv())
            if ready["type"] == "error":
                assert ready["retry_s"] > 0, ready
                await asyncio.sleep(ready["retry_s"] / 10)
                continue
            rest = data[ready.get("audio_ms", 0) * per_ms :]
            for at in range(0, len(rest), 100_000):
                await client.send(rest[at : at + 100_000])
            await client.send('{"type":"finish"}')
            told, code = await hears(client)
            assert code == 1000 and told[-1]["type"] == "end"
            return told


def texts(told):
    """The final texts, once each."""
    last = {one["id"]: one for one in told if one.get("state") == "final"}
    return [" ".join(word["text"] for word in one["words"]) for one in last.values()]


def test_silence_and_noise_are_no_words(served, spoken, plain):
    random = np.random.default_rng(0)
    sounds = [np.zeros(5 * RATE), 0.05 * random.standard_normal(5 * RATE), np.zeros(0)]

    async def bad():
        return [await well(served, pcm(sound)) for sound in sounds]

    assert beside(served, spoken, plain, bad) == [[], [], []]


@pytest.mark.parametrize("change", ["clipped", "offset", "quiet"])
def test_speech_that_was_recorded_badly_is_heard(served, spoken, plain, speech, change):
    loud = np.abs(speech).max()
    sound = {"clipped": 20 * speech / loud, "offset": 0.5 * speech / loud + 0.45, "quiet": 0.002 * speech / loud}[
        change
    ]
    found = beside(served, spoken, plain, lambda: well(served, pcm(sound)))
    assert sum(len(text.split()) for *_, text in found) > 0.7 * sum(len(text.split()) for *_, text in plain)


def test_frames_of_a_byte_and_of_odd_numbers_change_no_word(served, spoken, plain):
    async def bad():
        async with Speech(f"http://127.0.0.1:{served.http}") as live:
            for at in range(3001):
                await live.send(spoken[at : at + 1])
            for at in range(3001, len(spoken), 333):
                await live.send(spoken[at : at + 333])
        return finals(live)

    assert beside(served, spoken, plain, bad) == plain


def test_half_a_sample_at_the_end_is_let_go(served, spoken, plain):
    assert beside(served, spoken, plain, lambda: well(served, spoken + b"\x7f")) == plain


def test_a_frame_of_ten_megabytes_is_refused_and_what_was_final_is_kept(served, spoken, plain):
    async def bad():
        async with talk(served) as client:
            await client.send('{"type":"start"}')
            ready = json.loads(await client.recv())
            await client.send(spoken)
            told = []
            while not any(one.get("state") == "final" for one in told):
                told.append(json.loads(await client.recv()))
            with suppress(ConnectionClosed):
                await client.send(bytes(10_000_000))
            more, code = await hears(client)
            assert code == 1009
        return more, texts(await goes_on(served, spoken, 32, ready["resume_token"]))

    more, kept = beside(served, spoken, plain, bad)
    (told,) = [one for one in more if one["type"] == "error"]
    assert told["code"] == "resource_exhausted" and "bytes" in told["error"]
    assert kept == [text for *_, text in plain]


@pytest.mark.parametrize("rate", [4000, 8000, 48_000, 192_000])
def test_a_wrong_rate_is_heard_too_slowly_or_too_fast_and_ends_well(served, spoken, plain, rate):
    async def bad():
        async with Speech(f"http://127.0.0.1:{served.http}", rate=rate) as live:
            await live.send(spoken[: 4 * 2 * RATE])
        return live.transcript.ended

    assert beside(served, spoken, plain, bad)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"rate": 1}, "rate"),
        ({"rate": 10**9}, "rate"),
        ({"channels": 0}, "channels"),
        ({"form": "mp3"}, "form"),
        ({"form": "opus", "channels": 8}, "opus"),
        ({"profile": "none such"}, "profile"),
        ({"speakers": "all"}, "speakers"),
        ({"resume_token": "0.0"}, "begin a new one"),
    ],
)
def test_a_start_that_asks_for_what_there_is_not_is_told_so(served, spoken, plain, start, said):
    async def bad():
        async with talk(served) as client:
            await client.send(orjson.dumps({"type": "start", **start}).decode())
            return await hears(client)

    told, code = beside(served, spoken[:64_000], asyncio.run(well(served, spoken[:64_000])), bad)
    assert code == 1008 and [one["type"] for one in told] == ["error"]
    assert said in told[0]["error"].lower() and told[0].get("fatal", True)


@pytest.mark.parametrize(
    ("form", "sent"),
    [
        ("float32", np.full(800, np.nan, "<f4").tobytes()),
        ("float32", np.full(800, 1e9, "<f4").tobytes()),
        ("opus", b"\xff" * 700),
        ("opus", b""),
    ],
    ids=["nan", "another scale", "no packet", "an empty packet"],
)
def test_what_is_no_audio_ends_the_session_in_words_and_keeps_what_was_final(served, spoken, speech, plain, form, sent):
    async def bad():
        async with talk(served) as client:
            await client.send(
                orjson.dumps({"type": "start", "form": form, "rate": RATE if form == "float32" else 48_000}).decode()
            )
            token = json.loads(await client.recv())["resume_token"]
            if form == "float32":
                await client.send(speech.astype("<f4").tobytes())
            await client.send(sent)
            told, _ = await hears(client)
        (wrong,) = [one for one in told if one["type"] == "error"]
        if form == "opus":
            return wrong, None
        before = [one["id"] for one in told if one.get("state") == "final"]
        told = await goes_on(served, speech.astype("<f4").tobytes(), 64, token, form=form)
        assert set(before) <= {one["id"] for one in told if one.get("state") == "final"}
        return wrong, texts(told)

    wrong, kept = beside(served, spoken, plain, bad)
    floats = asyncio.run(well(served, speech.astype("<f4").tobytes(), form="float32"))
    assert wrong["code"] == "invalid_argument" and len(wrong["error"]) > 20
    assert kept is None or kept == [text for *_, text in floats]


def test_who_stops_in_the_middle_of_a_word_is_told_what_was_heard(served, spoken, plain, speech):
    half = spoken[: 2 * int(1.5 * RATE)]

    async def finishes():
        return await well(served, half)

    (last,) = beside(served, spoken, plain, finishes)
    assert last[2]

    async def falls_silent():
        """The connection stays, and nothing comes over it."""
        async with Speech(f"http://127.0.0.1:{served.http}") as live:
            await live.send(half)
            told = [told async for told in live]
        return told, finals(live)

    told, again = beside(served, spoken, plain, falls_silent)
    assert again == [last]
    (trouble,) = [one for one in told if isinstance(one, Trouble)]
    assert trouble.code == "silent" and not trouble.fatal

    async def vanishes():
        client = await connect(f"ws://127.0.0.1:{served.http}/v1/speech", compression=None)
        await client.send('{"type":"start"}')
        token = json.loads(await client.recv())["resume_token"]
        await client.send(half)
        while json.loads(await client.recv())["type"] != "segment":
            pass
        client.transport.abort()
        return texts(await goes_on(served, spoken, 32, token))

    assert beside(served, spoken, plain, vanishes) == [text for *_, text in plain]


def test_who_sends_as_fast_as_the_line_takes_it_waits_and_loses_nothing(served, spoken, plain):
    long = (spoken + bytes(2 * RATE)) * 4

    async def bad():
        async with Speech(f"http://127.0.0.1:{served.http}") as live:
            await live.send(long)  # far beyond behind_s_max
        return finals(live)

    found = beside(served, spoken, plain, bad)
    once = asyncio.run(well(served, long))
    assert found == once and len(found) >= 4 * len(plain) - 3


def test_who_never_reads_disturbs_nobody(served, spoken, plain):
    async def bad():
        client = await connect(f"ws://127.0.0.1:{served.http}/v1/speech", compression=None, max_queue=1)
        client.transport.pause_reading()
        await client.send('{"type":"start"}')
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                while True:
                    await client.send(spoken[:64_000])
        client.transport.abort()

    beside(served, spoken, plain, bad)


def wav(sound):
    to = io.BytesIO()
    soundfile.write(to, sound, RATE, format="WAV", subtype="PCM_16")
    return to.getvalue()


def flac(sound):
    to = io.BytesIO()
    soundfile.write(to, sound, RATE, format="FLAC")
    return to.getvalue()


async def upload(served, name, data):
    """(status, document) of a file."""
    edge = b"edge-of-parts"
    body = b"".join(
        [
            b"--" + edge + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n',
            b"--"
            + edge
            + b'\r\nContent-Disposition: form-data; name="file"; filename="'
            + name.encode()
            + b'"\r\n\r\n',
            data,
            b"\r\n--" + edge + b"--\r\n",
        ]
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", served.http)
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary={edge.decode()}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    lines, _, document = answer.partition(b"\r\n\r\n")
    return int(lines.split()[1]), orjson.loads(document)


def test_files_that_are_damaged_are_refused_in_words_and_good_ones_are_not(served, spoken, plain, speech):
    good, packed = wav(speech), flac(speech)
    random = np.random.default_rng(1).bytes(50_000)
    files = {
        "empty.wav": b"",
        "noise.wav": random,
        "head.wav": good[:30],
        "text.mp3": b"hello " * 100,
        "broken.flac": packed[:200] + random,
        "head.flac": packed[:40],
    }

    async def bad():
        found = {name: await upload(served, name, data) for name, data in files.items()}
        return found, await upload(served, "good.wav", good), await upload(served, "good.flac", packed)

    found, *rest = beside(served, spoken, plain, bad)
    for name, (status, document) in found.items():
        assert status == 400, (name, status, document)
        assert len(document["error"]["message"]) > 20
    assert [status for status, _ in rest] == [200, 200] and rest[0][1]["text"] == rest[1][1]["text"]


def test_weights_that_are_not_there_are_named_with_the_line_that_fetches_them(tmp_path, speech_models):
    file = installed(tmp_path, speech_models)
    file.write_text(file.read_text().replace('recogniser = "recogniser"', 'recogniser = "whisper-base"'))
    command = [sys.executable, "-m", "millstream", "up", "-c", str(file), "--role", "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "millstream speech fetch whisper-base" in done.stderr + done.stdout
