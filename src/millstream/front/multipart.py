"""multipart/form-data (RFC 7578) of a body that is whole already: fields by name, and one file.

Rules of the room:
- The boundary is the body's first line, as every client writes it: no header has to be looked at.
- Parts, their headers and the bytes of fields are bounded; a file is a copy of its bytes and nothing more.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from millstream import errors
from millstream.front.door import Recording

PARTS_MAX = 64
HEAD_BYTES_MAX = 4096
FIELDS_BYTES_MAX = 1 << 20
BOUNDARY_BYTES_MAX = 70  # RFC 2046
_EXAMPLE = "send multipart/form-data with a part called file, as curl -F file=@speech.wav does"
_DISPOSITION = re.compile(rb"^content-disposition:[ \t]*form-data[ \t]*(;.*)$", re.I | re.M)
_PARAMETER = re.compile(rb';[ \t]*([a-z*]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;" \t\r]*))', re.I)
_FIRST = re.compile(rb"(?:\r\n)?--([ -~]{1,%d}?)[ \t]*\r\n" % BOUNDARY_BYTES_MAX)


def read(body: bytes | bytearray, bytes_max: int) -> Recording:
    """The file of the form and its other fields. BadInput: no such form; TooLarge: of the file."""
    first = _FIRST.match(body)
    if first is None:
        raise errors.BadInput(f"the body is no form: it begins with no boundary; {_EXAMPLE}")
    mark = b"\r\n--" + first[1]
    fields: dict[str, list[str]] = {}
    file: tuple[str, bytes] | None = None
    at, told = first.end(), 0
    for _ in range(PARTS_MAX):
        end = body.find(mark, at - 2)  # of an empty part the line break before its content is that of the boundary
        if end < 0:
            raise errors.BadInput(f"the form is cut off: its last boundary is missing; {_EXAMPLE}")
        name, filename, content = _part(body, at, end)
        if filename is None:
            told += len(content)
            if told > FIELDS_BYTES_MAX:
                raise errors.TooLarge(f"fields of more than {FIELDS_BYTES_MAX} bytes beside the file: leave some out")
            fields.setdefault(name, []).append(content.decode("utf-8", "replace"))
        elif name != "file" or file is not None:
            raise errors.BadInput(f"part {name[:80]!r}: one file is taken, in the part called file; {_EXAMPLE}")
        elif len(content) > bytes_max:
            raise errors.TooLarge(f"the file has {len(content)} bytes, at most {bytes_max}: split it, or compress it")
        else:
            file = filename, bytes(content)
        after = end + len(mark)
        if body[after : after + 2] == b"--":
            if file is None:
                raise errors.BadInput(f"the form has no part called file; {_EXAMPLE}")
            return Recording(file[0], file[1], fields)
        at = body.find(b"\r\n", after) + 2
        if at < 2 or body[after : at - 2].strip(b" \t"):
            raise errors.BadInput(f"the form is broken behind a boundary; {_EXAMPLE}")
    raise errors.TooLarge(f"a form of more than {PARTS_MAX} parts: leave some out")


def _part(body: bytes | bytearray, at: int, end: int) -> tuple[str, str | None, bytes | bytearray]:
    """(name, name of the file, content) of the part between two boundaries. BadInput."""
    blank = body.find(b"\r\n\r\n", at, min(end + 2, at + HEAD_BYTES_MAX))
    said = _DISPOSITION.search(body, at, blank + 2) if blank >= 0 else None
    given = {m[1].lower(): m[2] if m[2] is not None else m[3] for m in _PARAMETER.finditer(said[1])} if said else {}
    if b"name" not in given:
        raise errors.BadInput(f"a part of the form has no name: Content-Disposition is missing or broken; {_EXAMPLE}")
    filename = _text(given[b"filename"]) if b"filename" in given else None
    if b"filename*" in given:  # RFC 5987: encoding'language'text
        filename = unquote(given[b"filename*"].decode("latin-1").rpartition("'")[2], errors="replace")
    return _text(given[b"name"]), filename, body[blank + 4 : end]


def _text(quoted: bytes) -> str:
    return re.sub(rb"\\(.)", rb"\1", quoted).decode("utf-8", "replace")
