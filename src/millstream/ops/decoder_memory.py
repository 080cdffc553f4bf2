"""What a decoder must remember of each session, by the arithmetic of its configuration: no model is loaded.

A layer keeps a key and a value of every token: 2 x layers x heads that have them x numbers a head x bytes a number.
Example: hidden 4096, 32 layers, fp16: 2 x 32 x 4096 x 2 = 524,288 bytes a token; 1,000 tokens are 500 MiB, and 32
sessions of these 15.6 GiB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from millstream.errors import BadInput

BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8_e4m3fn": 1}
_NAMES: Final = {
    "hidden": ("hidden_size", "d_model", "n_embd"),
    "layers": ("decoder_layers", "num_hidden_layers", "n_layer"),
    "heads": ("decoder_attention_heads", "num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_size": ("head_dim",),
    "encoded": ("max_source_positions",),
    "dtype": ("torch_dtype", "dtype"),
}
"""What the fields are called in config.json of Hugging Face's models."""


class DecoderMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes: of a token, of what was encoded and is looked at from every layer (once a session), of a session of
    `tokens`, of all `sessions`."""

    hidden: int
    layers: int
    kv_size: int
    dtype: str
    tokens: int
    sessions: int
    token_bytes: int
    encoded_bytes: int
    session_bytes: int
    all_bytes: int


def decoder_memory(config: Path, tokens: int, sessions: int) -> DecoderMemory:
    """By a model's config.json. BadInput: the file is none, or says too little."""
    if tokens < 1 or sessions < 1:
        raise BadInput(f"tokens = {tokens}, sessions = {sessions}: at least one of each")
    try:
        said = msgspec.json.decode(config.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"{config}: no config.json of a model ({error})") from None
    if not isinstance(said, dict):
        raise BadInput(f"{config}: no config.json of a model: an object was expected")
    said = said | said.get("text_config", {}) if isinstance(said.get("text_config"), dict) else said
    hidden, layers = _number(said, "hidden", config), _number(said, "layers", config)
    heads = _number(said, "heads", config, 1)
    size = _number(said, "head_size", config, hidden // heads)
    kv_size = _number(said, "kv_heads", config, heads) * size
    dtype = str(_found(said, "dtype") or "float16").removeprefix("torch.")
    if dtype not in BYTES:
        raise BadInput(f"{config}: numbers of {dtype!r} are not known; there are: {', '.join(BYTES)}")
    token = 2 * layers * kv_size * BYTES[dtype]
    encoded = token * _number(said, "encoded", config, 0) if said.get("is_encoder_decoder") else 0
    session = token * tokens + encoded
    return DecoderMemory(
        hidden=hidden,
        layers=layers,
        kv_size=kv_size,
        dtype=dtype,
        tokens=tokens,
        sessions=sessions,
        token_bytes=token,
        encoded_bytes=encoded,
        session_bytes=session,
        all_bytes=session * sessions,
    )


def _found(said: dict[str, Any], what: str) -> object:
    return next((said[name] for name in _NAMES[what] if said.get(name) is not None), None)


def _number(said: dict[str, Any], what: str, config: Path, default: int | None = None) -> int:
    found = _found(said, what)
    if found is None and default is not None:
        return default
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise BadInput(f"{config}: {' or '.join(_NAMES[what])} = {found!r}; a whole number above 0 is wanted")
    return found
