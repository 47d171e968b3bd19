"""OpenTelemetry traces of single requests: when each step began and ended, sent to a collector as OTLP over HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from contract.command import UsageError

SERVICE = "bert-on-triton"


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """Where traces go, and of which requests."""

    trace_url: str | None = None
    """Collector's OTLP/HTTP address, as http://localhost:4318/v1/traces; without it nothing is traced."""
    trace_rate: int = 1000
    """One request in so many is traced; 1 traces all."""

    def __post_init__(self) -> None:
        if self.trace_url is not None and (not self.trace_url.startswith(("http://", "https://")) or "," in self.trace_url):
            raise UsageError(f"--trace-url is {self.trace_url!r}; an http:// or https:// address is needed")
        if self.trace_rate < 1:
            raise UsageError(f"--trace-rate is {self.trace_rate}; it must be at least 1")

    def arguments(self) -> list[str]:
        """tritonserver's own flags for it."""
        if self.trace_url is None:
            return []
        settings = (
            "mode=opentelemetry",
            "level=TIMESTAMPS",
            f"rate={self.trace_rate}",
            f"opentelemetry,url={self.trace_url}",
            f"opentelemetry,resource=service.name={SERVICE}",
        )
        return [f"--trace-config={setting}" for setting in settings]
