"""Real text to audit, and the matching heads and verifiers that were trained on it.

`python -m outlay.testbeds.coin --out DIR` makes what is shipped in `heads/`.
"""

from outlay.testbeds.coin.traces import SOURCES, Trace, pieces, traces

__all__ = ["SOURCES", "Trace", "pieces", "traces"]
