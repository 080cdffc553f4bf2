"""`millstream experiment`: which arm of a split is better, from the log.

- `split.py`: which people are in which arm, and since when: arms of a placement's rules, or versions of a model.
- `assessing.py`: from the log to sums of people, to what is said of them.
- `shadows.py`: what shadow versions of the model said to the same requests.
- `told.py`: the report.
"""

from millstream.app.experiments.assessing import assess

__all__ = ["assess"]
