"""Whisper's tokens: what stands before a text, and the bytes that each token of a text is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from millstream import errors
from millstream.models.speech.hanzi import PROMPT
from millstream.models.speech.pieces import text_of


class Vocabulary:
    """Of the version in `folder`, of one language or `multilingual`. `end`: the token that ends a text; those of text
    come before it. Corrupt: its tokenizer cannot be read; Missing: the extra is not installed."""

    def __init__(self, folder: Path, multilingual: bool) -> None:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as missing:
            raise errors.Missing.extra("speech", f"{folder}: a Whisper model") from missing
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
            numbers = json.loads((folder / "config.json").read_bytes())["lang_ids"]
        except Exception as error:  # tokenizers raises nothing narrower
            raise errors.Corrupt(
                f"{folder}: tokenizer.json and config.json are not those of a Whisper model ({error}); copy them again"
            ) from error
        self._multilingual = multilingual
        names = [str(self._tokenizer.id_to_token(number)).strip("<|>") for number in numbers]
        self.languages = frozenset(names if multilingual else ["en"])
        self.end = self._special("endoftext")

    def language(self, asked: str) -> str:
        """A language as Whisper calls it: "en" of "en-US", "" of "". BadInput: it does not know it."""
        code = asked.replace("_", "-").partition("-")[0].lower()
        if code and code not in self.languages:
            known = ", ".join(sorted(self.languages))
            raise errors.BadInput(f"language {asked[:40]!r} is not known to this model; it knows: {known}")
        return code

    def start(self, language: str) -> list[int]:
        """The tokens that a transcription begins with."""
        first = [self._special("startoftranscript")]
        return [*first, self._special(language), self._special("transcribe")] if self._multilingual else first

    def prompt(self, language: str) -> list[int]:
        """What the decoder is given before a text without times in it; of Chinese, a sentence before all."""
        before = [self._special("startofprev"), *self.encode(PROMPT)] if language == "zh" else []
        return [*before, *self.start(language), self._special("notimestamps")]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def spelling(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token of a text."""
        bytes_of = byte_letters()
        texts = [self._tokenizer.id_to_token(token) or "" for token in tokens]
        return [bytes(bytes_of[letter] for letter in text if letter in bytes_of) for text in texts]

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, without spaces around it."""
        return text_of(self.spelling(tokens)).strip()

    def _special(self, name: str) -> int:
        number = self._tokenizer.token_to_id(f"<|{name}|>")
        if number is None:
            raise errors.Corrupt(f"tokenizer.json has no <|{name}|>: it is not that of a Whisper model; copy it again")
        return int(number)


@cache
def byte_letters() -> dict[str, int]:
    """The byte that each character of a vocabulary of bytes stands for (Radford et al., GPT-2, 2019): printable ones
    stand for themselves, those from 256 on for the others."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + number): byte for number, byte in enumerate(others)}
