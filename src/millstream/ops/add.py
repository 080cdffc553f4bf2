"""A model file becomes a version: looked into, tried, and written, or nothing is.

Rules of the room:
- Nothing that is a program runs before the person said so; until then its digest and imports are all that is told.
- A program is looked into, and then run as it will be served, in processes of its own.
- A version is tried in its own folder before it has a number: what fails leaves nothing behind.
- Who gets the version is for the policy to say. One is written where there is none, so that no version but the first
  ever goes live by being added.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

import millstream
from millstream import config, errors
from millstream.meter import Meter
from millstream.models import archive
from millstream.models.apart import Programs
from millstream.models.apart.inspect import look_into
from millstream.models.environment import python_for
from millstream.models.manifest import Batching, Manifest, example_arrays, parse_spec
from millstream.models.model import load_from
from millstream.models.repository import Repository
from millstream.models.runtimes import PROGRAMS, Found, trial, whisper
from millstream.ops import examples, model_file
from millstream.store import remote
from millstream.types import Array, TensorSpec

EXAMPLE_CELLS_MAX = 1 << 18
"""Of one row, to be kept in model.toml; a larger example is left out, and the version is warmed with zeros."""
TOLERANCE = 1e-3
Say = Callable[[str], None]
Files = dict[str, bytes | Path]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be added, as it was typed. `source`: a file, a model's folder, an archive, or an address of one;
    `code`: the version's own files; `settings`: for its runtime; `tolerance`: of a conversion, relative; a tenth of it
    is the absolute one."""

    source: str
    name: str = ""
    allow_code: bool = False
    example: Path | None = None
    inputs: tuple[TensorSpec, ...] = ()
    entry: str = ""
    code: tuple[Path, ...] = ()
    requirements: Path | None = None
    python: str = ""
    instances: int = 0
    settings: dict[str, object] = {}
    to_onnx: bool = False
    tolerance: float = TOLERANCE
    why: str = ""


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the repository now; `serve` is the command that answers with it."""

    model: str
    version: str
    role: str
    format: str
    inputs: str
    outputs: str
    serve: str
    converted: dict[str, object] | None = None


def add(root: Path, wish: Wish, say: Say) -> Added:
    """Put what `wish` names into the repository at `root`, which may be new; `say` gets a sentence at a time.

    What is not there: NotFound; a program that nobody allowed, or one that fails: Misconfigured; no room: Full.
    """
    repository = _repository(root)
    path = _here(wish.source)
    if path.suffix == ".zip":
        return _add_archive(repository, path, wish, say)
    facts = model_file.examine(path)
    for sentence in facts.sentences():
        say(sentence)
    _check(facts.format, wish)
    name = wish.name or _name(remote.mlflow_name(wish.source) or path.stem)
    _ask_for_trust(facts, root, wish)
    files: Files = {**facts.files}
    for one in wish.code:
        files |= model_file.below(one)
    if wish.requirements:
        files |= model_file.below(wish.requirements)
    example = examples.read(wish.example) if wish.example else {}
    manifest = _manifest(facts, files, wish)
    with _aside(facts.file, path) as folder:
        _lay_out(folder, files)
        manifest, found = _look(folder, manifest, example)
        for note in found.notes:
            say(note)
        say(f"takes {trial.told(found.inputs)}")
        say(f"gives {trial.told(found.outputs)}")
        converted = None
        if wish.to_onnx:
            from millstream.ops import convert

            rows = trial.fit(example, found.inputs) if example else found.example
            made = convert.to_onnx(folder, manifest, rows, wish.tolerance, say)
            (folder / convert.FILE).write_bytes(made.model)
            converted = made.lineage()
            manifest = replace(
                _manifest(replace(facts, format="onnx", file=convert.FILE), {}, wish),
                lineage=manifest.lineage | {"converted": converted},
            )
            files = {convert.FILE: folder / convert.FILE}
            manifest, found = _look(folder, manifest, found.example)
        manifest = replace(manifest, example=_kept(found, say))
        return replace(_put(repository, name, manifest, files, say), converted=converted)


@contextmanager
def _aside(file: str, path: Path) -> Iterator[Path]:
    """A folder to look into `file` in; errors within name what the person named, which is `path`."""
    with tempfile.TemporaryDirectory(prefix="millstream-add-") as aside:
        try:
            yield Path(aside)
        except errors.Error as error:
            error.args = (str(error).replace(f"{aside}/{file}", str(path)).replace(f"{aside}/", ""),)
            raise


def _repository(root: Path) -> Repository:
    """One that versions can be put into."""
    if root.is_file():
        raise errors.Misconfigured(f"{root} is a file; name the folder of the repository, which may be new: models")
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    if bare := [name for name in names if name.endswith(".onnx")]:
        raise errors.Misconfigured(
            f"{root} serves bare files ({bare[0]}), which have no versions; name another folder for the "
            "repository, and add them there"
        )
    if any(name.isdigit() for name in names):
        raise errors.Misconfigured(f"{root} is one model with versions; name the folder that holds it: {root.parent}")
    return Repository(root)


def _here(source: str) -> Path:
    return remote.fetch(source, config.cache_folder() / "remote") if remote.is_remote(source) else Path(source)


def _name(text: str) -> str:
    """A model's name out of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:128] or "model"


def _check(kind: str, wish: Wish) -> None:
    """Refuse what was typed and would mean nothing."""
    only_programs = {
        "--input": wish.inputs,
        "--entry": wish.entry,
        "--code": wish.code,
        "--requirements": wish.requirements,
        "--python": wish.python,
        "--setting": wish.settings,
        "--to": wish.to_onnx,
    }
    typed = [name for name, value in only_programs.items() if value]
    if kind == "onnx" and typed:
        raise errors.Misconfigured(f"{wish.source}: an ONNX file is no program: {', '.join(typed)} means nothing to it")
    if kind == "whisper":
        typed = [name for name in typed if name != "--setting"] + ["--example"] * (wish.example is not None)
        if typed:
            raise errors.Misconfigured(f"{wish.source}: a Whisper model: {', '.join(typed)} means nothing to it")


def _ask_for_trust(facts: model_file.Facts, root: Path, wish: Wish) -> None:
    if facts.format in ("onnx", "whisper") or wish.allow_code:
        return
    raise errors.Misconfigured(
        f"{wish.source} is a program ({facts.format}): looking into it runs what its author wrote. Its digest "
        f"is {facts.digest}. If you trust it: millstream models add {root} {wish.source} --allow-code"
    )


def _manifest(facts: model_file.Facts, files: Mapping[str, object], wish: Wish) -> Manifest:
    """What is known before anything is run."""
    lineage: dict[str, object] = {
        "made_by": f"millstream models add {millstream.__version__}",
        "source": wish.source,
        "digest": facts.digest,
    }
    if facts.saved_with:
        lineage["saved_with"] = facts.saved_with
    if wish.why:
        lineage["why"] = wish.why
    batching = Batching(instances=wish.instances)
    if facts.format == "onnx":
        return Manifest(format="onnx", file=facts.file, batching=batching, lineage=lineage)
    if facts.format == "whisper":
        whole = whisper.manifest(whisper.settings_of(wish.source, wish.settings))
        return replace(whole, batching=replace(whole.batching, instances=wish.instances), lineage=lineage)
    return Manifest(
        format=facts.format,
        file=facts.file,
        batching=batching,
        lineage=lineage,
        inputs=wish.inputs,
        code=tuple(sorted(name for name in files if name.endswith(".py"))),
        entry=wish.entry,
        requirements=wish.requirements.name if wish.requirements else "",
        python=wish.python,
        settings=wish.settings,
    )


def _lay_out(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """The version's files as they will lie, without copying them yet."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).symlink_to(content.absolute())


def _look(folder: Path, manifest: Manifest, example: Mapping[str, Array]) -> tuple[Manifest, Found]:
    """What comes out when it is run, and the manifest with it."""
    if manifest.format == "onnx":
        from millstream.models.runtimes.onnx import Onnx

        model = Onnx(folder / manifest.file)
        found = trial.look(model.predict, model.inputs, example, ())
        if found.inputs != model.inputs:  # each row alone
            manifest = replace(manifest, batching=replace(manifest.batching, rows_max=1))
        found.inputs, found.outputs = model.inputs, model.outputs
        return replace(manifest, inputs=model.inputs, outputs=model.outputs), found
    if manifest.format == "whisper":
        rows = example_arrays(manifest, manifest.inputs)
        return manifest, Found(manifest.inputs, manifest.outputs, rows, ("silence will warm it",))
    if manifest.format == "chain":
        found = _chain(folder, manifest, example)
    else:
        found = look_into(folder, manifest, dict(example), python_for(folder, manifest))
    return replace(manifest, inputs=found.inputs, outputs=found.outputs), found


def _chain(folder: Path, manifest: Manifest, example: Mapping[str, Array]) -> Found:
    """A chain's tensors are what its file says; its parts are not here, so it is not run."""
    from millstream.models import chain

    module = chain.module(folder / manifest.file, {})
    chain.forget(module)
    chain.function(module, manifest.entry)
    said = [getattr(module, side, None) for side in ("inputs", "outputs")]
    if not all(isinstance(side, dict) and side for side in said):
        raise errors.Misconfigured(
            f'{manifest.file}: a chain says its tensors: inputs = {{"x": "FP32[-1,4]"}} and outputs = {{...}}'
        )
    inputs, outputs = (tuple(parse_spec(str(n), str(text)) for n, text in side.items()) for side in said)  # type: ignore[union-attr]
    rows = trial.fit(example, inputs) if example else {}
    return Found(inputs, outputs, rows, ("a chain is tried when its parts are served beside it",))


def _kept(found: Found, say: Say) -> dict[str, list[Any]]:
    """The example as model.toml holds it: as many of its rows as have room."""
    cells = sum(array.size for array in found.example.values())
    rows = min((len(array) for array in found.example.values() if array.ndim), default=1)
    if not cells:
        return {}
    fit = EXAMPLE_CELLS_MAX * rows // cells
    if not fit:
        say(f"a row of the example has over {EXAMPLE_CELLS_MAX} cells: none is kept, zeros will warm the version")
        return {}
    joins = all(spec.shape[:1] == (-1,) for spec in found.inputs)
    return {name: _plain(array[:fit] if joins else array) for name, array in found.example.items()}


def _plain(array: Array) -> list[Any]:
    if array.dtype.kind == "O":
        cells = [cell.decode() if isinstance(cell, bytes) else str(cell) for cell in array.ravel()]
        array = np.array(cells, object).reshape(array.shape)
    elif array.dtype.kind == "f" and array.dtype.itemsize < 8:
        array = array.astype(str).astype(np.float64)  # the shortest number that means this float32
    plain: list[Any] = array.tolist()
    return plain


def _put(repository: Repository, name: str, manifest: Manifest, files: Files, say: Say) -> Added:
    """Write the version, once it has answered from its own folder."""

    def check(folder: Path, whole: Manifest) -> None:
        say("trying it as it will be served")
        _try(name, folder, whole)
        _hold(repository, name)

    version = repository.put(name, manifest, files, check)
    repository.verify(name, version)
    _hold(repository, name)
    role = repository.policy(name).named().get(version, "-")
    root = repository.root
    if role == "-":
        say(f"{name} {version} answers nobody yet: millstream traffic promote {root} {name} {version}")
    programs = any(
        _program(repository.manifest(model, v))
        for model in repository.models()
        for v in repository.policy(model).named()
    )
    return Added(
        model=name,
        version=version,
        role=role,
        format=manifest.format,
        inputs=trial.told(manifest.inputs),
        outputs=trial.told(manifest.outputs),
        serve=f"millstream serve {root}{' --allow-code' if programs or _program(manifest) else ''}",
    )


def _hold(repository: Repository, name: str) -> None:
    """Where the highest version is live for want of a policy, write one that says so, and stays when another comes."""
    if repository.versions(name) and not (repository.root / name / "policy.toml").exists():
        live = repository.policy(name).live
        repository.change_policy(name, lambda policy: policy, who="models add", why=f"{live} stays live beside others")


def _program(manifest: Manifest) -> bool:
    return manifest.format == "chain" or manifest.format in PROGRAMS


def _try(name: str, folder: Path, manifest: Manifest) -> None:
    """Load it from its folder as a server does, and run its example."""
    if manifest.format == "chain":
        return
    programs = Programs(Meter())
    try:
        one = replace(manifest, batching=replace(manifest.batching, instances=1))
        model = load_from(folder, one, name, "new", programs=programs)
        outputs = model.predict(example_arrays(manifest, model.inputs))
    finally:
        programs.close()
    for spec in manifest.outputs:
        array = outputs.get(spec.name)
        if array is None or array.ndim != len(spec.shape):
            got = "nothing" if array is None else list(array.shape)
            raise errors.Misconfigured(f"{name}: output {spec.name!r} was {trial.told([spec])} and is now {got}")


def _add_archive(repository: Repository, path: Path, wish: Wish, say: Say) -> Added:
    """A version that `models pack` made, as it was."""
    repository.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".add-", dir=repository.root) as aside:
        there = Repository(Path(aside))
        name, version = archive.unpack(path, there, wish.name)
        manifest, folder = there.manifest(name, version), there.folder(name, version)
        say(f"{path.name}: {name} in format {manifest.format}, {manifest.digests.get(manifest.file, '')}")
        if _program(manifest) and not wish.allow_code:
            raise errors.Misconfigured(
                f"{path} holds a program ({manifest.format}): trying it runs what its author wrote. If you trust it: "
                f"millstream models add {repository.root} {path} --allow-code"
            )
        files: Files = {one: folder / one for one in there.files(name, version)}
        return _put(repository, name, manifest, files, say)
