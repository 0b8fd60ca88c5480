"""Settings that all tests share."""

import os

# Before torch is imported anywhere: one thread is what the two cores of CI can promise, and a
# process that starts more than it may use is slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A busy machine must not fail a property: only the claim counts, not the time of one example.
settings.register_profile(
    "outlay",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("outlay")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--optin",
        action="store_true",
        help="run tests that compile or download something large",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--optin"):
        return
    reason = "NOT RUN: compiles or downloads something large; give --optin to run it"
    for item in items:
        if item.get_closest_marker("optin"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """With OUTLAY_CI=1 a skipped test fails: a claim that is not tested there is not tested."""
    report: Any = yield
    # An expected failure is reported as skipped, too, but it did run.
    excused = item.get_closest_marker("optin") or hasattr(report, "wasxfail")
    if report.skipped and os.environ.get("OUTLAY_CI") == "1" and not excused:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow ({reason})"
    return report


@pytest.fixture(scope="session")
def model() -> Any:
    """The embedded model in exact mode; tests that use it are marked `model`."""
    import torch

    from outlay.models import embedded

    torch.set_num_threads(1)
    return embedded.load(device="cpu")
