"""The next page of a list: a cursor names the list and how much of it was given.

Pages are parts of one list that was made, and logged, once: so no item comes twice, and constraints hold over them.
"""

from __future__ import annotations

import base64
import binascii

from millstream.errors import BadInput

CHARS_MAX = 2048


def write(ident: str, at: int) -> str:
    """The cursor of what follows the first `at` items of the list of request `ident`."""
    return base64.urlsafe_b64encode(f"{at}:{ident}".encode()).decode().rstrip("=")


def read(cursor: str) -> tuple[str, int]:
    """The request and the place that a cursor names; BadInput for anything that `write` did not write."""
    try:
        if len(cursor) > CHARS_MAX:
            raise ValueError
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        at, _, ident = text.partition(":")
        if not (ident and at.isascii() and at.isdigit()):
            raise ValueError
        return ident, int(at)
    except (ValueError, binascii.Error):
        raise BadInput(f"cursor {cursor[:40]!r} is none that was given out: send the last page's as it is") from None
