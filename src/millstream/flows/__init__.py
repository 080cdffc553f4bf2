"""Products: what a request means. A flow reads feature rows, asks the engine, and writes one served event a request."""

from millstream.flows.collect import Collect, CollectLimits
from millstream.flows.predict import Predict, ServedLog
from millstream.flows.recommend import Recommend, RecommendLimits

__all__ = ["Collect", "CollectLimits", "Predict", "Recommend", "RecommendLimits", "ServedLog"]
