"""A look into a model file that is a program, in a process of its own: looking runs what its author wrote."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from millstream.models.apart.child import Inspect, Looked
from millstream.models.apart.process import Child
from millstream.models.manifest import Manifest
from millstream.models.runtimes import Found
from millstream.types import Array


def look_into(folder: Path, manifest: Manifest, example: dict[str, Array], python: Path) -> Found:
    """What the file says of itself: its tensors, and an example that was run. `example` may be empty; blocks for as
    long as `manifest.process.start_s_max`. What cannot be looked into: Misconfigured, in the program's own words."""
    child = Child(manifest.file, python)
    try:
        asked = Inspect(str(folder), manifest, tuple(example))
        told, arrays = child.first(asked, list(enumerate(example.values())), manifest.process.start_s_max)
    finally:
        child.release()
    assert isinstance(told, Looked)
    return replace(told.found, example=dict(zip(told.names, (array for _, array in arrays), strict=True)))
