"""Whisper on CTranslate2: what it takes and gives, that rows do not know of each other, what it refuses.

The fast tests run a model of random weights (whisper_house.py), the slow ones those of the shelf on the clips.
"""

import asyncio
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import whisper_house
from msgspec.structs import replace

from millstream import errors
from millstream.clock import SystemClock
from millstream.engine import Engine, EngineLimits
from millstream.meter import Meter
from millstream.models import Repository, load
from millstream.models.manifest import Batching
from millstream.models.runtimes import whisper
from millstream.models.runtimes.whisper import Settings
from millstream.models.speech.hanzi import PROMPT, simplified
from millstream.models.speech.heard import read
from millstream.models.speech.pieces import begun, split
from millstream.models.speech.tensors import RATE, windows
from millstream.ops.add import Wish, add
from millstream.testing import check_recogniser
from millstream.types import Request

FLOAT32, INT8 = Settings(compute_type="float32"), Settings(compute_type="int8")


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return whisper_house.make(tmp_path_factory.mktemp("whisper") / "random")


@pytest.fixture(scope="module")
def made(house):
    return whisper.load(house, whisper.manifest(INT8), "cpu")


def sound(seconds, seed=0):
    random = np.random.default_rng(seed)
    at = np.arange(round(seconds * RATE)) / RATE
    return (0.1 * np.sin(2 * np.pi * (200 + 150 * seed) * at) + 0.02 * random.standard_normal(len(at))).astype("f4")


def asked(*sounds, language="en", prefix="", beam=1, stamps=False):
    """Inputs of some rows; what is no list is the same of all."""

    def column(value, dtype):
        values = value if isinstance(value, list) else [value] * len(sounds)
        return np.array(values, dtype)

    audio = np.zeros((len(sounds), max(map(len, sounds))), np.float32)
    for row, one in zip(audio, sounds, strict=True):
        row[: len(one)] = one
    return {
        "audio": audio,
        "samples": np.array([len(one) for one in sounds], np.int32),
        "language": column(language, object),
        "prefix": column(prefix, object),
        "beam": column(beam, np.int32),
        "stamps": column(stamps, np.bool_),
    }


def hear(model, *sounds, **how):
    return [read(cell) for cell in model.predict(asked(*sounds, **how))["heard"]]


def text(heard):
    return "".join(f" {word.text}" if word.space else word.text for word in heard.words).strip()


def test_a_row_is_heard_the_same_alone_and_among_others(made):
    rows = [
        (sound(3, 1), "en", "", 1, False),
        (sound(4, 2), "en", "", 1, True),
        (sound(8, 3), "zh", "", 1, False),
        (sound(2, 4), "en", "one two", 1, True),
        (sound(2, 5), "en", "a longer prefix", 1, True),
        (sound(12, 6), "en", "", 1, False),
        (sound(3, 7), "", "", 1, False),
        (sound(3, 8), "en", "", 5, False),
        (sound(7, 1), "en", "", 5, True),
    ]
    sounds, *columns = (list(column) for column in zip(*rows, strict=True))
    names = ("language", "prefix", "beam", "stamps")
    together = hear(made, *sounds, **dict(zip(names, columns, strict=True)))
    alone = [hear(made, row[0], **dict(zip(names, row[1:], strict=True)))[0] for row in rows]
    assert together == alone
    assert len({text(one) for one in together}) > 4, "the model says the same of everything"


@pytest.mark.parametrize("settings", [INT8, FLOAT32], ids=lambda one: one.compute_type)
def test_it_keeps_what_a_recogniser_promises(house, settings):
    check_recogniser(lambda: whisper.load(house, whisper.manifest(settings), "cpu"), sound(6, 7))


def test_calls_at_once_do_not_know_of_each_other(made):
    rows = [asked(sound(seconds, seed), stamps=True) for seed, seconds in enumerate((3, 5, 12, 2, 7, 4, 9, 1))]
    one_by_one = [made.predict(row)["heard"][0] for row in rows]
    with ThreadPoolExecutor(4) as pool:
        at_once = [answer["heard"][0] for answer in pool.map(made.predict, rows)]
    assert at_once == one_by_one


def test_what_pads_a_row_is_not_heard(made):
    given = asked(sound(3, 1), sound(9, 2))
    given["audio"][0, 3 * RATE :] = 1.0
    assert made.predict(given)["heard"][0] == made.predict(asked(sound(3, 1)))["heard"][0]


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("prefix", ["so", "Hello, world", "it is 3.5 % 你好，世界", "你好", " spaced  out "])
def test_a_prefix_comes_first_word_by_word(made, prefix, beam):
    for seed in range(3):
        (heard,) = hear(made, sound(3, seed), prefix=prefix, beam=beam, stamps=True)
        expected = [(piece.text, piece.space) for piece in split(begun(prefix))]
        assert [(word.text, word.space) for word in heard.words[: len(expected)]] == expected


@pytest.mark.parametrize("stamps", [True, False])
def test_times_are_in_order_and_within_the_audio(made, stamps):
    for seed in range(4):
        (heard,) = hear(made, sound(1.7 * (seed + 1), seed), stamps=stamps)
        times = [time for word in heard.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(0 <= time <= 1.7 * (seed + 1) + 1e-3 for time in times)
        assert all(0 <= word.confidence <= 1 for word in heard.words)
        assert heard.timed is stamps, "else they are guesses"


def test_nothing_is_said_of_no_audio(made):
    (heard,) = hear(made, sound(0), prefix="")
    assert heard.words == []
    assert hear(made, 2e-5 * np.sign(sound(2)))[0].words == []
    assert hear(made, 2e-3 * np.sign(sound(2)))[0].words
    (heard,) = hear(made, sound(0), prefix="as before", stamps=True)
    assert text(heard) == "as before"
    assert all(word.end == 0 for word in heard.words)


def test_text_has_an_end(house):
    """Room for 12 tokens a second of its sound and 8 more, whatever the model goes on saying."""
    endless = whisper.load(house, whisper.manifest(INT8), "cpu")
    said = []
    decode = endless._model.generate
    endless._model = Spy(endless._model, lambda *a, **k: said.append(k["max_length"]) or decode(*a, **k))
    hear(endless, sound(3))
    assert said[0] == 2 * (3 * 12 + 8)
    hear(endless, sound(29), prefix="so")
    assert said[-1] == 2 * 224


class Spy:
    """CTranslate2's model with another `generate`."""

    def __init__(self, model, generate):
        self._model, self.generate = model, generate

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_a_loop_is_cut_and_never_in_the_prefix(house):
    """The decoder is made to repeat itself."""
    model = whisper.load(house, whisper.manifest(INT8), "cpu")
    encode = model._vocabulary.encode

    def repeats(encoded, prompts, **how):
        said = encode(" go go go go go go go go on" + " and on and on" * 30)
        return [SimpleNamespace(sequences_ids=[said], scores=[-0.3], no_speech_prob=0.1)]

    model._model = Spy(model._model, repeats)
    (heard,) = hear(model, sound(5), prefix="go go go go go go go go on")
    assert text(heard) == "go go go go go go go go on and on"


@pytest.mark.parametrize(("ends", "expected"), [((2.0, 2.2), 8), ((2.0, 3.9), 17)])
def test_a_last_sentence_said_twice_is_said_once_unless_it_lasts_twice(house, ends, expected):
    """The decoder is made to say it twice, and to have heard it until `ends` seconds, the first and the second time."""
    model = whisper.load(house, whisper.manifest(INT8), "cpu")
    said = model._vocabulary.encode(" I agree. I Agree.")
    half = len(said) // 2

    def twice(encoded, prompts, **how):
        return [SimpleNamespace(sequences_ids=[said], scores=[-0.3], no_speech_prob=0.1)]

    def aligned(encoded, start, tokens, frames):
        ticks = np.interp(np.arange(len(said) + 1), [0, half, len(said)], np.array([0, *ends]) / 0.02).astype(int)

        return [SimpleNamespace(alignments=list(enumerate(ticks.tolist())), text_token_probs=[0.5] * len(said))]

    model._model = Spy(model._model, twice)
    model._model.align = aligned
    (heard,) = hear(model, sound(5))
    assert text(heard) == "I agree. I Agree."[:expected].strip()
    (heard,) = hear(model, sound(5), prefix="I agree. I")
    assert text(heard) == "I agree. I Agree."


def test_the_sentence_before_chinese_is_not_said(house):
    model = whisper.load(house, whisper.manifest(INT8), "cpu")
    said, asked_with = model._vocabulary.encode(PROMPT), []

    def echo(encoded, prompts, **how):
        asked_with.extend(prompts)
        return [SimpleNamespace(sequences_ids=[said], scores=[-0.1], no_speech_prob=0.1)]

    model._model = Spy(model._model, echo)
    (heard,) = hear(model, sound(5), language="zh")
    assert heard.words == []
    assert [token for token in asked_with[0] if token < whisper_house.END] == said
    (heard,) = hear(model, sound(5), language="en")
    assert text(heard) == PROMPT
    assert [token for token in asked_with[1] if token < whisper_house.END] == []


@pytest.mark.parametrize(
    ("score", "no_speech", "expected"),
    [(-1.4, 0.7, ""), (-1.4, 0.5, "Thank you."), (-0.7, 0.7, "Thank you."), (-0.7, 0.9, ""), (-0.3, 0.9, "Thank you.")],
)
def test_what_decoders_say_of_silence_is_left_out(house, score, no_speech, expected):
    model = whisper.load(house, whisper.manifest(INT8), "cpu")
    said = model._vocabulary.encode(" Thank you.")

    def thanks(encoded, prompts, **how):
        total = score * (len(said) + 1) / len(said)
        return [SimpleNamespace(sequences_ids=[said], scores=[total], no_speech_prob=no_speech)]

    model._model = Spy(model._model, thanks)
    (heard,) = hear(model, sound(5))
    assert (text(heard), heard.no_speech) == (expected, no_speech)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"language": "xx"}, "language 'xx' is not known to this model; it knows: en, zh"),
        ({"beam": 17}, "beam 17: at most 16"),
        ({"prefix": "word " * 300}, r"a prefix of \d+ tokens: send at most 200"),
        ({"prefix": b"\xff"}, "not UTF-8"),
    ],
)
def test_a_clients_mistake_is_said(made, how, match):
    with pytest.raises(errors.BadInput, match=match):
        hear(made, sound(1), **how)


def test_more_than_half_a_minute_is_refused(made):
    with pytest.raises(errors.BadInput, match=r"audio of 30\.1 s; 30 s are heard at once: split it"):
        hear(made, sound(30.1))


def test_languages_are_taken_as_browsers_write_them(made):
    assert hear(made, sound(2), language="en-US")[0].language == "en"
    assert hear(made, sound(2), language="zh_Hans_CN")[0].language == "zh"
    assert hear(made, sound(2), language="")[0].language in ("en", "zh")


@pytest.mark.parametrize("missing", ["model.bin", "tokenizer.json", "config.json"])
def test_a_folder_without_one_of_its_files_is_corrupt(house, tmp_path, missing):
    shutil.copytree(house, tmp_path / "m")
    (tmp_path / "m" / missing).unlink()
    with pytest.raises(errors.Corrupt, match=f"{missing} is not there"):
        whisper.load(tmp_path / "m", whisper.manifest(), "cpu")


def test_a_broken_file_is_corrupt(house, tmp_path):
    for name, content in {"model.bin": b"nothing", "tokenizer.json": b"{}", "config.json": b"{}"}.items():
        shutil.copytree(house, tmp_path / name)
        (tmp_path / name / name).write_bytes(content)
        with pytest.raises(errors.Corrupt):
            whisper.load(tmp_path / name, whisper.manifest(), "cpu")


def test_settings_that_mean_nothing_are_refused(house):
    for settings, match in (
        ({"compute_type": "int3"}, "compute_type"),
        ({"window_s": 40}, "window_s"),
        ({"beam": 5}, "beam"),
    ):
        with pytest.raises(errors.Misconfigured, match=match):
            whisper.load(house, replace(whisper.manifest(), settings=settings), "cpu")
    said = whisper.manifest()
    odd = replace(said.batching, length=replace(said.batching.length, buckets=(80_001,)))
    with pytest.raises(errors.Misconfigured, match="multiples of 320"):
        whisper.load(house, replace(said, batching=odd), "cpu")


def test_what_this_machine_cannot_compute_is_said(house, caplog):
    with caplog.at_level(logging.ERROR):
        model = whisper.load(house, whisper.manifest(Settings(compute_type="float16")), "cuda:7")
    assert (model.device, model.compute_type) == ("cpu", "float32")
    assert "cuda:7" in caplog.text and "compute_type float16 is not to be had" in caplog.text
    with pytest.raises(errors.Misconfigured, match="device 'tpu'"):
        whisper.load(house, whisper.manifest(), "tpu")


def test_the_shortest_window_is_the_models_to_say(house):
    seconds = [samples // RATE for samples in whisper.load(house, whisper.manifest(), "cpu").windows]
    assert seconds == [6, 8, 10, 12, 15, 20, 25, 30]
    least = whisper.manifest(Settings(window_s=30, step_window_s=30))
    assert whisper.load(house, least, "cpu").windows == (30 * RATE,)
    bare = replace(least, batching=Batching())
    assert whisper.load(house, bare, "cpu").windows == (30 * RATE,)


def test_a_window_has_silence_behind_the_sound(made):
    def window(seconds, beam):
        (asked_for,) = windows(asked(sound(seconds), beam=beam))
        return made._row(asked_for).length / RATE

    seconds = (0.1, 5.5, 5.51, 9.5, 9.51, 29, 30)
    assert [window(each, 1) for each in seconds] == [6, 6, 8, 10, 12, 30, 30]
    assert [window(each, 5) for each in seconds] == [10, 10, 10, 10, 12, 30, 30], "a final text wants more"


def test_a_folder_is_added_without_code_and_served(house, tmp_path):
    said = []
    wish = Wish(source=str(house), name="ears", settings={"compute_type": "int8", "window_s": 10})
    added = add(tmp_path / "models", wish, said.append)
    assert (added.format, added.role) == ("whisper", "live")
    assert "model.bin: a Whisper model of CTranslate2, 4 files" in said[0]
    repository = Repository(tmp_path / "models")
    assert repository.manifest("ears", "1").settings == {"compute_type": "int8", "window_s": 10.0}
    model = load(repository, "ears", "1")
    (expected,) = hear(model, sound(3, 1))
    given = asked(sound(3, 1))
    del given["samples"]  # the engine fills them

    async def answered():
        engine = Engine(repository, SystemClock(), Meter(), EngineLimits())
        await engine.start()
        try:
            return await engine.submit(Request("ears", given, 1))
        finally:
            await engine.stop()

    assert read(asyncio.run(answered()).outputs["heard"][0]) == expected


def test_what_means_nothing_to_such_a_folder_is_refused(house, tmp_path):
    with pytest.raises(errors.Misconfigured, match="a Whisper model: --entry means nothing"):
        add(tmp_path / "models", Wish(source=str(house), entry="a:b"), print)
    with pytest.raises(errors.Misconfigured, match="compute_type, window_s"):
        add(tmp_path / "models", Wish(source=str(house), settings={"beam": 3}), print)
    shutil.copytree(house, tmp_path / "half")
    (tmp_path / "half" / "tokenizer.json").unlink()
    with pytest.raises(errors.Misconfigured, match=r"tokenizer\.json is not there"):
        add(tmp_path / "models", Wish(source=str(tmp_path / "half")), print)


@pytest.fixture(scope="module")
def base(weights):
    repository = Repository(weights("whisper-base"))
    folder = repository.folder("whisper-base", repository.policy("whisper-base").live)
    return whisper.load(folder, whisper.manifest(INT8), "cpu")


SAID = {
    "librivox/0870": "and mister john dashwood had then leisure to consider how much there might be prudently in his "
    "power to do for them",
    "librivox/0890": "unless to be rather cold hearted and rather selfish is to be ill disposed",
    "librispeech/1688-142285-0006": "i don't think mister hale you have done quite right in introducing such a person "
    "to us without telling us what he had been",
    "ljspeech/LJ001-0006": "and it is worth mention in passing that as an example of fine typography",
}

CHINESE = {
    "zh/funasr_example": "欢迎大家来体验达摩院推出的语音识别模型",
    "zh/aishell-BAC009S0724W0121": "广州市房地产中介协会分析",
}


@pytest.mark.slow
def test_real_words_alone_and_among_others(base, clip):
    import jiwer
    from whisper_normalizer.english import EnglishTextNormalizer

    sounds = [clip(name) for name in SAID]
    alone = [hear(base, sound)[0] for sound in sounds]
    assert hear(base, *sounds) == alone
    plain = EnglishTextNormalizer()
    assert jiwer.wer([plain(said) for said in SAID.values()], [plain(text(heard)) for heard in alone]) < 0.06
    assert all(heard.language == "en" and heard.no_speech < 0.3 for heard in alone)


@pytest.mark.slow
def test_real_words_have_the_times_of_their_sound(base, clip):
    """Two clips with a second of silence between them: the words of each lie in it."""
    first, second = clip("librivox/0880"), clip("ljspeech/LJ001-0002")
    gap = np.zeros(RATE, np.float32)
    (heard,) = hear(base, np.concatenate([first, gap, second]), stamps=True)
    border = len(first) / RATE
    before = [word for word in heard.words if word.start < border + 0.5]
    after = [word for word in heard.words if word.start >= border + 0.5]
    assert [word.text.strip(".,").lower() for word in (before[0], before[-1])] == ["he", "man"]
    assert [word.text.strip(".,").lower() for word in after] == ["in", "being", "comparatively", "modern"]
    assert all(word.end <= border + 0.3 for word in before)
    assert all(word.start >= border + 0.7 for word in after[1:])


@pytest.mark.slow
def test_real_words_go_on_from_a_prefix(base, clip):
    sound = clip("librivox/0870")
    prefix = "And Mr. John Dashwood had then leisure"
    (heard,) = hear(base, sound, prefix=prefix, beam=5)
    assert text(heard).startswith(prefix)
    assert text(heard).endswith("in his power to do for them.")
    (whole,) = hear(base, sound, prefix=text(heard), beam=5)
    assert text(whole) == text(heard), "a whole text has nothing added to it"


@pytest.mark.slow
def test_real_chinese_is_found_out_and_simplified(base, clip):
    for name, expected in CHINESE.items():
        (heard,) = hear(base, clip(name), language="", beam=5, stamps=True)
        found = text(heard)
        assert heard.language == "zh"
        assert simplified(found) == found
        assert all(len(word.text.strip("，。《》")) == 1 and not word.space for word in heard.words)
        letters = "".join(letter for letter in found if letter.isalnum())
        assert sum(letter in expected for letter in letters) >= 0.7 * len(expected), found


@pytest.mark.slow
def test_nothing_is_made_up_of_silence_and_noise(base):
    random = np.random.default_rng(0)
    for seconds in (1.0, 4.0):
        count = round(seconds * RATE)
        for sound in (np.zeros(count, np.float32), (0.01 * random.standard_normal(count)).astype(np.float32)):
            for beam in (1, 5):
                (heard,) = hear(base, sound, beam=beam)
                assert (text(heard), heard.no_speech > 0.6) == ("", True)
