"""Shared by the tests of the room: a deterministic scorer and two real modules."""

import bisect
import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("cache_lm", Path(__file__).parent / "cache_lm.py")
assert _spec is not None
assert _spec.loader is not None
cache_lm = importlib.util.module_from_spec(_spec)
sys.modules["cache_lm"] = cache_lm
_spec.loader.exec_module(cache_lm)

QUERY = '''def shorten(text, width, **kwargs):
    """Collapse and truncate the given text to fit in the given width."""
    w = TextWrapper(width=width, max_lines=1, **kwargs)
    return w.fill(' '.join(text.strip().split()))'''


@pytest.fixture
def scorer():
    return cache_lm.CacheLM()


@pytest.fixture(scope="session")
def module() -> str:
    return inspect.getsource(textwrap)


@pytest.fixture(scope="session")
def small_module() -> str:
    return inspect.getsource(bisect)


@pytest.fixture(scope="session")
def query() -> str:
    return QUERY
