"""A folder of models that needs no weights: a recogniser that hears tones, and a detector that hears loudness."""

import msgspec
import numpy as np
from onnx import TensorProto, helper

import onnx_models
from millstream.models.manifest import Manifest
from millstream.models.repository import Repository
from millstream.models.runtimes.scripted import Script, speak
from millstream.models.speech.tensors import batching

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
TONES = Script(words=WORDS, by="tone")


def detector(path):
    """Speech is what is louder than -50 dB, with the tensors of Silero's model."""
    floats = TensorProto.FLOAT
    state = [1, 1, 128]
    onnx_models.graph(
        path,
        [
            helper.make_node("Mul", ["input", "input"], ["squares"]),
            helper.make_node("ReduceMean", ["squares"], ["power"], axes=[1], keepdims=0),
            helper.make_node("Greater", ["power", "least"], ["loud"]),
            helper.make_node("Cast", ["loud"], ["speech_probs"], to=floats),
            helper.make_node("Identity", ["h"], ["hn"]),
            helper.make_node("Identity", ["c"], ["cn"]),
        ],
        [("input", floats, ["frames", 576]), ("h", floats, state), ("c", floats, state)],
        [("speech_probs", floats, ["frames"]), ("hn", floats, state), ("cn", floats, state)],
        [("least", np.array(1e-5, np.float32))],
    )
    return path


def models(folder, script=TONES, name="tones"):
    """The folder, as a repository with `name` and silero-vad."""
    repository = Repository(folder)
    buckets = batching() if script.kind == "windowed" else Manifest(format="", file="").batching
    manifest = Manifest(format="scripted", file="script.json", batching=buckets)
    repository.put(name, manifest, {"script.json": msgspec.json.encode(script)})
    if "silero-vad" not in repository.models():
        vad = detector(folder / "detector.onnx")
        repository.put("silero-vad", Manifest(format="onnx", file="model.onnx"), {"model.onnx": vad.read_bytes()})
        vad.unlink()
    return folder


def said(*sentences, pause_s=1.2, db=-20.0):
    """Sentences as sound at 16 kHz, with silence before, between and behind."""
    pause = np.zeros(int(pause_s * 16000), np.float32)
    return np.concatenate([pause, *(part for one in sentences for part in (speak(TONES, one.split(), 64, db), pause))])
