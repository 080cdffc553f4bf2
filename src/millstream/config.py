"""One TOML file becomes frozen structs. A setting is declared once, in the room that uses it, with default, unit, bound
and help; this module reads, checks and explains them, and is the only reader of the environment.

`${NAME}` in a string is replaced from the environment: meant for secrets and addresses only.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from millstream.errors import Misconfigured

S = TypeVar("S", bound=msgspec.Struct)
_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")


def read(path: Path, into: type[S]) -> S:
    """The file as `into`; an error names the file, the setting, what was got and what is allowed."""
    try:
        text = path.read_text()
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}; `millstream up -c FILE` wants a TOML file") from None
    return parse(text, into, str(path))


def parse(text: str, into: type[S], where: str) -> S:
    """`text` as `into`; `where` is named in errors."""
    try:
        found = tomllib.loads(_from_environment(text, where))
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{where}: not TOML: {error}") from None
    try:
        return msgspec.convert(found, into)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"{where}: {_explain(str(error), into)}") from None


def settings(of: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """(name, default, help) of every setting below a struct, for docs and `--help`."""
    kind: Any
    for field in msgspec.structs.fields(of):
        name = f"{prefix}{field.encode_name}"
        kind, help = field.type, ""
        meta = getattr(kind, "__metadata__", ())
        if meta:
            help = next((m.description for m in meta if isinstance(m, msgspec.Meta) and m.description), "")
            kind = kind.__origin__
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from settings(kind, f"{name}.")
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
            yield name, default() if callable(default) else default, help


def _from_environment(text: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise Misconfigured(f"{where}: ${{{name}}} is not set in the environment")
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def _explain(message: str, into: type[msgspec.Struct]) -> str:
    unknown = re.search(r"unknown field `(\w+)`(?: - at `\$\.?([\w.]*)`)?", message)
    if not unknown:
        return message.replace("`$.", "`")
    wrong, table = unknown.group(1), unknown.group(2) or ""
    prefix = f"{table}." if table else ""
    known = sorted({n[len(prefix) :].split(".")[0] for n, _, _ in settings(into) if n.startswith(prefix)})
    return f"unknown setting `{prefix}{wrong}`; known there: {', '.join(known)}"
