"""The page Speech over an installation: a client of its service, and the writer of transcripts."""

from __future__ import annotations

import shlex
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import get_args

from millstream.app.console.lists import address
from millstream.app.installation import Installation
from millstream.console.listening import Listening, Sheet, SpeechNow
from millstream.errors import BadInput, Misconfigured
from millstream.flows.speech.settings import Policy
from millstream.flows.speech.written import FORMATS, render
from millstream.spoken import Start

RETRY_S = 20.0
"""A service that restarts is waited for so long."""


class Hearing:
    """What a visitor can ask of live speech."""

    def __init__(self, at: Installation) -> None:
        self._at = at

    def speech(self) -> SpeechNow:
        """See SpeechViews. Misconfigured: nobody can know where the service answers."""
        settings = self._at.settings.speech
        if not settings.recogniser:
            models = shlex.quote(str(self._at.folder / "models"))
            return SpeechNow(
                recogniser="",
                fetch=f"millstream speech fetch whisper-base silero-vad wespeaker pyannote --models {models}",
                toml='[speech]\nrecogniser = "whisper-base"\nvoice = "wespeaker"\nturns = "pyannote"',
            )
        address(self._at.settings)
        return SpeechNow(
            recogniser=settings.recogniser,
            profiles=settings.names(),
            profile=settings.profile,
            policies=list(get_args(Policy)),
            voices=bool(settings.voice),
        )

    def listen(self, start: Start, key: str) -> AbstractAsyncContextManager[Listening]:
        """See SpeechViews."""
        from millstream.client.speech import Speech  # an extra; every other page does without

        settings, folder = self._at.settings, self._at.folder
        if not settings.speech.recogniser:
            raise Misconfigured("[speech] recogniser is not set in millstream.toml: nothing hears here")
        ca: str | Path = folder / settings.tls.certificate if settings.tls.certificate else ""
        return Speech(
            address(settings), key, form=start.form, rate=start.rate, channels=start.channels, profile=start.profile,
            language=start.language, speakers=start.speakers, ca=ca, retry_s=RETRY_S, clock=self._at.clock,
        )  # fmt: skip

    def written(self, form: str, sheet: Sheet) -> str:
        """See SpeechViews."""
        if form not in FORMATS:
            raise BadInput(f"form: there are {', '.join(FORMATS)}, got {form[:20]!r}")
        who = (lambda line: sheet.who.get(line.id, "")) if sheet.who else None
        return render(form, sheet.lines, who, sheet.name, sheet.language, sheet.seconds)
