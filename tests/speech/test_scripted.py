"""The scripted recogniser: it hears what is spoken to it, whatever its window, and keeps the contract of both kinds."""

import asyncio
import json
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.errors import BadInput, Corrupt
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.runtimes.scripted import FRAME, Script, Scripted, ScriptedStream, speak
from millstream.models.speech.heard import read
from millstream.models.speech.tensors import RATE, WINDOWED, batching
from millstream.testing import check_recogniser
from millstream.types import Request, Turn

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "你", "好")
TONES = Script(words=WORDS, by="tone")
TURNS = Script(words=WORDS)


def hear(script, sound, prefix=""):
    row = {"audio": sound[None], "samples": np.array([len(sound)], np.int32), "beam": np.array([1], np.int32)}
    row |= {name: np.array([text], np.object_) for name, text in (("language", b""), ("prefix", prefix.encode()))}
    return read(Scripted(script).predict(row | {"stamps": np.array([False])})["heard"][0])


def texts(heard):
    return [word.text for word in heard.words]


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.integers(0, 40))
def test_it_hears_what_is_spoken_wherever_the_window_begins(said, skipped):
    sound = speak(TONES, said)
    assert texts(hear(TONES, sound)) == said
    begins = skipped * 4 * FRAME
    rest = hear(TONES, sound[begins:])
    whole = [word for word in hear(TONES, sound).words if word.start * RATE >= begins]
    assert texts(rest)[len(rest.words) - len(whole) :] == [word.text for word in whole]
    for word, known in zip(rest.words[len(rest.words) - len(whole) :], whole, strict=True):
        assert word.start == pytest.approx(known.start - begins / RATE, abs=1e-9)


def test_words_take_turns_behind_the_prefix_and_one_that_goes_on_is_cut_short():
    sound = speak(TURNS, ["alpha"] * 4)
    assert texts(hear(TURNS, sound)) == ["alpha", "bravo", "charlie", "delta"]
    assert texts(hear(TURNS, sound, "delta")) == ["delta", "echo", "foxtrot", "你"]
    assert texts(hear(TURNS, sound, "foxtrot 你好")) == ["foxtrot", "你", "好", "alpha"]
    open_word = hear(TURNS, sound[: RATE * 12 // 10]).words[-1]
    assert (open_word.text, open_word.confidence) == ("char", 0.3)
    long = hear(TURNS, np.full(RATE, 0.1, np.float32))
    assert texts(long) == ["alpha", "bravo", "charlie"] and long.words[2].end == pytest.approx(0.96)
    assert [word.space for word in hear(TURNS, sound, "你").words] == [False, False, True, True]


def test_what_is_quiet_or_short_is_no_word():
    assert hear(TURNS, np.full(RATE, 0.002, np.float32)).no_speech == 1.0
    click = np.zeros(RATE, np.float32)
    click[4000:4200] = 0.5
    assert not hear(TURNS, click).words


@pytest.mark.parametrize("script", [TONES, TURNS], ids=["tone", "turn"])
def test_both_kinds_keep_the_contract(script):
    sound = speak(script, ["alpha", "echo", "好", "delta", "bravo", "alpha", "charlie"])
    check_recogniser(lambda: Scripted(script), sound)
    check_recogniser(lambda: ScriptedStream(script), sound)


class Listening(Scripted):
    """Broken: a row hears its neighbours."""

    def predict(self, inputs):
        return super().predict(inputs | {"audio": inputs["audio"] + inputs["audio"].sum(axis=0)})


class Forgetful(ScriptedStream):
    """Broken: a slot that was saved comes back empty."""

    def slots(self, count):
        made = super().slots(count)
        made.save = lambda slot: {"audio": np.empty(0, np.float32), "pieces": np.empty(0, np.int32)}
        return made


class Hasty(ScriptedStream):
    """Broken: it commits a word that it has not heard to its end."""

    def slots(self, count):
        made, step = super().slots(count), None
        step = made.step

        def all_of_it(inputs, slots):
            out = step(inputs, slots)
            return out | {"committed": np.array([len(read(cell).words) for cell in out["heard"]], np.int32)}

        made.step = all_of_it
        return made


@pytest.mark.parametrize(
    ("broken", "promise"),
    [(Listening, "neighbours"), (Forgetful, "saved state"), (Hasty, "committed words never change")],
)
def test_the_contract_is_checked(broken, promise):
    sound = speak(TONES, ["alpha", "echo", "bravo", "delta", "bravo", "alpha"])
    with pytest.raises(AssertionError, match=promise):
        check_recogniser(lambda: broken(TONES), sound)


def test_it_is_loaded_from_a_repository(tmp_path):
    repository = Repository(tmp_path)
    manifest = Manifest(format="scripted", file="script.json", batching=batching(), inputs=WINDOWED)
    for script, kind in ((TONES, Scripted), (msgspec.structs.replace(TURNS, kind="streaming"), ScriptedStream)):
        inputs = WINDOWED if kind is Scripted else ()
        put = msgspec.structs.replace(manifest, inputs=inputs)
        version = repository.put(kind.__name__, put, {"script.json": msgspec.json.encode(script)})
        assert type(load(repository, kind.__name__, version)) is kind


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"words": []}, "a script has words"), ({"floor_db": 3}, "floor_db"), ({"kinds": "x"}, "kinds")],
)
def test_a_file_that_is_no_script_is_refused(tmp_path, changed, said):
    text = json.dumps({"words": ["one"]} | changed)
    with pytest.raises(Corrupt, match=said):
        version = Repository(tmp_path).put("m", Manifest(format="scripted", file="s.json"), {"s.json": text.encode()})
        load(Repository(tmp_path), "m", version)


def test_its_cost_is_waited_for_and_an_utterance_has_an_end():
    sound = speak(TURNS, ["alpha"])
    started = time.perf_counter()
    hear(msgspec.structs.replace(TURNS, cost_ms=30, cost_ms_s=20), sound)
    assert time.perf_counter() - started >= 0.03 + 0.02 * len(sound) / RATE
    slots = ScriptedStream(TURNS).slots(1)
    minute = {"audio": np.zeros((1, 60 * RATE), np.float32), "samples": np.array([60 * RATE]), "end": np.array([False])}
    for _ in range(2):
        slots.step(minute, np.array([0]))
    with pytest.raises(BadInput, match="over 120 s"):
        slots.step(minute, np.array([0]))


def test_sessions_of_the_engine_step_it_with_others_whatever_the_size_of_their_steps(tmp_path):
    script = msgspec.structs.replace(TONES, kind="streaming")
    Repository(tmp_path).put("m", Manifest(format="scripted", file="s.json"), {"s.json": msgspec.json.encode(script)})
    said = {"a": ["alpha", "delta", "好", "echo"], "b": ["bravo", "bravo", "alpha"]}
    sounds = {who: speak(script, words) for who, words in said.items()}
    sizes = {"a": 5000, "b": 7000}

    async def step(engine, who, at):
        end = at + sizes[who] >= len(sounds[who])
        audio = sounds[who][at : at + sizes[who]][None]
        inputs = {"audio": audio, "samples": np.array([audio.shape[1]], np.int32), "end": np.array([end])}
        turn = Turn(id=who, start=at == 0)
        return read((await engine.submit(Request("m", inputs, 1, turn=turn))).outputs["heard"][0])

    async def session(engine, who):
        for at in range(0, len(sounds[who]), sizes[who]):
            heard = await step(engine, who, at)
        return texts(heard)

    async def scene():
        engine = Engine(Repository(tmp_path), SystemClock(), Meter())
        await engine.start()
        try:
            found = await asyncio.gather(*(session(engine, who) for who in said))
        finally:
            await engine.stop()
        assert dict(zip(said, found, strict=True)) == said

    asyncio.run(scene())
