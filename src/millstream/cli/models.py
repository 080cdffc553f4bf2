"""`models`: what is in a repository, and how it gets there."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from millstream.cli import pack
from millstream.cli.verbs import Verbs, instances, positive
from millstream.types import TensorSpec


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    models = Verbs(verbs.add("models", _list, "what is in a repository, and how it gets there"))
    for name, run, help in (
        ("list", _list, "versions and their roles"),
        ("verify", _verify, "check every file against its digest"),
    ):
        models.add(name, run, help).add_argument("path", type=Path, help="the repository")
    for name, run, help in (
        ("show", _show, "what a version says of itself, as it is on disk"),
        ("remove", _remove, "delete a version that the policy does not name"),
    ):
        one = models.add(name, run, help)
        one.add_argument("path", type=Path, help="the repository")
        one.add_argument("model")
        one.add_argument("version")
    _add_add(models)
    pack.add(models)


def _add_add(models: Verbs) -> None:
    one = models.add("add", _add, "look into a model file, try it, and make it a version")
    one.add_argument("path", type=Path, help="the repository; a new folder is made")
    one.add_argument(
        "file",
        help="ONNX, pickle, PyTorch, Keras, TensorFlow (file or SavedModel folder), Whisper (folder of CTranslate2), "
        ".py, an archive of `models pack`, or an address: s3://..., models:/NAME/VERSION",
    )
    one.add_argument("--name", default="", help="of the model (default: the file's)")
    one.add_argument("--allow-code", action="store_true", help="the file is a program, and you trust it")
    one.add_argument("--example", type=Path, metavar="FILE", help="rows to try it with: .json .npy .npz .csv .parquet")
    one.add_argument(
        "--input",
        type=_spec,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:TYPE[SHAPE]",
        help="what it takes, where its file does not say: x:FP32[-1,3,224,224]",
    )
    one.add_argument("--entry", default="", metavar="FILE:NAME", help="the class in its code: net:Net")
    one.add_argument(
        "--code", type=Path, nargs="+", action="extend", default=[], metavar="PATH", help="files of its own, or folders"
    )
    one.add_argument("--requirements", type=Path, metavar="FILE", help="its locked dependencies (NAME==VERSION lines)")
    one.add_argument("--python", default="", metavar="X.Y", help="the Python that it wants (default: this one)")
    one.add_argument(
        "--setting", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="for what runs it; JSON"
    )
    one.add_argument(
        "--instances", type=instances, default=0, help="processes, or calls at once (default: the server's)"
    )
    one.add_argument("--to", choices=("onnx",), help="convert it, and prove that it answers the same")
    one.add_argument(
        "--tolerance",
        type=positive,
        default=0.001,
        help="most that a conversion may differ, relative; a tenth of it is the absolute bound (default: 0.001)",
    )
    one.add_argument("--why", default="", help="recorded with the version")


def _spec(text: str) -> TensorSpec:
    from millstream.errors import Misconfigured
    from millstream.models.manifest import parse_spec

    name, _, said = text.rpartition(":")
    try:
        return parse_spec(name, said)
    except Misconfigured as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _setting(text: str) -> tuple[str, object]:
    """A name and its value, which is text where it is no JSON."""
    name, said, value = text.partition("=")
    if not name or not said:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _add(args: argparse.Namespace) -> object:
    from millstream.ops.add import Wish
    from millstream.ops.add import add as add_version

    if not args.verbose:  # what frameworks print of themselves; a fault is told anyway
        logging.getLogger("millstream.models.apart").setLevel(logging.WARNING)
    wish = Wish(
        source=args.file,
        name=args.name,
        allow_code=args.allow_code,
        example=args.example,
        inputs=tuple(args.input),
        entry=args.entry,
        code=tuple(args.code),
        requirements=args.requirements,
        python=args.python,
        instances=args.instances,
        settings=dict(args.setting),
        to_onnx=args.to == "onnx",
        tolerance=args.tolerance,
        why=args.why,
    )
    added = add_version(args.path, wish, lambda sentence: print(sentence, file=sys.stderr, flush=True))
    if args.json:
        return added
    print(f"{added.model} {added.version} is there ({added.role}). Serve it: {added.serve}")
    return None


def _list(args: argparse.Namespace) -> object:
    from millstream.models.repository import Repository

    repository = Repository.open(args.path)
    found = []
    for model in repository.models():
        roles = repository.policy(model).named()
        for version in repository.versions(model):
            manifest = repository.manifest(model, version)
            found.append(
                {
                    "model": model,
                    "version": version,
                    "role": roles.get(version, "-"),
                    "format": manifest.format,
                    "made_by": str(manifest.lineage.get("made_by", "-")),
                }
            )
    return found


def _verify(args: argparse.Namespace) -> object:
    from millstream.models.repository import Repository

    repository = Repository.open(args.path)
    names = [(m, v) for m in repository.models() for v in repository.versions(m)]
    return [{"model": m, "version": v, "format": repository.verify(m, v).format} for m, v in names]


def _show(args: argparse.Namespace) -> object:
    from millstream.models.manifest import render
    from millstream.models.repository import Repository

    manifest = Repository.open(args.path).manifest(args.model, args.version)
    return manifest if args.json else render(manifest).decode().rstrip()


def _remove(args: argparse.Namespace) -> object:
    from millstream.models.repository import Repository

    Repository.open(args.path).remove(args.model, args.version)
    return {"removed": f"{args.model} {args.version}"}
