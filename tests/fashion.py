"""Tests that show Fashion-MNIST: skipped, loudly, where Debian's package is not installed.

Mark them with `needs_fashion`. Under OUTLAY_CI=1 a skip is a failure (tests/conftest.py).
"""

from __future__ import annotations

import pytest

from outlay.testbeds import fashion

needs_fashion = pytest.mark.skipif(
    not fashion.installed(),
    reason=(
        f"Fashion-MNIST is not installed: what depends on it is UNTESTED; "
        f"apt-get install {fashion.PACKAGE}"
    ),
)
