"""`models`: what is in a repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from millstream.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    """The verbs of this file."""
    models = Verbs(verbs.add("models", _models, "what is in a repository"))
    for name, help in (("list", "versions and their roles"), ("verify", "check every file against its digest")):
        models.add(name, _models, help).add_argument("path", type=Path, help="the repository")


def _models(args: argparse.Namespace) -> object:
    from millstream.models.repository import Repository

    repository = Repository.open(args.path)
    if args.verb == "verify":
        names = [(m, v) for m in repository.models() for v in repository.versions(m)]
        return [{"model": m, "version": v, "format": repository.verify(m, v).format} for m, v in names]
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
