"""Which languages a recogniser takes: asked once each, with a moment of silence, before anybody is heard in it.

Else a client that asks for one that the recogniser does not know would learn it with every text that cannot be had, and
those whose hypotheses share a batch with its own would wait for theirs twice.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from millstream.errors import BadInput, Error
from millstream.flows.speech.recognise import Asker
from millstream.flows.speech.settings import RATE
from millstream.flows.speech.wiring import Wiring

LANGUAGES_MAX: Final = 256
_LANGUAGE: Final = re.compile(r"([a-z]{2,3})([-_][a-z0-9]{1,8}){0,4}", re.ASCII | re.IGNORECASE)


def tag(language: str) -> str:
    """A language as recognisers and monitors know it: "zh" of "zh-CN", "" of "". BadInput: it is none."""
    match = _LANGUAGE.fullmatch(language)
    if language and match is None:
        raise BadInput(f"language {language[:40]!r}: say it as en, zh or en-US; leave it out to have it found")
    return match[1].lower() if match else ""


class Languages:
    """Of a wiring's recogniser; a streaming one is told none."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._known = {""}  # those that it is known to take

    async def known(self, language: str, version: str = "") -> str:
        """Its `tag`. BadInput: that is none, or this version does not know it. What else goes wrong says nothing of the
        language, and is left to who is heard."""
        code, wiring = tag(language), self._wiring
        if wiring.streaming or code in self._known:
            return code
        asker = Asker(wiring.submit, wiring.model, version, code, wiring.fills)
        try:
            await asker.heard(np.zeros(RATE // 10, np.float32))
        except BadInput:
            raise
        except Error:
            return code
        if len(self._known) < LANGUAGES_MAX:
            self._known.add(code)
        return code
