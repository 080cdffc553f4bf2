"""Keys that somebody presses while the demo draws: one at a time, without echo, so that nothing tears the picture."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Keys:
    """While it is entered, in an event loop, `pressed(key)` hears of every key of terminal `fd`. Ctrl-C stays what it
    is; the terminal is left as it was found."""

    def __init__(self, fd: int, pressed: Callable[[str], object]) -> None:
        self._fd, self._pressed = fd, pressed

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _read(self) -> None:
        content = os.read(self._fd, 64)
        if not content:  # hung up
            asyncio.get_running_loop().remove_reader(self._fd)
        for key in content.decode("ascii", "ignore"):
            self._pressed(key)


def at_a_terminal() -> bool:
    """Whether somebody sits at standard input who can press a key: a process in the background must not ask."""
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # no terminal, or none at all
        return False
