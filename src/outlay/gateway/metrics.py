"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from outlay.gateway.store.books import Charge, Grant

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The gateway's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "outlay_requests", "Requests", ["endpoint", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "outlay_request_seconds",
            "Time of a request",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "outlay_tokens", "Tokens charged", ["model", "kind"], registry=registry
        )
        self.nanousd = Counter(
            "outlay_nanousd", "Nano-dollars charged", ["model"], registry=registry
        )
        self.unknown = Counter(
            "outlay_unknown", "Attempts charged in full", ["model"], registry=registry
        )
        self.refusals = Counter(
            "outlay_refusals", "Requests not admitted", ["kind"], registry=registry
        )
        self.failures = Counter(
            "outlay_upstream_failures", "Failed attempts", ["upstream"], registry=registry
        )
        self.overruns = Counter(
            "outlay_overruns", "Answers above what was allowed", ["upstream"], registry=registry
        )
        self.store_errors = Counter(
            "outlay_store_errors", "Failures of the database", registry=registry
        )
        self.policies = Counter(
            "outlay_policies", "Requests under a policy", ["policy", "status"], registry=registry
        )
        self.in_flight = Gauge(
            "outlay_reservations", "Reservations in flight", ["state"], registry=registry
        )

        # A look-up of labels costs more than counting.
        self._seen: dict[tuple[str, str, str], Counter] = {}
        self._charged: dict[str, tuple[Counter, ...]] = {}

    def request(self, endpoint: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        labels = (endpoint, route, str(status))
        if labels not in self._seen:
            self._seen[labels] = self.requests.labels(*labels)
        self._seen[labels].inc()
        self.seconds.labels(endpoint).observe(seconds)

    def charged(self, model: str, charge: Charge, grant: Grant) -> None:
        """Count a settlement."""
        if charge.full:
            self.unknown.labels(model).inc()
            self.tokens.labels(model, "unknown").inc(grant.tokens)
            self.nanousd.labels(model).inc(grant.nanousd)
            return
        if model not in self._charged:
            kinds = [self.tokens.labels(model, kind) for kind in ("prompt", "output")]
            self._charged[model] = (*kinds, self.nanousd.labels(model))
        used = (charge.prompt, charge.output, charge.nanousd)
        for counter, number in zip(self._charged[model], used, strict=True):
            counter.inc(number)
