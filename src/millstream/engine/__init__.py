"""Answer a request: which version, with whom in one batch, on which thread."""

from millstream.engine.engine import Engine, EngineLimits
from millstream.engine.follow import Follow
from millstream.engine.watch import ModelView

__all__ = ["Engine", "EngineLimits", "Follow", "ModelView"]
