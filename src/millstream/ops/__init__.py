"""Running it: processes that are started, watched and started again."""

from millstream.ops.supervise import Supervisor

__all__ = ["Supervisor"]
