"""The voices that an installation knows by name: enrolled from recordings, found again by its sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millstream.app.installation import Settings
from millstream.config import read
from millstream.errors import Misconfigured, NotFound
from millstream.flows.speech import files
from millstream.flows.speech.offline import PROFILE, Walk
from millstream.flows.speech.settings import SpeechSettings
from millstream.flows.speech.speakers import Known, enrolled
from millstream.models.model import Model, load
from millstream.models.repository import Repository
from millstream.models.speech.shelf import missing
from millstream.models.speech.vad import Vad
from millstream.models.speech.voice import Voice

SECONDS_MAX = 3600.0
"""Of one recording to enrol from."""


def kept_in(folder: Path) -> Path:
    """The file of an installation's enrolled voices."""
    return folder / "state" / "speech-voices"


def stamp(folder: Path, settings: SpeechSettings) -> str:
    """What a voice is marked with that the version which is live now makes; "" where nothing tells voices apart."""
    return _model(Repository(folder / "models"), settings.voice)[1] if settings.voice else ""


def known(folder: Path, made_by: str) -> list[Known]:
    """The voices that an installation knows. `made_by`: the `stamp` of what tells voices in this process, whatever was
    promoted since; "" knows nobody. Misconfigured: another model made them."""
    return enrolled.load(kept_in(folder), made_by) if made_by else []


def enrol(config: Path, name: str, recordings: Sequence[Path], at: float) -> enrolled.Enrolment:
    """Keep the voice in recordings under a name; what the name had before is replaced. What is no speech in them is
    left out. BadInput: see enrolled.enrol; NotFound: a recording, or a model; Misconfigured: nothing tells voices.
    """
    settings, folder = read(config, Settings).speech, config.resolve().parent
    if not settings.voice:
        raise Misconfigured(f'{config}: no model tells voices apart: say voice = "wespeaker" under [speech]')
    repository = Repository(folder / "models")
    version, stamp = _model(repository, settings.voice)
    vad = Vad(_loaded(repository, settings.vad, _model(repository, settings.vad)[0]))
    voice = Voice(_loaded(repository, settings.voice, version))
    speech = [part for path in recordings for part in _speech(path, vad)]
    return enrolled.enrol(kept_in(folder), name, speech, voice.embed, stamp, at)


def listed(config: Path) -> list[dict[str, str | float]]:
    """See enrolled.listed. Misconfigured: there is no such installation."""
    read(config, Settings)
    return enrolled.listed(kept_in(config.resolve().parent))


def forget(config: Path, name: str) -> None:
    """Forget the voice of a name. NotFound: it is not enrolled; Misconfigured: there is no such installation."""
    read(config, Settings)
    enrolled.remove(kept_in(config.resolve().parent), name)


def _speech(path: Path, vad: Vad) -> list[NDArray[np.float32]]:
    """What is said in a recording, as sessions hear it: levelled, without its silence."""
    walk = Walk(vad, PROFILE)
    pieces = [piece for (sound,) in files.blocks(path, str(path), False, SECONDS_MAX) for piece in walk.feed(sound)]
    return [piece.cut(piece.ended.onset, piece.ended.speech_end) for piece in [*pieces, *walk.finish()]]


def _model(repository: Repository, name: str) -> tuple[str, str]:
    """The version that is live, and what a voice that it made is marked with."""
    if lacks := missing(repository, [name]):
        raise NotFound(lacks)
    version = repository.policy(name).live
    return version, f"{name}/{version}"


def _loaded(repository: Repository, name: str, version: str) -> Model:
    return load(repository, name, version)
