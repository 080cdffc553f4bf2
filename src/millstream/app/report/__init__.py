"""`millstream report`: what the log says of lists, and what changed rules would have earned.

- `matching.py`: lists with what people did, read side by side in memory that does not grow (`buckets.py`).
- `summary.py`: policies on three axes, sources, positions.
- `whatif.py`: a file of rules, judged by what was logged under others.
"""
