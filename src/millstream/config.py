"""One TOML file becomes frozen structs. A setting is declared once, in the room that uses it, with default, unit, bound
and help; this module reads, checks and explains them, and is the only reader of the environment.

`${NAME}` in a string is replaced from the environment: meant for secrets and addresses only. What replaces it stays
text: no quote or line break in it can become a setting.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from millstream.errors import Misconfigured

SUPERVISOR = "MILLSTREAM_SUPERVISOR"
"""Variable in which a supervisor tells its roles its process id."""

S = TypeVar("S", bound=msgspec.Struct)
_VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")


def read(path: Path, into: type[S]) -> S:
    """The file as `into`; an error names the file, the setting, what was got and what is allowed."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror}; `-c FILE` wants an installation's millstream.toml") from None
    except UnicodeDecodeError as error:
        raise Misconfigured(f"{path}: not TOML: byte {error.start} is not UTF-8") from None
    return parse(text, into, str(path))


def parse(text: str, into: type[S], where: str) -> S:
    """`text` as `into`; `where` is named in errors."""
    try:
        found = _from_environment(tomllib.loads(text), where)
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{where}: not TOML: {error}") from None
    _check_names(found, into, where, "")
    try:
        return msgspec.convert(found, into)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"{where}: {str(error).replace('`$.', '`')}") from None
    except Misconfigured as error:  # what a struct checks of itself
        raise Misconfigured(f"{where}: {error}") from None


def settings(of: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """(name, default, help) of every setting below a struct, for docs and `--help`."""
    for field in msgspec.structs.fields(of):
        name = f"{prefix}{field.encode_name}"
        meta = getattr(field.type, "__metadata__", ())
        help = next((m.description for m in meta if isinstance(m, msgspec.Meta) and m.description), "")
        table, several = _table(field.type)
        if table and not several and field.default is not None:
            yield from settings(table, f"{name}.")
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
            default = default() if callable(default) else default
            if (named := _named(field.type)) is None:
                yield name, default, help
            else:
                yield name, {key: _changed(one) for key, one in default.items()}, help
                yield from settings(named, f"{name}.NAME.")


def orphaned() -> bool:
    """Whether the supervisor that started this process is gone; False for a process that none started."""
    supervisor = os.environ.get(SUPERVISOR)
    return supervisor is not None and os.getppid() != int(supervisor)


def cache_folder() -> Path:
    """Where downloads are kept between runs: the folder of the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millstream"


def _from_environment(found: Any, where: str) -> Any:
    """`found`, as TOML gives it, with every variable in its strings replaced."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise Misconfigured(f"{where}: ${{{name}}} is not set in the environment")
        return os.environ[name]

    if isinstance(found, str):
        return _VARIABLE.sub(value, found)
    if isinstance(found, list):
        return [_from_environment(one, where) for one in found]
    if isinstance(found, dict):
        return {name: _from_environment(one, where) for name, one in found.items()}
    return found


def _check_names(found: Mapping[str, object], of: type[msgspec.Struct], where: str, prefix: str) -> None:
    """Refuse a name that no setting has, in `found` and in every table below: a misspelt bound would be no bound."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(of)}
    for name, value in found.items():
        if name in (moved := getattr(of, "moved", {})):
            raise Misconfigured(f"{where}: `{prefix}{name}` is `{prefix}{moved[name]}` now")
        if name not in fields:
            raise Misconfigured(f"{where}: unknown setting `{prefix}{name}`; known there: {', '.join(sorted(fields))}")
        table, several = _table(fields[name])
        if (named := _named(fields[name])) and isinstance(value, dict):
            for key, below in value.items():
                if isinstance(below, dict):
                    _check_names(below, named, where, f"{prefix}{name}.{key}.")
        for below in value if several and isinstance(value, list) else [value]:
            if table and isinstance(below, dict):
                _check_names(below, table, where, f"{prefix}{name}.")


def _named(kind: Any) -> type[msgspec.Struct] | None:
    """The struct of a setting that is tables by names which are free; None of another."""
    while get_args(kind) and get_origin(kind) is not dict:
        kind = get_args(kind)[0]
    return _table(get_args(kind)[1])[0] if get_origin(kind) is dict else None


def _changed(struct: msgspec.Struct) -> dict[str, object]:
    """The fields of a struct that are not as they are by default."""
    return {
        field.name: value
        for field in msgspec.structs.fields(struct)
        if (value := getattr(struct, field.name)) not in (field.default, *_made(field))
    }


def _made(field: msgspec.structs.FieldInfo) -> tuple[object, ...]:
    return () if field.default_factory is msgspec.NODEFAULT else (field.default_factory(),)


def _table(kind: Any) -> tuple[type[msgspec.Struct] | None, bool]:
    """The struct that a setting's type is made of, if any, and whether the setting holds several of them."""
    several = False
    while not isinstance(kind, type) or get_args(kind):
        if get_origin(kind) in (tuple, list):
            several = True
        elif get_origin(kind) is dict or not get_args(kind):
            return None, False
        kind = get_args(kind)[0]
    return (kind if issubclass(kind, msgspec.Struct) else None), several
