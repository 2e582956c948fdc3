"""What the service counts while it runs, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service; a process may hold several services."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ensuite_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ensuite_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "ensuite_batch_size",
            "Histories scored in one call of the model.",
            buckets=SIZES,
            registry=self.registry,
        )
        self.recommendations = Counter(
            "ensuite_recommendations", "Lists recommended by the model.", registry=self.registry
        )
        self.fallbacks = Counter(
            "ensuite_fallbacks",
            "Requests that the model did not answer, with a fallback list or an error.",
            ["reason"],
            registry=self.registry,
        )
        self.unknown_items = Counter(
            "ensuite_unknown_items",
            "Items of histories that the model does not know.",
            registry=self.registry,
        )
        self.events = Counter(
            "ensuite_events", "Events sent, new or repeated.", ["what"], registry=self.registry
        )
        self.store_errors = Counter(
            "ensuite_store_errors",
            "Calls that the event store failed.",
            ["operation"],
            registry=self.registry,
        )
        self.swaps = Counter(
            "ensuite_model_swaps", "Models put in the place of others.", ["result"], registry=self.registry
        )
        self.model = Gauge(
            "ensuite_model_info",
            "1 for the model that serves.",
            ["run", "system", "version"],
            registry=self.registry,
        )
        self.new_items = Gauge(
            "ensuite_new_items", "Items put after the training.", ["state"], registry=self.registry
        )

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
