"""kill -9 of a server in the middle of sessions: clients that go on with another process end with the same transcript,
whatever hears the words, and with who said them."""

import asyncio
import os
import signal

import numpy as np
import pytest
from test_speech_wire import installed, pcm, started

from millstream.client.speech import Speech
from millstream.models.repository import Repository

pytestmark = pytest.mark.slow

RATE = 16_000
PIECE = 3200


def whispering(folder, models):
    """An installation that hears with Whisper, and tells voices apart."""
    file, ours, weights = installed(folder, models), Repository(folder / "models"), Repository(models)
    for name in ("whisper-base", "wespeaker", "pyannote"):
        version = weights.policy(name).live
        kept, manifest = weights.folder(name, version), weights.manifest(name, version)
        ours.put(name, manifest, {one: kept / one for one in manifest.digests})
    # However slow the machine is: no hypothesis may be left out, and nothing may be refused for being too slow.
    said = '[speech]\nrecogniser = "whisper-base"\nvoice = "wespeaker"\nturns = "pyannote"\n'
    said += 'language = "en"\ndegrade_queue_ms = 600000\n'
    text = (
        file.read_text()
        .replace('language = "de"\n', "")
        .replace('[speech]\nrecogniser = "recogniser"\n', f"{said}sessions_max = 4\n")
    )
    head, _, _ = text.partition("[speech.profiles.caption]")
    file.write_text(
        f"{head}[speech.profiles.caption]\nsegment_s_max = 3.0\nfirst_token_ms_max = 60000\nstep_ms = 1984\n"
        "hangover_ms = 1504\n"  # a speaker is told from enough speech in one piece
    )
    return file


async def heard(port, audio, pause):
    """What a conversation leaves, in words, times and speakers."""
    async with Speech(f"http://127.0.0.1:{port}", retry_s=60) as live:
        for n, at in enumerate(range(0, len(audio), PIECE)):
            await live.send(audio[at : at + PIECE])
            await pause(n, live)
    lines = live.transcript.shown()
    assert all(line.state == "final" for line in lines) and live.transcript.ended
    told = [(round(line.start, 3), round(line.end, 3), line.text, live.transcript.who(line)) for line in lines]
    return told, live.connections


async def go_on(n, live):
    await asyncio.sleep(0)


async def slowly(n, live):
    """So that it is under way when the server is killed."""
    await asyncio.sleep(0.03)


@pytest.mark.parametrize("recogniser", ["scripted", "whisper"])
def test_a_server_that_is_killed_twice_costs_no_word_of_two_sessions(tmp_path, weights, speech, recogniser):
    if recogniser == "whisper":
        file = whispering(tmp_path, weights("silero-vad", "whisper-base", "wespeaker", "pyannote"))
    else:
        file = installed(tmp_path, weights("silero-vad"))
    quiet = np.zeros(RATE, np.float32)
    talks = [pcm(np.concatenate([speech, quiet])), pcm(np.concatenate([speech[3 * RATE :], quiet, speech[: 2 * RATE]]))]
    serving = [started(file)]
    port = serving[0].http

    async def whole():
        return [await heard(port, audio, go_on) for audio in talks]

    async def interrupted():
        async def pause(n, live):
            """The first session waits for a final text, or a few partials, and kills what serves both."""
            await asyncio.sleep(0.01)
            if n in (45, 75) and live is not None:
                while not live.transcript.lines:
                    await asyncio.sleep(0.01)
                os.kill(serving[-1].pid, signal.SIGKILL)
                serving[-1].process.wait()
                serving.append(await asyncio.to_thread(started, file, f"up{n}.log"))
                while live.connections < len(serving):
                    await asyncio.sleep(0.01)

        return await asyncio.gather(heard(port, talks[0], pause), heard(port, talks[1], slowly))

    try:
        unbroken = asyncio.run(whole())
        found = asyncio.run(interrupted())
    finally:
        for one in serving:
            one.__exit__()
    assert len(serving) == 3 and found[0][1] == 3 and found[1][1] >= 2
    assert [told for told, _ in found] == [told for told, _ in unbroken]
    assert all(len(told) >= 2 for told, _ in unbroken)
    if recogniser == "whisper":
        assert {who for told, _ in unbroken for *_, who in told} & {"S1"}
