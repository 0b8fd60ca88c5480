"""The smaller reasoner: it makes the mistakes that there are to tell apart."""

from __future__ import annotations

import pytest

from outlay.models.local import LocalModel
from outlay.testbeds.reasoner import checkpoint_path


@pytest.fixture(scope="session")
def reasoner() -> LocalModel:
    return LocalModel.load(checkpoint_path("small"), name="reasoner")
