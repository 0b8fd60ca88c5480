"""The errors of outlay.

Every error that a user can cause is an `OutlayError`. Its message says what was wrong, with the
numbers, and what to do about it, naming the knob to turn. Each child is also the built-in that
Python programmers expect (`ValueError`, `RuntimeError`, ...), so that generic handlers work.
"""


class OutlayError(Exception):
    """Base of all errors raised by outlay on purpose."""


class BudgetError(OutlayError, ValueError):
    """A budget that cannot be honoured: zero, negative, or below the fixed part of the work."""


class InputError(OutlayError, ValueError):
    """Input that cannot be used: empty, binary, undecodable, out of range, of the wrong shape."""


class ModelError(OutlayError, RuntimeError):
    """A model that cannot be loaded or that misbehaves."""


class CapabilityError(ModelError):
    """A method needs something that this model or server cannot do."""


class EndpointError(ModelError):
    """A remote server failed: unreachable, too slow, cut off, or answering nonsense."""


class DependencyError(OutlayError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""


class ResultsError(OutlayError, RuntimeError):
    """Stored results that cannot be read or do not belong to this run."""
