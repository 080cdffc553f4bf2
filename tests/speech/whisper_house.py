"""A Whisper model that anybody can make: random weights in CTranslate2's own format, 7 MB, quick, always the same.

What it says is nonsense; but all of it is real: the file, the decoder, the beam, the tokens of bytes. It has the tokens
of a multilingual Whisper, two languages by name, and is made of one layer of 16 numbers.
"""

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from millstream.models.speech.vocabulary import byte_letters

SIZE, WIDE, HEADS = 16, 32, 2
VOCABULARY = 51_865
END, FIRST_LANGUAGE = 50_257, 50_259
LANGUAGES = ("en", "zh")
NEVER = range(END + 1, 50_364)


def tokens() -> list[str]:
    """The vocabulary: the bytes, fillers that no text has, and Whisper's own in their places."""
    found = [
        *byte_letters(),
        *(f"filler{number}" for number in range(256, END - 1)),
        "",
    ]  # "": as multilingual ones have
    found += ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{name}|>" for name in LANGUAGES)]
    found += [f"<|language{number}|>" for number in range(len(found), 50_358)]
    found += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    return found + [f"<|{number * 0.02:.2f}|>" for number in range(VOCABULARY - len(found))]


def make(folder: Path, seed: int = 0, numbers: str | None = None) -> Path:
    """Write the model into a new folder; `numbers`: what its weights are in, "float16" or "int8" (None: float32)."""
    import ctranslate2
    from ctranslate2.specs import WhisperSpec

    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    spec = WhisperSpec(1, HEADS, 1, HEADS)
    encoder, decoder = spec.encoder, spec.decoder
    for conv, inside in ((encoder.conv1, 80), (encoder.conv2, SIZE)):
        conv.weight, conv.bias = _random(random, SIZE, inside, 3), np.zeros(SIZE, np.float32)
    encoder.position_encodings.encodings = _random(random, 1500, SIZE)
    decoder.position_encodings.encodings = _random(random, 448, SIZE)
    words = _random(random, VOCABULARY, SIZE)
    words[256:END] = 0  # fillers are never the likeliest
    decoder.embeddings.weight = decoder.projection.weight = words
    _norm(encoder.layer_norm), _norm(decoder.layer_norm)
    for layer in (*encoder.layer, *decoder.layer):
        attentions = [(layer.self_attention, (3, 1))]
        if hasattr(layer, "attention"):
            attentions.append((layer.attention, (1, 2, 1)))
        for attention, shapes in attentions:
            _norm(attention.layer_norm)
            for linear, times in zip(attention.linear, shapes, strict=True):
                _linear(random, linear, times * SIZE, SIZE)
        _norm(layer.ffn.layer_norm)
        _linear(random, layer.ffn.linear_0, WIDE, SIZE)
        _linear(random, layer.ffn.linear_1, SIZE, WIDE)
    spec.register_vocabulary(tokens())
    spec.config.lang_ids = [FIRST_LANGUAGE + number for number in range(len(LANGUAGES))]
    spec.config.alignment_heads = [[0, 0], [0, 1]]
    spec.config.suppress_ids = list(NEVER)
    spec.config.suppress_ids_begin = [END]
    spec.validate()
    spec.optimize(quantization=numbers)
    spec.save(str(folder))
    assert (folder / "config.json").exists() and ctranslate2.contains_model(str(folder))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def tokenizer() -> Tokenizer:
    """A tokenizer of bytes, as Whisper's without its merges."""
    names = tokens()
    made = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names[:END])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False) for name in names[END:50_364]])
    assert made.token_to_id("<|notimestamps|>") == 50_363
    assert json.loads(made.to_str())["model"]["type"] == "BPE"
    return made


def _random(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.normal(0, 1 / np.sqrt(shape[-1]), shape).astype(np.float32)


def _norm(norm) -> None:
    norm.gamma, norm.beta = np.ones(SIZE, np.float32), np.zeros(SIZE, np.float32)


def _linear(random: np.random.Generator, linear, out: int, into: int) -> None:
    linear.weight, linear.bias = _random(random, out, into), np.zeros(out, np.float32)
