"""FunASR's adapter, without FunASR, which needs PyTorch and weights: what it is told is read right, and a version of it
runs in a process of its own. The stand-in there has FunASR's one call, and answers as its documentation says.
"""

import numpy as np
import pytest

from millstream.errors import Misconfigured
from millstream.meter import Meter
from millstream.models import Manifest, Repository
from millstream.models.apart import Programs
from millstream.models.model import load
from millstream.models.runtimes.funasr import FunAsr
from millstream.models.speech.heard import read
from millstream.models.speech.tensors import RATE, WINDOWED, WINDOWED_OUTPUTS
from millstream.testing import check_recogniser

STAND_IN = """
import numpy as np

class AutoModel:
    def __init__(self, model, device, disable_update, disable_pbar, log_level):
        self.letters = open(model + "/tokens.txt").read().split()

    def generate(self, input, fs, language, disable_pbar):
        # a letter for each loud tenth of a second
        (sound,) = input
        tenths = sound[: len(sound) // 1600 * 1600].reshape(-1, 1600)
        loud = np.nonzero(np.abs(tenths).max(axis=1) > 0.01)[0].tolist()
        said = [self.letters[place % len(self.letters)] for place in range(len(loud))]
        stamps = [[100 * place, 100 * place + 100] for place in loud]
        return [{"key": "rand", "text": "<|zh|><|NEUTRAL|>" + " ".join(said), "timestamp": stamps}]
"""


class Says:
    """FunASR's answer to anything."""

    def __init__(self, **answer):
        self.answer, self.asked = answer, []

    def generate(self, **asked):
        self.asked.append(asked)
        return [self.answer]


def hear(answer, seconds=2.0, prefix="", language=""):
    row = {
        "audio": np.full((1, round(seconds * RATE)), 0.1, np.float32),
        "samples": np.array([round(seconds * RATE)], np.int32),
        "language": np.array([language], np.object_),
        "prefix": np.array([prefix], np.object_),
        "beam": np.array([1], np.int32),
        "stamps": np.array([False]),
    }
    said = Says(**answer)
    return read(FunAsr(said).predict(row)["heard"][0]), said


def test_characters_with_stamps_are_words_with_times():
    heard, said = hear({"text": "欢 迎 大 家", "timestamp": [[0, 240], [240, 480], [600, 800], [800, 1000]]})
    assert [(word.text, word.start, word.end, word.space) for word in heard.words] == [
        ("欢", 0.0, 0.24, False), ("迎", 0.24, 0.48, False), ("大", 0.6, 0.8, False), ("家", 0.8, 1.0, False),
    ]  # fmt: skip
    assert said.asked[0]["language"] == "auto" and said.asked[0]["fs"] == RATE and heard.timed


def test_tags_are_no_words_and_punctuation_goes_with_the_word_before():
    heard, _ = hear({"text": "<|zh|><|NEUTRAL|><|Speech|><|withitn|>你好，hello world。"})
    assert [word.text for word in heard.words] == ["你", "好，", "hello", "world。"] and heard.language == "zh"
    assert [word.space for word in heard.words] == [False, False, True, True]
    assert heard.words[0].start == 0.0 and heard.words[-1].end == 2.0 and not heard.timed, "there are no stamps"
    assert hear({"text": ""})[0].no_speech == 1.0


def test_a_prefix_takes_the_places_of_the_first_words():
    stamps = [[0, 100], [100, 200], [300, 400]]
    heard, _ = hear({"text": "won too three", "timestamp": stamps}, prefix="one two", language="en")
    assert [(word.text, word.start) for word in heard.words] == [("one", 0.0), ("two", 0.1), ("three", 0.3)]
    longer, _ = hear({"text": "one", "timestamp": stamps[:1]}, prefix="one two three")
    assert [word.text for word in longer.words] == ["one", "two", "three"] and longer.words[-1].end == 2.0
    assert heard.language == "en" and not heard.timed, "nothing says that it was heard there"
    assert hear({"text": "one two three", "timestamp": stamps}, prefix="one two")[0].timed


def test_times_stay_in_order_and_within_the_audio_whatever_it_says():
    heard, _ = hear({"text": "a b c d", "timestamp": [[500, 400], [100, 200], [900, 2600], [2500, 2700]]}, seconds=2)
    at = 0.0
    for word in heard.words:
        assert at <= word.start <= word.end <= 2.0
        at = word.start


def test_a_version_runs_in_a_process_of_its_own_and_keeps_the_contract(tmp_path):
    files = {"model/config.yaml": b"model: Paraformer", "model/tokens.txt": "床 前 明 月 光".encode()}
    manifest = Manifest(format="funasr", file="model", inputs=WINDOWED, outputs=WINDOWED_OUTPUTS, code=("funasr.py",))
    version = Repository(tmp_path).put("m", manifest, {**files, "funasr.py": STAND_IN.encode()})
    programs = Programs(Meter())
    try:
        model = load(Repository(tmp_path), "m", version, programs=programs)
        sound = np.zeros(2 * RATE, np.float32)
        sound[4800:12800], sound[20800:27200] = 0.2, 0.2
        check_recogniser(lambda: model, sound)
        version = Repository(tmp_path).put("m", manifest, {"funasr.py": STAND_IN.encode(), "model/tokens.txt": b"a"})
        with pytest.raises(Misconfigured, match=r"no config\.yaml in it"):
            load(Repository(tmp_path), "m", version, programs=programs)
        with pytest.raises(Misconfigured, match="--allow-code"):
            load(Repository(tmp_path), "m", version)
    finally:
        programs.close()
