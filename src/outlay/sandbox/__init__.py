"""Where generated code runs: see `Sandbox`."""

from outlay.sandbox.base import Limits, Outcome, SandboxError, Status
from outlay.sandbox.pool import DEFAULT_IMPORTS, Sandbox, isolation

__all__ = [
    "DEFAULT_IMPORTS",
    "Limits",
    "Outcome",
    "Sandbox",
    "SandboxError",
    "Status",
    "isolation",
]
