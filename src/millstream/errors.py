"""One tree of errors. Each class owns its HTTP status and gRPC code, so every border says the same.

A message names what was wrong, where, what was got, and what to do. A client's mistake is a 4xx; a plain `Error`
that reaches a border is a bug of ours and becomes a 500.
"""

from __future__ import annotations


class Error(Exception):
    """Root of the tree."""

    status = 500
    code = "INTERNAL"


class Failed(Error):
    """A model failed on a request that it should have answered. The engine logs it; a border says no more than that."""


class BadInput(Error):
    """The request cannot be understood: names, shapes, dtypes, values."""

    status = 400
    code = "INVALID_ARGUMENT"


class Unauthenticated(Error):
    """No key, or a key that is not known."""

    status = 401
    code = "UNAUTHENTICATED"


class Forbidden(Error):
    """The key is known and does not carry this right."""

    status = 403
    code = "PERMISSION_DENIED"


class NotFound(Error):
    """No such model, version, request or file."""

    status = 404
    code = "NOT_FOUND"


class Conflict(Error):
    """Somebody else changed it first: read again, then decide again."""

    status = 409
    code = "ABORTED"


class TooLarge(Error):
    """Over a stated bound."""

    status = 413
    code = "RESOURCE_EXHAUSTED"


class Busy(Error):
    """A bounded queue is full. `retry_after_s` says when it is worth trying again."""

    status = 503
    code = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Lost(Busy):
    """What computed this has ended in the middle of it, or is starting: nobody computes it again but the caller."""


class Overloaded(Busy):
    """This caller's model has as much work waiting as its bound allows; other models may have room."""

    status = 429
    code = "RESOURCE_EXHAUSTED"


class Late(Error):
    """The deadline passed before an answer was ready."""

    status = 504
    code = "DEADLINE_EXCEEDED"


class Corrupt(Error):
    """Bytes on disk are not what was written: checksum, digest, torn file."""

    status = 500
    code = "DATA_LOSS"


class Full(Error):
    """The disk (or a size limit) has no room; nothing was acknowledged."""

    status = 507
    code = "RESOURCE_EXHAUSTED"


class Misconfigured(Error):
    """A configuration or policy file that cannot be used: somebody has to correct it before this is answered."""

    status = 503
    code = "FAILED_PRECONDITION"


class Later(Misconfigured):
    """A file that a later Millstream wrote: nothing of it is guessed at, and nothing is written into it."""

    def __init__(self, where: object, said: object, known: int) -> None:
        super().__init__(
            f"{where}: format version {said}, and this Millstream reads up to {known}: written by a later Millstream; "
            "upgrade this one, or restore a backup"
        )


class Missing(Error):
    """An optional part is not installed; the message carries its install line."""

    status = 501
    code = "UNIMPLEMENTED"

    @classmethod
    def extra(cls, name: str, for_what: str) -> Missing:
        return cls(f"{for_what} needs the extra '{name}': pip install 'millstream[{name}]'")
