"""Borders: what comes in over the network, and what leaves. HTTP first."""

from millstream.front.door import Door
from millstream.front.http import Http
from millstream.front.limits import HttpLimits

__all__ = ["Door", "Http", "HttpLimits"]
