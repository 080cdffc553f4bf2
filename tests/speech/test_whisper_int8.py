"""Whisper in eight bits on ONNX Runtime beside CTranslate2, which computes the same file in float32: what is heard,
said and when, near enough; texts with their beginnings; calls at once; files that are none.

The fast tests run a model of random weights (whisper_house.py), the slow ones that of the shelf on the clips.
"""

import itertools
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import whisper_house

from millstream import errors
from millstream.models import Repository
from millstream.models.speech.alignment import costs, path
from millstream.models.speech.beam import Likely, repeating, search
from millstream.models.speech.ct2_file import Weights
from millstream.models.speech.mel import log_mel
from millstream.models.speech.tensors import RATE
from millstream.models.speech.vocabulary import Vocabulary
from millstream.models.speech.whisper_int8 import NETWORK, Int8Whisper, _Reading

END, START, LANGUAGE, TRANSCRIBE, PLAIN = whisper_house.END, 50_258, 50_259, 50_359, 50_363
PROMPT = [START, LANGUAGE, TRANSCRIBE, PLAIN]


class Both:
    """The model of a folder, and CTranslate2's in float32."""

    def __init__(self, folder):
        import ctranslate2

        self.folder = folder
        self.ours = Int8Whisper(folder)
        self.theirs = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)

    def encode(self, mel):
        from ctranslate2 import StorageView

        return self.ours.encode(mel[None]), self.theirs.encode(StorageView.from_array(np.ascontiguousarray(mel[None])))

    def generate(self, mel, prompt=tuple(PROMPT), **how):
        """What each says, the score of every text with it."""
        how = {"beam_size": 1, "max_length": 80, "return_scores": True, "return_no_speech_prob": True, **how}
        prompts = [list(prompt)]
        ours, theirs = self.encode(mel)
        return self.ours.generate(ours, prompts, **how)[0], self.theirs.generate(theirs, prompts, **how)[0]

    def align(self, mel, tokens, frames):
        ours, theirs = self.encode(mel)
        return (
            self.ours.align(ours, PROMPT[:-1], [tokens], frames)[0],
            self.theirs.align(theirs, PROMPT[:-1], [tokens], frames)[0],
        )


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return Both(whisper_house.make(tmp_path_factory.mktemp("whisper") / "random"))


@pytest.fixture(scope="module")
def base(weights):
    repository = Repository(weights("whisper-base"))
    return Both(repository.folder("whisper-base", repository.policy("whisper-base").live))


def sound(seed, seconds=5.0):
    random = np.random.default_rng(seed)
    at = np.arange(round(seconds * RATE)) / RATE
    return (0.1 * np.sin(2 * np.pi * (200 + 150 * seed) * at) + 0.02 * random.standard_normal(len(at))).astype("f4")


def spectrum(seed, window_s=6):
    return log_mel(sound(seed), window_s * RATE)


def far(one, other):
    """The size of a difference by that of the second."""
    return float(np.linalg.norm(np.asarray(one) - other) / np.linalg.norm(other))


def heard(both, mel):
    """Keys and values of the first layer: of the model, and of CTranslate2's encoder and the file's own weights."""
    ours, theirs = both.encode(mel)
    weights = Weights(both.folder / "model.bin", NETWORK)
    name = "decoder/layer_0/attention/linear_1"
    expected = np.array(theirs)[0] @ weights.floats(f"{name}/weight").T + weights.floats(f"{name}/bias")
    keys, values = (ours[0][name].numpy() for name in ("heard_keys_0", "heard_values_0"))
    found = np.concatenate([keys.transpose(2, 0, 1), values.transpose(1, 0, 2)], axis=1)
    return found.reshape(expected.shape), expected


def times(aligned):
    pairs = np.array(aligned.alignments)
    return pairs[np.concatenate([[True], np.diff(pairs[:, 0]) > 0]), 1]


@pytest.mark.parametrize("window_s", [6, 10])
def test_a_window_is_heard_as_in_float32(house, window_s):
    for seed in range(3):
        assert far(*heard(house, spectrum(seed, window_s))) < 0.05


def test_what_comes_next_is_as_likely_as_in_float32(house):
    tokens = [72, 105, 220, 33, 47, 99, 220, 104, 101]
    for seed in range(3):
        ours, theirs = house.align(spectrum(seed), tokens, 500)
        assert np.abs(np.log(ours.text_token_probs) - np.log(theirs.text_token_probs)).mean() < 0.1


@pytest.mark.parametrize("beam", [1, 5])
def test_a_text_is_as_sure_as_in_float32(house, beam):
    for seed in range(4):
        ours, theirs = house.generate(spectrum(seed), beam_size=beam)
        # one that is less sure was found by less luck: of a beam, another hypothesis may be the last one left
        assert ours.scores[0] == pytest.approx(theirs.scores[0], abs=0.1 if beam == 1 else 0.3)
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, rel=0.1, abs=1e-6)
        assert len(ours.sequences_ids[0]) <= 40


@pytest.mark.parametrize(("before", "begun"), [(0, 1), (0, 4), (21, 0), (21, 3)])
def test_a_text_has_the_room_that_ctranslate2_gives_it(house, before, begun):
    prompt = [*[50_361, *[72] * 20][:before], *PROMPT, *[72, 105, 220, 33][:begun]]
    for most in (28, 30, 60):
        ours, theirs = (one.sequences_ids[0] for one in house.generate(spectrum(1), prompt, max_length=most))
        assert len(ours) == max(len(theirs), begun), most


def test_a_texts_beginning_stays_and_costs_nothing(house):
    prefix = [72, 105, 220, 33]
    for beam, count in itertools.product((1, 5), range(1, 5)):
        ours, theirs = house.generate(
            spectrum(1), [*PROMPT, *prefix[:count]], beam_size=beam, max_length=2 * (count + 3), suppress_blank=False
        )
        assert ours.sequences_ids[0][:count] == prefix[:count]
        assert len(ours.sequences_ids[0]) <= count + 3
        assert ours.scores[0] == pytest.approx(theirs.scores[0], abs=0.1)


def test_what_was_before_the_transcription_is_no_beginning_of_the_text(house):
    before = [50_361, 72, 105, 72, 105]
    ours, theirs = house.generate(spectrum(2), [*before, *PROMPT])
    assert ours.sequences_ids[0][:2] != [72, 105] or theirs.sequences_ids[0][:2] == [72, 105]
    assert ours.scores[0] == pytest.approx(theirs.scores[0], abs=0.1)
    assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, rel=0.1, abs=1e-6)


def test_tokens_that_no_text_has_never_come(house):
    never = set(whisper_house.NEVER)
    for seed in range(4):
        for beam in (1, 5):
            ours, _ = house.generate(spectrum(seed), beam_size=beam)
            assert ours.sequences_ids[0] and not never & set(ours.sequences_ids[0])


def test_nothing_comes_twice_where_it_may_not(house):
    repeats = 0
    for seed in range(4):
        for beam in (1, 5):
            loose, _ = house.generate(spectrum(seed), beam_size=beam, max_length=160)
            ours, _ = house.generate(spectrum(seed), beam_size=beam, max_length=160, no_repeat_ngram_size=3)
            repeats += triples(loose.sequences_ids[0])
            assert not triples(ours.sequences_ids[0])
    assert repeats, "nothing was repeated anyway"


def triples(tokens):
    """How many threes of tokens are there again."""
    found = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(found) - len(set(found))


def test_tokens_that_would_repeat():
    assert repeating([1, 2, 3, 1, 2], 3) == [3]
    assert repeating([1, 2, 3, 1, 2, 4, 1, 2], 3) == [3, 4]
    assert repeating([1, 2], 3) == [] == repeating([], 3)
    assert repeating([7, 7, 7], 3) == [7]


def test_a_language_is_as_likely_as_in_float32(house):
    for seed in range(3):
        ours, theirs = house.encode(spectrum(seed))
        (found,), (expected,) = house.ours.detect_language(ours), house.theirs.detect_language(theirs)
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert [sure for _, sure in found] == pytest.approx([sure for _, sure in expected], abs=0.03)
        assert sum(sure for _, sure in found) == pytest.approx(1)


def test_times_go_on_to_the_end(house):
    tokens = [72, 105, 220, 33, 47, 99, 220, 104, 101]
    for seed in range(3):
        ours, _ = house.align(spectrum(seed), tokens, 500)
        pairs = np.array(ours.alignments)
        assert pairs[0].tolist() == [0, 0] and pairs[-1].tolist() == [len(tokens), 249]
        assert {tuple(step) for step in np.diff(pairs, axis=0).tolist()} <= {(0, 1), (1, 0), (1, 1)}
        assert len(times(ours)) == len(tokens) + 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (4, 30), (30, 4), (12, 60)])
def test_the_way_through_costs_least(shape):
    for seed in range(5):
        cost = np.random.default_rng(seed).normal(size=shape)
        least = np.full((shape[0] + 1, shape[1] + 1), np.inf)
        least[0, 0] = 0
        for row, place in itertools.product(range(shape[0]), range(shape[1])):
            before = min(least[row, place], least[row, place + 1], least[row + 1, place])
            least[row + 1, place + 1] = before + cost[row, place]
        found = path(cost)
        assert sum(cost[pair] for pair in found) == pytest.approx(least[-1, -1])
        assert found[0] == (0, 0) and found[-1] == (shape[0] - 1, shape[1] - 1)


def test_attention_is_evened_out_as_its_authors_do():
    seen = np.random.default_rng(0).random((3, 6, 40)).astype(np.float32)
    sure = seen / seen.sum(axis=-1, keepdims=True)
    sure = (sure - sure.mean(axis=-2, keepdims=True)) / sure.std(axis=-2, keepdims=True)
    wide = np.lib.stride_tricks.sliding_window_view(np.pad(sure, [(0, 0), (0, 0), (3, 3)], mode="reflect"), 7, axis=-1)
    np.testing.assert_allclose(costs(seen), -np.median(wide, axis=-1).mean(axis=0), atol=1e-5)
    assert costs(seen[..., :3]).shape == (6, 3), "a sound too short for a median of seven"


def test_a_wide_beam_finds_the_likeliest_text():
    """Four tokens, the last one ends; what is likely depends on all that was before. All texts are tried."""
    end, most = 3, 4

    def logs(text):
        random = np.random.default_rng([5, *text])
        raw = random.normal(0, 2, 4)
        return raw - np.log(np.exp(raw).sum())

    def likely(texts):
        found = np.array([logs(text) for text in texts], np.float32)
        order = np.argsort(-found, axis=1)
        return Likely(np.take_along_axis(found, order, 1), order)

    def sure(text):
        given = sum(logs(text[:at])[token] for at, token in enumerate(text))
        return (given + (logs(text)[end] if len(text) < most else 0)) / max(1, len(text))

    texts = [text for count in range(most + 1) for text in itertools.product(range(end), repeat=count)]
    found = search(likely([()]), lambda rows, live: likely([one.tokens for one in live]), [], end, 200, most)
    assert tuple(found.tokens) == max(texts, key=sure)
    assert found.sure == pytest.approx(sure(found.tokens), abs=1e-5)
    greedy = search(likely([()]), lambda rows, live: likely([one.tokens for one in live]), [], end, 1, most)
    steps = [int(np.argmax(logs(greedy.tokens[:at]))) for at in range(len(greedy.tokens))]
    assert greedy.tokens == steps


def test_an_end_that_is_second_of_two_is_one():
    """What begins with 9 ends with .4, or goes on with 1 and then with little of anything."""
    little = np.log(np.full((1, 4), 0.05, np.float32))
    first = Likely(np.log([[0.6, 0.4, 1e-9, 1e-9]]), np.array([[1, 3, 0, 2]]))
    found = search(
        first,
        lambda rows, live: Likely(np.tile(little, (len(live), 1)), np.tile(range(4), (len(live), 1))),
        [9],
        3,
        2,
        4,
    )
    assert found.tokens == [9] and found.sure == pytest.approx(np.log(0.4))


def test_texts_that_go_on_together_are_as_alone(house):
    """Three texts of one beginning, of which two go on, one of them twice."""
    (window,) = house.ours.encode(spectrum(1)[None])

    def read(texts, *more):
        reading = _Reading(house.ours._decoder, window)
        reading.read(texts, [0], house.ours._off)
        for rows, tokens in more:
            reading.keep(rows)
            reading.read(tokens, [0], house.ours._off)
        return reading.logs()[:, 0, :256]

    together = read([[START]], ([0, 0, 0], [[72], [33], [99]]), ([2, 0, 2], [[47], [48], [49]]))
    for row, tokens in zip(together, [(START, 99, 47), (START, 72, 48), (START, 99, 49)], strict=True):
        alone = read([tokens[:1]], *(([0], [[token]]) for token in tokens[1:]))[0]
        np.testing.assert_allclose(row, alone, atol=1e-4)
    assert far(together[0], together[2]) > 0.01 < far(together[0], together[1]), "all texts are alike"


def test_calls_at_once_are_as_alone(house):
    windows = [spectrum(seed, window_s) for seed in range(4) for window_s in (6, 10)]

    def said(mel):
        window = house.ours.encode(mel[None])
        (one,) = house.ours.generate(window, [PROMPT], beam_size=3, max_length=60)
        (aligned,) = house.ours.align(window, PROMPT[:-1], [one.sequences_ids[0][:20]], 500)
        return one, aligned

    alone = [said(mel) for mel in windows]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(said, windows * 3)) == alone * 3


@pytest.mark.parametrize("numbers", ["float16", "int8"])
def test_a_file_in_other_numbers_says_the_same(house, tmp_path, numbers):
    other = Both(whisper_house.make(tmp_path / numbers, numbers=numbers))
    found, expected = (heard(one, spectrum(1))[1] for one in (other, house))
    assert far(found, expected) < (0.001 if numbers == "float16" else 0.05), "the file itself"
    assert far(heard(other, spectrum(1))[0], expected) < 0.06
    ours, _ = other.generate(spectrum(1))
    assert ours.scores[0] == pytest.approx(house.generate(spectrum(1))[1].scores[0], abs=0.1)


def test_weights_are_read_as_they_were_written(tmp_path):
    """The same weights in three kinds of numbers, each beside those of 32 bits."""
    whole = Weights(whisper_house.make(tmp_path / "float32") / "model.bin", NETWORK)
    assert whole["decoder/projection/weight"] is whole["decoder/embeddings/weight"], "one is the other's alias"
    assert whole["encoder/conv1/weight"].shape == (whisper_house.SIZE, 80, 3)
    assert int(whole["encoder/num_heads"]) == whisper_house.HEADS
    for numbers, near in (("float16", 1e-3), ("int8", 0.02)):
        other = Weights(whisper_house.make(tmp_path / numbers, numbers=numbers) / "model.bin", NETWORK)
        for name in ("encoder/layer_0/ffn/linear_0/weight", "decoder/embeddings/weight"):
            np.testing.assert_allclose(other.floats(name), whole.floats(name), atol=near * np.abs(whole[name]).max())


def test_a_file_that_is_none_is_corrupt(house, tmp_path):
    whole = (house.folder / "model.bin").read_bytes()
    for name, content in {
        "half": whole[: len(whole) // 2],
        "cut": whole[:-3],
        "later": struct.pack("<I", 7) + whole[4:],
        "other": whole.replace(b"WhisperSpec", b"WhisperSpeX", 1),
        "empty": b"",
    }.items():
        shutil.copytree(house.folder, tmp_path / name)
        (tmp_path / name / "model.bin").write_bytes(content)
        with pytest.raises(errors.Corrupt, match="copy it again"):
            Int8Whisper(tmp_path / name)


def test_a_vocabulary_of_another_model_is_corrupt(house, tmp_path):
    shutil.copytree(house.folder, tmp_path / "m")
    (tmp_path / "m" / "vocabulary.json").write_text('["a", "<|startoftranscript|>"]')
    with pytest.raises(errors.Corrupt, match="endoftext"):
        Int8Whisper(tmp_path / "m")


CLIPS = ("librivox/0870", "librispeech/1688-142285-0006", "ljspeech/LJ001-0006", "librivox/0890")


@pytest.mark.slow
def test_real_words_are_those_of_float32(base, clip):
    """The same words, as sure, at the same times; one word in forty may be heard otherwise."""
    from jiwer import wer

    texts, vocabulary = [], Vocabulary(base.folder, True)
    for name in CLIPS:
        audio = clip(name)[: 9 * RATE]
        mel = log_mel(audio, 10 * RATE)
        assert far(*heard(base, mel)) < 0.2
        ours, theirs = base.generate(mel, max_length=200)
        texts.append([vocabulary.text(one.sequences_ids[0]) for one in (ours, theirs)])
        assert ours.scores[0] == pytest.approx(theirs.scores[0], abs=0.05)
        tokens = theirs.sequences_ids[0]
        ours, theirs = base.align(mel, tokens, len(audio) // 160)
        assert np.abs(np.log(ours.text_token_probs) - np.log(theirs.text_token_probs)).mean() < 0.08
        assert np.abs(times(ours) - times(theirs)).mean() < 2
        assert np.quantile(np.abs(times(ours) - times(theirs)), 0.9) <= 3
    assert wer([theirs for _, theirs in texts], [ours for ours, _ in texts]) <= 1 / 40
