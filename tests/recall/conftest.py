"""What tests of recall share."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def often():
    """Threads take turns as often as can be."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)
