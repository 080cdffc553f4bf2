"""`millstream init`: from a team's own tables to a running recommender.

- `founding.py`: what is done, in order; a failure leaves the folder as it was.
- `sketch.py`: the settings and the features that it writes.
"""
