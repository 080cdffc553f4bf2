"""What became of lists: counts of a log's lists and outcomes, and what they say of the rules that made the lists.

part.py (counts, from a part of the log at a time), exposure.py (what the catalogue got), positions.py (what a position
is worth), axes.py (the measures, by which rules are compared on three axes).

Rules of the room:
- Functions of arrays: nothing is read or written, nothing depends on the order of the parts.
- People are kept apart by GROUPS groups, by a hash: intervals take a group as one, so requests of one person never
  count as several that know nothing of each other.
- An item counts as shown where an impression was told, or something that is done with what one sees.
"""
