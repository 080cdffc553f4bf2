"""Recommend: candidates in rank order."""

from millstream.flows.recommend.rank import Matrix, More, Recommend, RecommendLimits

__all__ = ["Matrix", "More", "Recommend", "RecommendLimits"]
