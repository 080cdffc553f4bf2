"""Who may speak, how much, what is told to nobody, and what is forgotten: over the wire, with keys."""

import asyncio
import json
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton
from test_speech_wire import WORDS, finals, installed, pcm, started

from millstream import errors
from millstream.app.forget import forget
from millstream.app.installation import Installation
from millstream.client import Client
from millstream.client.speech import Speech
from millstream.guard import auth
from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.models.speech.tensors import WINDOWED, batching

SCRIPT = json.dumps({"words": WORDS}).encode()
MAY = {
    "chief": ["*:*"], "blind": ["recogniser:describe"], "ann": ["*:speech"], "bob": ["*:speech"], "app": ["*:speech"],
}  # fmt: skip
TENSORS = (
    ("audio", "FP32", [1, 80_000], [0.1] * 80_000), ("language", "BYTES", [1], [""]), ("prefix", "BYTES", [1], [""]),
    ("beam", "INT32", [1], [1]), ("stamps", "BOOL", [1], [True]),
)  # fmt: skip
ASKED = json.dumps(
    {"inputs": [dict(zip(("name", "datatype", "shape", "data"), one, strict=True)) for one in TENSORS]}
).encode()


class House:
    """An installation with keys, which hears with one recogniser and has another."""

    def __init__(self, folder, speech_models):
        self.file, self.folder = installed(folder, speech_models), folder
        text = self.file.read_text().replace("[speech]", "[speech]\nsessions_max = 4\nkey_share_max = 0.5")
        self.file.write_text(f'keys = "keys.toml"\n{text}')
        other = Manifest(format="scripted", file="script.json", batching=batching(), inputs=WINDOWED)
        Repository(folder / "models").put("another", other, {"script.json": SCRIPT})
        made = {name: auth.new_key(name, tuple(may)) for name, may in MAY.items()}
        self.keys = {name: key for name, (key, _) in made.items()}
        (folder / "keys.toml").write_text("".join(snippet for _, snippet in made.values()))


@pytest.fixture(scope="module")
def house(tmp_path_factory, speech_models):
    house = House(tmp_path_factory.mktemp("installation"), speech_models)
    with started(house.file) as served:
        house.http, house.grpc = served.http, served.grpc
        house.url = f"http://127.0.0.1:{served.http}"
        yield house


def posted(port, path, body, key):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_nobody_asks_a_recogniser_past_the_gate(house):
    key = house.keys["chief"]
    for model in ("recogniser", "another"):
        for path in (f"/v2/models/{model}/infer", f"/v2/models/{model}/versions/1/infer"):
            status, said = posted(house.http, path, ASKED, key)
            assert status == 403 and "/v1/speech" in said and "/v1/audio/transcriptions" in said, said
            assert posted(house.http, path, b"{}", key)[0] == 403, "nor says what it takes"
        with Client(house.url, key=key) as client, pytest.raises(errors.Forbidden, match="/v1/speech"):
            client.predict(model, {"audio": np.zeros((1, 80_000), np.float32)})
    status, said = posted(house.http, "/v2/models/recogniser/infer", ASKED, house.keys["blind"])
    assert status == 403 and "blind may not infer" in said, "who may not learns that"
    with triton.InferenceServerClient(f"127.0.0.1:{house.grpc}") as client:
        audio = triton.InferInput("audio", [1, 80_000], "FP32")
        audio.set_data_from_numpy(np.zeros((1, 80_000), np.float32))
        headers = {"authorization": f"Bearer {key}"}
        with pytest.raises(triton.InferenceServerException, match="/v1/speech") as refused:
            client.infer("recogniser", [audio], headers=headers)
        assert "PERMISSION_DENIED" in refused.value.status()
        assert client.get_model_metadata("recogniser", headers=headers).name == "recogniser"
    status, said = posted(house.http, "/v2/models/silero-vad/infer", b"{}", key)
    assert status == 400, said  # a detector says no words


def test_one_key_leaves_room_to_others_and_a_right_that_is_taken_ends_what_goes_on(house):
    async def conversations():
        first, second, third, other = (
            Speech(house.url, house.keys[name], retry_s=1.0) for name in ("ann", "ann", "ann", "bob")
        )
        async with asyncio.timeout(30):
            await first.__aenter__()
            await second.__aenter__()
            with pytest.raises(errors.Error, match=r"'ann' has 2 speech sessions.*key_share_max"):
                await third.__aenter__()
            await other.__aenter__()
            file = house.folder / "keys.toml"
            head, _, rest = file.read_text().partition('name = "ann"')
            file.write_text(f'{head}name = "ann"{rest.replace("*:speech", "*:infer", 1)}')
            with pytest.raises(errors.Forbidden, match="may not speech"):
                while True:
                    await first.send(bytes(3200))
                    await asyncio.sleep(0.05)
            await other.send(bytes(3200))
            for one in (first, second, other):
                await one.__aexit__(ValueError, ValueError(), None)

    asyncio.run(conversations())


async def said(house, audio, user, whole):
    """A session of somebody's: edited and finished, or left where it stands."""
    live = Speech(house.url, house.keys["app"], user=user)
    async with asyncio.timeout(40):
        await live.__aenter__()
        await live.send(audio)
        final = None
        async for told in live:
            if getattr(told, "state", "") == "final":
                final = told
                break
        if whole:
            await live.edit(final.id, text="nothing of the kind")
            await live.__aexit__(None, None, None)
            assert finals(live)
        else:
            await live.__aexit__(ValueError, ValueError(), None)


def test_what_is_kept_of_somebodys_session_is_forgotten_by_their_name(house, speech):
    kept = house.folder / "state" / "speech"
    before = set(kept.glob("*.session"))  # of tests before this one

    def left():
        """(reviews in the log, sessions that may be gone on with)"""
        log = [path.read_bytes() for path in (house.folder / "log").rglob("*.seg")]
        reviews = sum(segment.count(b"nothing of the kind") for segment in log)
        return reviews, len(set(kept.glob("*.session")) - before)

    for user in ("ann@example.org", "u17"):
        for whole in (True, False):
            asyncio.run(said(house, pcm(speech), user, whole))
    end = time.monotonic() + 20
    while left() != (2, 2):
        assert time.monotonic() < end, left()
        time.sleep(0.05)
    assert not any(b"ann@example" in path.read_bytes() for path in house.folder.rglob("*") if path.is_file())
    with Installation.open(house.file) as at:
        report = asyncio.run(forget(at, ["ann@example.org"], wait_s=30.0))
    assert (report.records["served"], report.records["reviews"], report.sessions) == (2, 1, 1) and report.found
    assert left() == (1, 1)
    with Installation.open(house.file) as at:
        report = asyncio.run(forget(at, ["u17"], wait_s=30.0))
    assert left() == (0, 0) and report.sessions == 1
