"""Identifiers of requests and reservations: unique, and no secrets.

`secrets` asks the system each time, which lets other threads run in the middle of a request; these
come from a generator that the system seeds once a process.
"""

from __future__ import annotations

import os
import random

_random = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def request_id() -> str:
    """For one request of a caller."""
    return f"req_{_random.getrandbits(96):024x}"


def reservation_id() -> str:
    """For one reservation."""
    return f"{_random.getrandbits(128):032x}"
