"""Recommend: candidates in rank order."""

from millstream.flows.recommend.rank import Matrix, Recommend, RecommendLimits

__all__ = ["Matrix", "Recommend", "RecommendLimits"]
