"""The Python that a version's process runs on: this one where all that the version locks is installed here, else an
environment of its own.

Rules of the room:
- Dependencies are locked: every line of the file says `name==version`; hashes, markers and index options may follow.
  Nothing but what it names is installed, beside what the process itself imports (NEEDED).
- An environment is made once for a lock and a Python, and shared by the versions and processes that want it. It is
  whole when its last file is written; a half-built one is built again.
- Two processes that want one environment at once build one: the other waits. The lock is held by pip too, so a builder
  whose parent was killed cannot write into what the next one builds.
- A version with a folder `wheels` is built from these alone: no index is asked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from millstream import config, errors
from millstream.models.manifest import Manifest
from millstream.store.blob import full, locked, write_atomic

NEEDED = ("numpy", "msgspec")
"""What the process of a program imports beside the model's own framework."""
WHEELS = "wheels"
"""Folder of a version with the wheels of its lock, for machines that reach no index."""
PIP_S_MAX = 30 * 60.0
_ASK_S_MAX = 10.0
_PYTHON_MIN = (3, 11)
_WHOLE = "millstream.whole"
_UNBUILT = "its environment cannot be built"
_PINNED = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(?P<extras>\[[^]]*\])?\s*==\s*(?P<version>[A-Za-z0-9][\w.+!-]*)\s*(?P<marker>;.*)?"
)
_OPTIONS = ("--index-url", "-i", "--extra-index-url")
_HASH = re.compile(r"\s--hash[= ]\S+")
log = logging.getLogger(__name__)


class Lock(msgspec.Struct, frozen=True):
    """What a file of locked dependencies says. `plain`: name -> version of the lines that say no more than that;
    `clever`: how many lines have extras or markers; `hashed`: whether hashes are there, which then hold for all."""

    names: frozenset[str]
    plain: dict[str, str]
    clever: int
    hashed: bool


def python_for(folder: Path, manifest: Manifest) -> Path:
    """The interpreter for the version in `folder`. May build an environment first, which takes minutes.

    Misconfigured: a line that is not locked, a Python that is not here, or pip's own reason.
    """
    if not manifest.requirements:
        return _interpreter(folder, manifest.python)
    path = folder / manifest.requirements
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.Misconfigured(f"{path}: the locked dependencies cannot be read ({error})") from error
    lock = read_lock(text, str(path))
    interpreter = _interpreter(folder, manifest.python)
    if interpreter == Path(sys.executable) and satisfied(lock):
        return interpreter
    try:
        return _environment(folder, text, lock, interpreter)
    except OSError as error:
        raise full(error, config.cache_folder() / "environments") from error


def fetch_wheels(folder: Path, manifest: Manifest, into: Path) -> list[Path]:
    """The wheels that the version's environment is built from, for this platform, fetched into `into`. None without a
    lock. Misconfigured: pip's own reason, such as a package that has no wheel."""
    if not manifest.requirements:
        return []
    lock = read_lock((folder / manifest.requirements).read_text(encoding="utf-8"), manifest.requirements)
    python = str(python_for(folder, manifest))
    download = [python, "-I", "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    download += ["--only-binary=:all:", "--dest", str(into)]
    if lock.names:
        _run(folder, [*download, "-r", str(folder / manifest.requirements)], "its wheels cannot be had")
    if missing := [name for name in NEEDED if name not in lock.names]:
        _run(folder, [*download, *missing], "its wheels cannot be had")
    return sorted(into.glob("*.whl"))


def read_lock(text: str, where: str) -> Lock:
    """The lock that `text` holds. A line that is not `name==version`: Misconfigured."""
    names: set[str] = set()
    plain: dict[str, str] = {}
    clever, hashed = 0, False
    for line in _lines(text):
        if line.startswith(_OPTIONS):
            continue
        bare = _HASH.sub("", f" {line}").strip()
        hashed = hashed or bare != line
        found = _PINNED.fullmatch(bare)
        if not found:
            raise errors.Misconfigured(
                f"{where}: {line[:120]!r} is not locked: a version carries name==version lines, as `pip freeze` or "
                "`pip-compile` writes them"
            )
        name = normal(found["name"])
        names.add(name)
        if found["extras"] or found["marker"]:
            clever += 1
        else:
            plain[name] = found["version"]
    return Lock(frozenset(names), plain, clever, hashed)


def satisfied(lock: Lock) -> bool:
    """Whether all of it is installed where this runs. Extras and markers are never taken as satisfied."""
    return not lock.clever and all(_installed(name, version) for name, version in lock.plain.items())


def normal(name: str) -> str:
    """A package's name as every index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _lines(text: str) -> Iterator[str]:
    """Logical lines: comments gone, continuations joined, nothing empty."""
    whole = re.sub(r"(^|\s)#.*", r"\1", text, flags=re.MULTILINE)
    for line in re.sub(r"\\[ \t]*\r?\n", " ", whole).splitlines():
        if line.strip():
            yield line.strip()


def _installed(name: str, version: str) -> bool:
    try:
        here = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    # 2.13.0 is satisfied by 2.13.0+cpu, a local build of it; not the other way round.
    return version in (here, here.partition("+")[0])


def _interpreter(folder: Path, wanted: str) -> Path:
    """The interpreter of the version of Python that a manifest wants, "" for any."""
    if not wanted or wanted == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return Path(sys.executable)
    found = re.fullmatch(r"3\.(\d{1,2})", wanted)
    if not found or (3, int(found[1])) < _PYTHON_MIN:
        raise errors.Misconfigured(f'{folder}: python = {wanted!r}; say one from "3.{_PYTHON_MIN[1]}" on')
    path = shutil.which(f"python{wanted}")
    if path is None or _says(path) != wanted:
        raise errors.Misconfigured(
            f"{folder}: wants Python {wanted}, this is {platform.python_version()} and no working python{wanted} is "
            "on PATH; install it, or put the version again for this one"
        )
    return Path(path)


def _says(python: str) -> str:
    """Which version an interpreter says that it is; "" when it does not run."""
    ask = [python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=_ASK_S_MAX, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _environment(folder: Path, text: str, lock: Lock, interpreter: Path) -> Path:
    """The interpreter of the environment for a lock, built if it is not there."""
    python = _says(str(interpreter))
    key = hashlib.sha256(
        "\0".join((text, python, sysconfig.get_platform(), str(interpreter), *NEEDED)).encode()
    ).hexdigest()[:32]
    root = config.cache_folder() / "environments"
    root.mkdir(parents=True, exist_ok=True)
    home = root / key
    with locked(root / f"{key}.lock") as held:
        if not (home / _WHOLE).exists():
            shutil.rmtree(home, ignore_errors=True)
            log.info("%s: building its environment in %s", folder, home)
            try:
                _build(folder, home, text, lock, interpreter, held)
                write_atomic(home / _WHOLE, text.encode())
            except BaseException:
                shutil.rmtree(home, ignore_errors=True)
                raise
    return home / "bin" / "python"


def _build(folder: Path, home: Path, text: str, lock: Lock, interpreter: Path, held: int) -> None:
    _run(folder, [str(interpreter), "-I", "-m", "venv", str(home)], _UNBUILT, (held,))
    locked = home / "requirements.txt"
    locked.write_text(text, encoding="utf-8")
    pip = [str(home / "bin" / "python"), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    wheels = folder / WHEELS
    install = [*pip, "install", "--quiet", "--no-deps"]
    if wheels.is_dir():
        install += ["--no-index", "--find-links", str(wheels)]
    hashes = ["--require-hashes"] if lock.hashed else []
    if lock.names:
        _run(folder, [*install, *hashes, "-r", str(locked)], _UNBUILT, (held,))
    if missing := [name for name in NEEDED if name not in lock.names]:
        _run(folder, [*install, *missing], _UNBUILT, (held,))
    _check(folder, [*pip, "check"])


def _check(folder: Path, command: list[str]) -> None:
    """A lock that leaves a dependency out is refused; one whose packages disagree is what its maker ran: said."""
    said = subprocess.run(command, capture_output=True, text=True, timeout=PIP_S_MAX).stdout.splitlines()
    absent = [line for line in said if line.endswith("which is not installed.")]
    if absent:
        raise errors.Misconfigured(
            f"{folder}: the lock is not whole: {'; '.join(absent[:5])} Write it with `pip freeze`"
        )
    for line in said:
        if " has requirement " in line:
            log.warning("%s: %s", folder, line)


def _run(folder: Path, command: Sequence[str], wrong: str, held: tuple[int, ...] = ()) -> None:
    """Run to its end, or to PIP_S_MAX; what fails is Misconfigured with what is `wrong` and the last error line. The
    command holds the descriptors `held` too."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, pass_fds=held
    )
    try:
        said, _ = process.communicate(timeout=PIP_S_MAX)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise errors.Misconfigured(
                f"{folder}: {wrong} within {PIP_S_MAX / 60:.0f} minutes; `models pack --wheels` elsewhere"
            ) from error
        raise
    if process.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()] or [f"exit code {process.returncode}"]
        why = [line for line in lines if line.startswith("ERROR:")] or lines
        raise errors.Misconfigured(f"{folder}: {wrong}: {why[-1]}")
