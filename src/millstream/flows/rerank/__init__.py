"""From scores to a list: an ordered list of constraint steps, one greedy builder, a reason on every item.

slate.py (what is re-ranked, and how it is logged), step.py (what a step is), rules.py (the builder and all steps
together); steps: sift.py (what goes, pins, boosts), diversity.py (windows, MMR, DPP), exposure.py (new items, ads).
"""

from millstream.flows.rerank.rules import Order, Rules
from millstream.flows.rerank.slate import Slate, narrow

__all__ = ["Order", "Rules", "Slate", "narrow"]
