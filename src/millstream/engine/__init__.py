"""Answer a request: which version, with whom in one batch, on which thread.

follow.py, which reads deltas from a log, is imported by its own name: serving models alone has no log to load.
"""

from millstream.engine.engine import Engine
from millstream.engine.limits import EngineLimits
from millstream.engine.watch import ModelView

__all__ = ["Engine", "EngineLimits", "ModelView"]
