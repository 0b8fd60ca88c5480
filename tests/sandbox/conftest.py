"""Sandboxes that tests share: with what this machine offers, and with the filter alone."""

from collections.abc import Iterator

import pytest

from outlay.sandbox import Limits, Sandbox

LIMITS = Limits(cpu_seconds=20, wall_seconds=60)


@pytest.fixture(scope="session", params=[None, False], ids=["best", "filter-alone"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Both ways of isolation: every claim about programs holds in each."""
    with Sandbox(LIMITS, namespaces=request.param) as made:
        yield made


@pytest.fixture(scope="session")
def best() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as made:
        yield made
