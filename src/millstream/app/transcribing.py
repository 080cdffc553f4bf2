"""Recordings become transcripts here: an engine of its own for the recogniser alone, no log, no port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from millstream.app import voices
from millstream.app.installation import Settings
from millstream.clock import SystemClock
from millstream.config import read
from millstream.engine import Engine, EngineLimits
from millstream.errors import BadInput, Misconfigured, NotFound
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.offline import PROFILE, Offline
from millstream.flows.speech.settings import Profile
from millstream.flows.speech.speakers import Known
from millstream.flows.speech.wiring import OpenGate, Wiring
from millstream.flows.speech.words import Gate
from millstream.machine import cores
from millstream.meter import Meter
from millstream.models.model import Model, load
from millstream.models.repository import Repository
from millstream.models.speech.shelf import missing
from millstream.models.speech.tensors import STREAMING, WINDOWED
from millstream.models.speech.turns import Turns
from millstream.models.speech.vad import Vad
from millstream.models.speech.voice import Voice

logger = logging.getLogger("millstream")

VOICE, TURNS = "wespeaker", "pyannote"


class Some(Repository):
    """Of a repository, the models that are named: nobody waits for others to load."""

    def __init__(self, whole: Repository, names: Sequence[str]) -> None:
        super().__init__(whole.root)
        self._names = sorted(names)

    def models(self) -> list[str]:
        """See Repository."""
        return list(self._names)


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Whose models transcribe. `recogniser` "": the only one there is; `voice` "": speakers are not told apart;
    `turns` "": by their voices alone; `personal`: numbers and addresses of people stay in the text; `folder`: of the
    installation whose enrolled voices give their names."""

    models: Path
    recogniser: str = ""
    vad: str = "silero-vad"
    voice: str = VOICE
    turns: str = ""
    language: str = ""
    device: str = "cpu"
    personal: bool = False
    folder: Path | None = None


def source(
    models: Path | None, config: Path | None, recogniser: str = "", speakers: bool = True, personal: bool = False
) -> Source:
    """A folder of models, or the installation of a millstream.toml, whose [speech] names them; `recogniser` goes before
    what it says. Misconfigured."""
    if models is not None:
        turns = TURNS if speakers and TURNS in Repository(models).models() else ""
        voice = VOICE if speakers else ""
        return Source(models=models, recogniser=recogniser, voice=voice, turns=turns, personal=personal)
    if config is None:
        raise BadInput("name a folder of models, or an installation's millstream.toml")
    of = read(config, Settings).speech
    return Source(
        models=config.resolve().parent / "models",
        recogniser=recogniser or of.recogniser,
        vad=of.vad,
        voice=of.voice if speakers else "",
        turns=of.turns if speakers else "",
        language=of.language,
        personal=personal,
        folder=config.resolve().parent,
    )


@asynccontextmanager
async def offline(of: Source, profile: Profile = PROFILE) -> AsyncIterator[Offline]:
    """What transcribes with the models of a folder, until it is left. NotFound, Misconfigured: a model is not there,
    with the line that fetches it."""
    whole, name = Repository(of.models), of.recogniser
    name = name or the_recogniser(whole)
    if lacks := missing(whole, filter(None, (name, of.vad, of.voice, of.turns))):
        raise NotFound(lacks)
    clock, meter = SystemClock(), Meter()
    engine = Engine(Some(whole, [name]), clock, meter, EngineLimits(instances=cores()))
    await engine.start()
    try:
        (view,) = engine.views()
        if not view.live:
            raise Misconfigured("; ".join(view.problems.values()))
        inputs = {spec.name for spec in engine.describe(name).inputs}
        voice = Voice(_live(whole, of.voice, of.device)) if of.voice else None
        turns = Turns(_live(whole, of.turns, of.device)) if of.turns else None
        beside = partial(asyncio.get_running_loop().run_in_executor, None)
        wiring = Wiring(
            submit=engine.submit,
            model=name,
            version=view.live.partition("@")[0],
            vad=Vad(_live(whole, of.vad, of.device)),
            clock=clock,
            numbers=Numbers(meter),
            streaming=streams(inputs, name),
            fills="samples" not in inputs,
            embed=partial(beside, voice.embed) if voice else None,
            listen=partial(beside, turns.spoken) if turns else None,
            gate=OpenGate if of.personal else Gate,
        )
        yield Offline(wiring, profile, _known(of, whole))
    finally:
        await engine.stop()


def the_recogniser(repository: Repository) -> str:
    """The only model of a repository that makes words of speech. Misconfigured: there are several, or none."""
    found = [name for name in repository.models() if _recognises(repository, name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Misconfigured(f"{repository.root}: {', '.join(found)} make words of speech; say which: --recogniser NAME")
    raise Misconfigured(
        f"{repository.root}: no model makes words of speech; fetch one: millstream speech fetch whisper-base --models "
        f"{repository.root}"
    )


def _known(of: Source, repository: Repository) -> list[Known]:
    """The voices that are enrolled; nobody, and a line in the log, where another model made them."""
    if of.folder is None or not of.voice:
        return []
    try:
        return voices.known(of.folder, f"{of.voice}/{repository.policy(of.voice).live}")
    except Misconfigured as error:
        logger.warning("speech: nobody is called by name: %s", error)
        return []


FORMATS = {"whisper", "pocketsphinx", "sherpa", "funasr", "scripted"}
"""Formats of recognisers."""


def _recognises(repository: Repository, name: str) -> bool:
    versions = repository.versions(name)
    return bool(versions) and repository.manifest(name, repository.policy(name).live).format in FORMATS


def streams(inputs: set[str], name: str) -> bool:
    """Whether a recogniser with these inputs is of the streaming kind. Misconfigured: it is none."""
    for specs in (WINDOWED, STREAMING):
        if inputs | {"samples"} == {spec.name for spec in specs}:
            return specs is STREAMING
    raise Misconfigured(
        f"{name} makes no words of speech: it takes {', '.join(sorted(inputs))}; a recogniser takes "
        f"{', '.join(spec.name for spec in WINDOWED)}, or {', '.join(spec.name for spec in STREAMING)}"
    )


def _live(repository: Repository, name: str, device: str) -> Model:
    return load(repository, name, repository.policy(name).live, device)
