"""`millstream speech capacity`: what is measured here, and the arithmetic beside it."""

import json
import wave

import msgspec
import numpy as np
import pytest

from millstream.app.speech_capacity import gpu
from millstream.cli import main
from millstream.errors import BadInput
from millstream.flows.speech.pressure import Cost, second_s
from millstream.flows.speech.settings import PROFILES, Profile
from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.models.runtimes.scripted import Script
from millstream.models.speech.tensors import WINDOWED, batching
from millstream.ops.decoder_memory import decoder_memory

LARGE = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "torch_dtype": "float16"}


def config(folder, said):
    file = folder / "config.json"
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    return file


def test_a_decoder_of_4096_by_32_in_fp16_keeps_512_kb_of_each_token(tmp_path):
    need = decoder_memory(config(tmp_path, LARGE), 1000, 32)
    assert need.token_bytes == 512 * 1024
    assert need.session_bytes == 524_288_000  # 500 MiB
    assert need.all_bytes == 32 * 524_288_000  # 15.6 GiB


@pytest.mark.parametrize(
    ("said", "token", "encoded"),
    [
        (LARGE | {"num_key_value_heads": 8}, 128 * 1024, 0),  # heads that share keys: a quarter
        (LARGE | {"torch_dtype": "float32"}, 1024 * 1024, 0),
        (LARGE | {"head_dim": 64}, 256 * 1024, 0),
        ({"text_config": LARGE, "hidden_size": 8}, 512 * 1024, 0),
        (  # whisper-base: six layers of 512, and 1500 places of what was heard
            {
                "d_model": 512,
                "decoder_layers": 6,
                "num_hidden_layers": 6,
                "decoder_attention_heads": 8,
                "is_encoder_decoder": True,
                "max_source_positions": 1500,
                "torch_dtype": "float32",
            },
            24 * 1024,
            1500 * 24 * 1024,
        ),
    ],
)
def test_what_a_token_takes_follows_from_the_configuration(tmp_path, said, token, encoded):
    need = decoder_memory(config(tmp_path, said), 10, 3)
    assert (need.token_bytes, need.encoded_bytes) == (token, encoded)
    assert need.all_bytes == 3 * (10 * token + encoded)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("no json", "no config.json"),
        ([1], "an object"),
        ({"num_hidden_layers": 3}, "hidden_size or d_model"),
        (LARGE | {"num_hidden_layers": "many"}, "num_hidden_layers"),
        (LARGE | {"torch_dtype": "complex64"}, "complex64"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused(tmp_path, said, words):
    with pytest.raises(BadInput, match=words):
        decoder_memory(config(tmp_path, said), 10, 3)
    with pytest.raises(BadInput, match="at least one"):
        decoder_memory(config(tmp_path, LARGE), 0, 3)


def test_a_device_that_follows_a_hundred_streams_may_take_so_long_for_a_call():
    """133 calls a second of single rows: a hypothesis a second each, a final text each three."""
    one = gpu(Profile(step_ms=1000), 1)
    assert one.calls_s == pytest.approx(400 / 3) and one.call_ms_max == pytest.approx(700 / (400 / 3))
    many = gpu(Profile(step_ms=1000), 32)
    assert many.call_ms_max == pytest.approx(32 * one.call_ms_max)
    assert gpu(Profile(partials=False), 1).calls_s == pytest.approx(100 / 3)


def test_a_second_of_a_session_costs_what_its_parts_do():
    cost = Cost(0.2, 0.5, 10.0, voices_s=0.1)
    assert second_s(PROFILES["caption"], cost) == pytest.approx(0.2 / 0.992 + 0.05 + 0.1, abs=0.02)
    assert second_s(PROFILES["assistant"], cost) == pytest.approx(0.2 / 0.128 + 0.05, abs=0.02)


@pytest.fixture
def models(tmp_path, speech_models):
    """A repository with a detector, and a recogniser that takes 20 ms and 10 ms for each second of audio."""
    repository = Repository(tmp_path / "models")
    script = Script(words=("alpha", "bravo", "charlie"), cost_ms=20.0, cost_ms_s=10.0)
    manifest = Manifest(format="scripted", file="script.json", batching=batching(), inputs=WINDOWED)
    repository.put("recogniser", manifest, {"script.json": msgspec.json.encode(script)})
    weights = Repository(speech_models)
    for name in ("silero-vad", "wespeaker"):
        version = weights.policy(name).live
        kept, manifest = weights.folder(name, version), weights.manifest(name, version)
        repository.put(name, manifest, {each: kept / each for each in manifest.digests})
    return repository.root


def told(capsys, *args):
    main(["speech", "capacity", "--json", *args])
    return json.loads(capsys.readouterr().out)


def recorded(file, sound):
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes((sound * 32767).astype("<i2").tobytes())
    return str(file)


@pytest.mark.slow
def test_a_machine_is_measured(models, capsys, tmp_path, speech):
    found = told(capsys, "--models", str(models))
    assert (found["recogniser"], found["profile"], found["measured"]) == ("recogniser", "caption", "made sound")
    assert found["streams_core"] == pytest.approx(0.7 / found["rtf"])
    assert found["rtf"] > found["voices_ms_s"] / 1000 > 0
    assert found["recording_hours_hour"] == pytest.approx(found["cores"] / found["recording_rtf"])
    assert 256 << 10 < found["session_bytes"] < 16 << 20  # four seconds of audio alone are 256 KiB
    assert [one["rows"] for one in found["gpu"]] == [1, 8, 32]
    file = recorded(tmp_path / "a.wav", speech)
    heard = told(capsys, "--models", str(models), "--audio", file, "--profile", "meeting")
    assert (heard["measured"], heard["profile"]) == ("a.wav", "meeting") and heard["streams"] >= 1


def test_what_cannot_be_measured_is_said(models, tmp_path):
    file = recorded(tmp_path / "hush.wav", np.zeros(5 * 16_000))
    with pytest.raises(SystemExit, match="nobody speaks"):
        main(["speech", "capacity", "--models", str(models), "--audio", file])
    with pytest.raises(SystemExit, match="no profile"):
        main(["speech", "capacity", "--models", str(models), "--profile", "none"])


def test_memory_of_a_decoder_is_told_without_a_model(capsys, tmp_path):
    file = str(config(tmp_path, LARGE))
    assert told(capsys, "--model-config", file, "--tokens", "1000", "--sessions", "32")["token_bytes"] == 524_288
    main(["speech", "capacity", "--model-config", file])
    assert "512 KiB" in (out := capsys.readouterr().out) and "500 MiB" in out and "15.6 GiB" in out
