"""Features: one definition, one code for serving and training.

What a user defines is exported here (define.py), beside the rows of tokens that a ranker learns from (feature.py,
entities.py). state.py keeps values, pipeline.py follows the log, online.py reads, offline.py makes training frames.
"""

from millstream.features.define import Aggregate, Attribute, Cross, Ratio, Sequence, Source, Transform
from millstream.features.entities import Attributes, Entities
from millstream.features.feature import Column, Definition, Rows, Texts, warm
from millstream.features.sets import FeatureSet

__all__ = [
    "Aggregate",
    "Attribute",
    "Attributes",
    "Column",
    "Cross",
    "Definition",
    "Entities",
    "FeatureSet",
    "Ratio",
    "Rows",
    "Sequence",
    "Source",
    "Texts",
    "Transform",
    "warm",
]
