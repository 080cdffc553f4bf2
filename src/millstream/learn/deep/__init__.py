"""Deep rankers: DeepFM and DIN, trained in torch on what was shown, served as ONNX files.

`settings` and `rows` import no framework; the others need the extra `torch`.
"""

from millstream.learn.deep.rows import Shown, Source, Span, read
from millstream.learn.deep.settings import KINDS, PRIMARY, DeepSettings, Head, Kind, heads

__all__ = ["KINDS", "PRIMARY", "DeepSettings", "Head", "Kind", "Shown", "Source", "Span", "heads", "read"]
