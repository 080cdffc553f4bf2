"""One TOML file becomes frozen structs. A setting is declared once, in the room that uses it, with default, unit, bound
and help; this module reads, checks and explains them, and is the only reader of the environment.

`${NAME}` in a string is replaced from the environment: meant for secrets and addresses only. What replaces it stays
text: no quote or line break in it can become a setting.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from millstream.errors import Misconfigured

SUPERVISOR = "MILLSTREAM_SUPERVISOR"
"""Variable in which a supervisor tells its roles its process id."""

S = TypeVar("S", bound=msgspec.Struct)
_FREE = "[...]"  # in a path of msgspec's: a name that is free
_PART = re.compile(r"\.[^.\[`]+|\[[^]]*\]")
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
        raise Misconfigured(f"{where}: {_told(error, found, into)}") from None
    except Misconfigured as error:  # what a struct checks of itself
        raise Misconfigured(f"{where}: {error}") from None


def settings(
    of: type[msgspec.Struct], prefix: str = "", told: set[type[msgspec.Struct]] | None = None
) -> Iterator[tuple[str, object, str]]:
    """(name, default, help) of every setting below a struct, for docs and `--help`; a default of None: there is none.
    What a table of several kinds, or tables by free names, may hold is told once; `told`: those that were."""
    told = set() if told is None else told
    for field in msgspec.structs.fields(of):
        name = f"{prefix}{field.encode_name}"
        meta = getattr(field.type, "__metadata__", ())
        help = next((m.description for m in meta if isinstance(m, msgspec.Meta) and m.description), "")
        table, several = _table(field.type)
        if table and not several and field.default is not None:
            yield from settings(table, f"{name}.", told)
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
            default = default() if callable(default) else None if default is msgspec.NODEFAULT else default
            if (named := _named(field.type)) is None:
                yield name, default, help
            else:
                yield name, {key: _changed(one) for key, one in (default or {}).items()}, help
                if named not in told:
                    told.add(named)
                    yield from settings(named, f"{name}.NAME.", told)
            for kind in _kinds(field.type):
                if kind not in told:
                    told.add(kind)
                    yield from settings(kind, f"{name}.{kind.__struct_config__.tag}.", told)


def supervised() -> bool:
    """Whether a supervisor started this process."""
    return SUPERVISOR in os.environ


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


def _told(error: msgspec.ValidationError, found: Any, into: type[msgspec.Struct]) -> str:
    """What is wrong and where, with the names that are free, which msgspec leaves out, and the number that was got: a
    text may be a secret of the environment."""
    said, at, path = str(error).partition(" - at `$")
    names: list[str | int] = []
    for part in _PART.findall(path):
        if part == _FREE:
            name, found = _blamed(error, found, into, names)
            names.append(name)
        else:
            names.append(int(part[1:-1]) if part[0] == "[" else part[1:])
    if not names:
        return said + at + path
    shown = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names)
    got = _at(found, names)
    return f"{said} - at `{shown[1:]}`" + (f", got {got}" if isinstance(got, int | float) else "")


def _blamed(
    error: msgspec.ValidationError, found: Any, into: type[msgspec.Struct], above: Sequence[str | int]
) -> tuple[str, Any]:
    """Which name of a table is wrong: the first that, alone there, is wrong in this way. And `found` with it alone."""
    for name, value in _at(found, above).items():
        alone = _with(found, above, {name: value})
        try:
            msgspec.convert(alone, into)
        except msgspec.ValidationError as same:
            if str(same) == str(error):
                return name, alone
        except Misconfigured:
            pass
    return _FREE, found


def _at(found: Any, names: Sequence[str | int]) -> Any:
    """The value that these names lead to; None where they lead nowhere."""
    for name in names:
        try:
            found = found[name]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def _with(found: Any, names: Sequence[str | int], value: object) -> Any:
    """`found` with another value where these names lead."""
    if not names:
        return value
    below = _with(found[names[0]], names[1:], value)
    if isinstance(found, dict):
        return {**found, names[0]: below}
    return [below if number == names[0] else one for number, one in enumerate(found)]


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


def _kinds(kind: Any) -> tuple[type[msgspec.Struct], ...]:
    """The structs of a setting whose tables are of several kinds, told by a tag; none of another."""
    found = tuple(one for one in get_args(kind) if isinstance(one, type) and issubclass(one, msgspec.Struct))
    if len(found) > 1:
        return found
    return next((below for one in get_args(kind) if (below := _kinds(one))), ())


def _table(kind: Any) -> tuple[type[msgspec.Struct] | None, bool]:
    """The struct that a setting's type is made of, if any, and whether the setting holds several of them. None where
    they are of several kinds: those refuse names themselves."""
    several = False
    if _kinds(kind):
        return None, False
    while not isinstance(kind, type) or get_args(kind):
        if get_origin(kind) in (tuple, list):
            several = True
        elif get_origin(kind) is dict or not get_args(kind):
            return None, False
        kind = get_args(kind)[0]
    return (kind if issubclass(kind, msgspec.Struct) else None), several
