"""Traffic with known truth: a world of people and items, what goes wrong in it, and what serving it well is worth."""

from millstream.simulate.disturb import Disturbances, Poison, Span, disturbed
from millstream.simulate.truth import Regret, auc, best, expected
from millstream.simulate.world import BLOCK, Ask, Moment, Reaction, Simulator, looked_at

__all__ = [
    "BLOCK", "Ask", "Disturbances", "Moment", "Poison", "Reaction", "Regret", "Simulator", "Span", "auc", "best",
    "disturbed", "expected", "looked_at",
]  # fmt: skip
