"""Millstream: a trained model in production, getting better from its own traffic.

The package itself imports nothing heavy; the rooms are in README.md and docs/design.md.
"""

__version__ = "0.9.0"
