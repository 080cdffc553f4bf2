"""Answer a request: which version, with whom in one batch, on which thread."""

from millstream.engine.engine import Engine, EngineLimits, ModelView
from millstream.engine.follow import Follow

__all__ = ["Engine", "EngineLimits", "Follow", "ModelView"]
