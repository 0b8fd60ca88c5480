"""At the door: callers without a key that is known are turned away at once.

Before the body is read, without a task, a lock or the database, with an answer that is made once:
whoever tries keys must cost less than whoever has one. What is turned away is counted; the log says
once in ten seconds how many there were.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from outlay.gateway.config import Endpoint
from outlay.gateway.ids import request_id
from outlay.gateway.metrics import Metrics
from outlay.gateway.problems import no_key
from outlay.gateway.wire import JSON, Send

log = logging.getLogger("outlay.gateway")
_QUIET = 10.0  # seconds between lines of the log
_BODY = no_key().body()
_HEAD = [
    (b"content-type", JSON.encode()),
    (b"content-length", str(len(_BODY)).encode()),
    *((name.encode(), value.encode()) for name, value in no_key().headers.items()),
]


@dataclass
class Door:
    """Turns callers away.

    Args:
        metrics: where they are counted.
    """

    metrics: Metrics
    _count: int = 0
    _logged: float = 0.0

    async def refuse(self, endpoint: Endpoint, send: Send) -> None:
        """Answer 401."""
        began = time.perf_counter()
        head = [(b"x-request-id", request_id().encode()), *_HEAD]
        await send({"type": "http.response.start", "status": 401, "headers": head})
        await send({"type": "http.response.body", "body": _BODY})
        self._count += 1
        now = time.perf_counter()
        self.metrics.request(endpoint, "", 401, now - began)
        if now - self._logged > _QUIET:
            log.warning("callers without a valid key", extra={"turned_away": self._count})
            self._logged, self._count = now, 0
