"""Graphs for the tests of factuality."""

from typing import Any

import pytest

from outlay.evals.factuality.countries import countries as load
from outlay.evals.factuality.graph import Graph


@pytest.fixture(scope="session")
def countries() -> Graph:
    return load()


@pytest.fixture(scope="session")
def reasoner() -> Any:
    """The shipped reasoner: it thinks, closes its thinking and answers."""
    import torch

    from outlay.models.local import LocalModel
    from outlay.testbeds.reasoner import checkpoint_path

    torch.set_num_threads(1)
    return LocalModel.load(checkpoint_path(), device="cpu")


@pytest.fixture
def town() -> Graph:
    """A small graph with a cycle, a self-loop, parallel relations and a name for two nodes."""
    return Graph(
        [
            ("ada", "knows", "bob"),
            ("ada", "taught", "bob"),
            ("bob", "knows", "cat"),
            ("cat", "knows", "ada"),
            ("bob", "knows", "bob"),
            ("cat", "lives in", "york"),
            ("york-city", "named after", "york"),
        ],
        labels={"ada": "Ada", "bob": "Bob", "cat": "Cat", "york": "York", "york-city": "York"},
        aliases={"ada": ["Countess of Lovelace"]},
        name="town",
    )
