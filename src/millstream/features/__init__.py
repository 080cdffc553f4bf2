"""Features: one definition, one code for serving and training. See feature.py (rows) and entities.py (who is known)."""

from millstream.features.entities import Attributes, Entities
from millstream.features.feature import Column, Definition, Rows, Texts, warm

__all__ = ["Attributes", "Column", "Definition", "Entities", "Rows", "Texts", "warm"]
