"""Chinese in simplified characters, whichever a recogniser has written.

Whisper writes Mandarin in traditional or simplified characters as the moment has it, even within a sentence. Which
character stands for which depends on the words around it (OpenCC's dictionaries know them), so whole texts are turned.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from millstream import errors

if TYPE_CHECKING:
    from opencc import OpenCC


PROMPT: Final = "以下是普通话的句子。"
"""Whisper is told that this went before: it hears Mandarin better then, and mostly writes simplified characters."""


@cache
def _table() -> OpenCC:
    try:
        from opencc import OpenCC
    except ModuleNotFoundError as missing:
        raise errors.Missing.extra("speech", "Chinese in simplified characters") from missing
    return OpenCC("t2s")


def simplified(text: str) -> str:
    """The text in simplified characters, as long as it was. Missing: OpenCC is not installed."""
    turned = str(_table().convert(text))
    if len(turned) == len(text):
        return turned
    return "".join(one if len(one) == 1 else before for before in text for one in [str(_table().convert(before))])
