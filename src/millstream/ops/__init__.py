"""Running it: processes that are started, watched and started again."""

from millstream.ops.supervise import Launch, Supervisor

__all__ = ["Launch", "Supervisor"]
