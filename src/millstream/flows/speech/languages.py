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
_NAMES = (
    "en=english zh=chinese de=german es=spanish ru=russian ko=korean fr=french ja=japanese pt=portuguese "
    "tr=turkish pl=polish ca=catalan nl=dutch ar=arabic sv=swedish it=italian id=indonesian hi=hindi fi=finnish "
    "vi=vietnamese he=hebrew uk=ukrainian el=greek ms=malay cs=czech ro=romanian da=danish hu=hungarian ta=tamil "
    "no=norwegian th=thai ur=urdu hr=croatian bg=bulgarian lt=lithuanian la=latin mi=maori ml=malayalam cy=welsh "
    "sk=slovak te=telugu fa=persian lv=latvian bn=bengali sr=serbian az=azerbaijani sl=slovenian kn=kannada "
    "et=estonian mk=macedonian br=breton eu=basque is=icelandic hy=armenian ne=nepali mn=mongolian bs=bosnian "
    "kk=kazakh sq=albanian sw=swahili gl=galician mr=marathi pa=punjabi si=sinhala km=khmer sn=shona yo=yoruba "
    "so=somali af=afrikaans oc=occitan ka=georgian be=belarusian tg=tajik sd=sindhi gu=gujarati am=amharic "
    "yi=yiddish lo=lao uz=uzbek fo=faroese ps=pashto tk=turkmen nn=nynorsk mt=maltese sa=sanskrit "
    "lb=luxembourgish my=myanmar bo=tibetan tl=tagalog mg=malagasy as=assamese tt=tatar haw=hawaiian ln=lingala "
    "ha=hausa ba=bashkir jw=javanese su=sundanese yue=cantonese "
)
LANGUAGES: Final = dict(one.split("=") for one in _NAMES.split()) | {"ht": "haitian creole"}
"""Code -> the name that Whisper, and so verbose_json, has for a language."""
_CODES: Final = {name: code for code, name in LANGUAGES.items()}
_LANGUAGE: Final = re.compile(r"([a-z]{2,3})([-_][a-z0-9]{1,8}){0,4}", re.ASCII | re.IGNORECASE)


def tag(language: str) -> str:
    """A language as recognisers and monitors know it: "zh" of "zh-CN" and of "Chinese", "" of "". BadInput: it is
    none."""
    if code := _CODES.get(language.lower()):
        return code
    match = _LANGUAGE.fullmatch(language)
    if language and match is None:
        raise BadInput(
            f"language {language[:40]!r}: say a code of two or three letters (en, zh), one with a region (en-US, "
            "zh-CN), or the English name of a language that Whisper knows (english); leave it out to have it found"
        )
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
