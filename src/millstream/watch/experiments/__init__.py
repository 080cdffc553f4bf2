"""Experiments: whether one arm of a split is better than another, said so that one may look at any time.

sample.py (are people split as they were to be), people.py (sums of each person), effect.py (the difference between two
arms, with less noise where the past of the same people is known), sequence.py (what holds at every look), metrics.py
(what is measured), verdict.py (words).

Rules of the room:
- A person is the unit: all that somebody does counts as one, so a hundred lists of one person are no hundred people.
- People are looked at before anything else: where they are not split as configured, nothing is concluded.
- Every interval and every check holds at all looks together, however many there are and whenever one stops.
- Functions of arrays and numbers: nothing is read or written, and nothing depends on the time.
"""
