"""sherpa-onnx: a transducer so small that its words can be foreseen, on the real runtime.

Its encoder looks at the loudness of three bands, its decoder remembers the last token, and its joiner says a band's
token when it is loud and was not said last: three tones are three words. What a published model adds is weights.
"""

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from millstream.errors import Misconfigured
from millstream.models.manifest import Manifest
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.runtimes.sherpa import words
from millstream.models.speech.heard import read
from millstream.models.speech.tensors import RATE
from millstream.testing import check_recogniser

TOKENS = ("<blk>", "\u2581low", "er", "\u2581mid", "高")
HERTZ = {"low": 200.0, "mid": 1000.0, "高": 3500.0}
BANDS = {"low": (2, 8), "mid": (26, 32), "高": (57, 63)}
FRAMES, SHIFT, STATE = 8, 8, 4


def floats(name, array):
    return numpy_helper.from_array(np.asarray(array, np.float32), name)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(path, nodes, inputs, outputs, constants, **metadata):
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(made, {name: str(one) for name, one in metadata.items()})
    onnx.save(made, path)


def write(folder):
    """The transducer's files."""
    size = len(TOKENS)
    weights, bias = np.zeros((80, size)), np.zeros(size)
    for name, token in (("low", 1), ("mid", 3), ("高", 4)):
        weights[slice(*BANDS[name]), token] = 1 / 6
        bias[token] = 2.0  # a tone is about 0, noise in its band under -10
    node = helper.make_node
    model(
        folder / "encoder.onnx",
        [
            node("Reshape", ["x", "shape"], ["fours"]),
            node("ReduceMean", ["fours"], ["means"], axes=[2], keepdims=0),
            node("MatMul", ["means", "weights"], ["bands"]),
            node("Add", ["bands", "bias"], ["encoder_out"]),
            node("Identity", ["h0"], ["h"]),
            node("Identity", ["c0"], ["c"]),
        ],
        [value("x", ["N", FRAMES, 80]), value("h0", [1, "N", STATE]), value("c0", [1, "N", STATE])],
        [value("encoder_out", ["N", FRAMES // 4, size]), value("h", [1, "N", STATE]), value("c", [1, "N", STATE])],
        [
            numpy_helper.from_array(np.array([0, FRAMES // 4, 4, 80], np.int64), "shape"),
            floats("weights", weights),
            floats("bias", bias),
        ],
        model_type="lstm", num_encoder_layers=1, T=FRAMES, decode_chunk_len=SHIFT, rnn_hidden_size=STATE, d_model=STATE,
    )  # fmt: skip
    after = np.zeros((size, size))
    after[range(1, size), range(1, size)] = -100.0  # what was said last is not said again
    after[0, 0] = after[1, 0] = 0.0
    model(
        folder / "decoder.onnx",
        [
            node("Clip", ["y", "zero"], ["known"]),
            node("Slice", ["known", "one", "two", "one"], ["last"]),
            node("Squeeze", ["last", "one"], ["row"]),
            node("Gather", ["after", "row"], ["decoder_out"]),
        ],
        [value("y", ["N", 2], TensorProto.INT64)],
        [value("decoder_out", ["N", size])],
        [
            floats("after", after),
            numpy_helper.from_array(np.array(0, np.int64), "zero"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([2], np.int64), "two"),
        ],
        vocab_size=size, context_size=2,
    )  # fmt: skip
    model(
        folder / "joiner.onnx",
        [node("Add", ["encoder_out", "decoder_out"], ["logit"])],
        [value("encoder_out", ["N", size]), value("decoder_out", ["N", size])],
        [value("logit", ["N", size])],
        [],
        joiner_dim=size,
    )
    (folder / "tokens.txt").write_text("".join(f"{token} {number}\n" for number, token in enumerate(TOKENS)))


def tones(*names):
    """400 ms each, with 200 ms of faint noise between."""
    random, found = np.random.default_rng(0), []
    for name in (*names, None):
        found.append(1e-4 * random.standard_normal(RATE // 5))
        if name is not None:
            found.append(0.3 * np.sin(2 * np.pi * HERTZ[name] * np.arange(RATE * 2 // 5) / RATE))
    return np.concatenate(found).astype(np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sherpa")
    write(folder)
    files = {path.name: path for path in folder.iterdir()}
    made = Repository(tmp_path_factory.mktemp("models"))
    made.put("tones", Manifest(format="sherpa", file="tokens.txt"), files)
    return made


def test_tones_are_words_and_the_contract_is_kept(repository):
    said = ["low", "高", "mid", "low"]
    sound = tones(*said)
    slots = load(repository, "tones", "1").slots(1)
    row = {"audio": sound[None], "samples": np.array([len(sound)]), "end": np.array([True])}
    heard = read(slots.step(row, np.array([0]))["heard"][0])
    assert [word.text for word in heard.words] == said and [word.space for word in heard.words] == [
        True,
        False,
        True,
        True,
    ]
    for number, word in enumerate(heard.words):
        assert word.start == pytest.approx(0.2 + 0.6 * number, abs=0.12)
    check_recogniser(lambda: load(repository, "tones", "1"), sound)


def test_the_last_word_is_heard_though_the_utterance_ends_with_it(repository):
    cut = tones("mid", "low")[: RATE * 85 // 100]  # 50 ms into the last tone, of the 80 that the encoder wants
    row = {"audio": cut[None], "samples": np.array([len(cut)]), "end": np.array([True])}
    slots = load(repository, "tones", "1").slots(1)
    assert [word.text for word in read(slots.step(row, np.array([0]))["heard"][0]).words] == ["mid", "low"]


def test_tokens_make_words():
    tokens = ["\u2581low", "er", "\u2581", "mid", "高", "低", "er", " x"]
    found = words(tokens, [0.1 * place for place in range(8)], [-0.1] * 7, 0.75)
    assert [(word.text, word.space) for word in found] == [
        ("lower", True), ("mid", True), ("高", False), ("低", False), ("er", True), ("x", True),
    ]  # fmt: skip
    assert all(a.end <= b.start + 1e-9 for a, b in pairwise(found)) and found[-1].end == 0.75
    short = words(tokens, [0.1, 0.2, 0.3], [], 0.75)
    assert [word.text for word in short] == [word.text for word in found]
    assert [word.start for word in short] == [0.1, 0.3, 0.3, 0.3, 0.3, 0.3] and words(["a"], [], [], 1.0)[
        0
    ].start == 0.0
    assert found[0].confidence == pytest.approx(np.exp(-0.1)) and found[-1].confidence == 0.0


def test_a_folder_that_is_not_whole_says_what_it_lacks(repository, tmp_path):
    folder = repository.folder("tones", "1")
    files = {path.name: path for path in folder.iterdir() if path.name not in ("model.toml", "joiner.onnx")}
    for more, said in (({}, "got none"), ({"joiner-a.onnx": b"", "joiner-b.onnx": b""}, "got joiner-a.onnx, joiner-b")):
        version = Repository(tmp_path).put("m", Manifest(format="sherpa", file="tokens.txt"), files | more)
        with pytest.raises(Misconfigured, match=f"expected one joiner.*onnx, {said}"):
            load(Repository(tmp_path), "m", version)


@pytest.mark.parametrize("part", ["encoder", "decoder", "joiner"])
def test_files_over_which_sherpa_would_end_the_process_are_refused(repository, tmp_path, part):
    folder = repository.folder("tones", "1")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "model.toml"}
    mute = onnx.load(folder / f"{part}.onnx")
    del mute.metadata_props[:]
    for broken, said in ((b"torn", "no whole ONNX file"), (mute.SerializeToString(), "its metadata lacks")):
        version = Repository(tmp_path).put(
            "m", Manifest(format="sherpa", file="tokens.txt"), files | {f"{part}.onnx": broken}
        )
        with pytest.raises(Misconfigured, match=said):
            load(Repository(tmp_path), "m", version)
