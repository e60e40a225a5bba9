"""An endpoint that Prometheus scrapes: what the run is at, in a process of its own making.

The numbers live as long as the run's process: counters begin at 0 with each start, as Prometheus expects of them.
`grafana.json` beside this module is a dashboard over these names.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from headrace.errors import OptionError
from headrace.sinks.sink import Event, Memory, Output, need

PORT = 9464

DASHBOARD = Path(__file__).with_name("grafana.json")
"""A dashboard for Grafana, to be imported there; it asks for the Prometheus data source."""


@dataclass(frozen=True, slots=True)
class Prometheus:
    """`http://HOST:PORT/metrics` for Prometheus, while the run goes on. Needs `pip install 'headrace[prometheus]'`.

    Args:
        port: 0 takes any that is free; the record's `sink` event has it.
        host: the address to listen at. Whoever reaches another than the loopback one can read the run's numbers.
    """

    name: ClassVar[str] = "prometheus"
    keeps: ClassVar[bool] = False

    port: int = PORT
    host: str = "127.0.0.1"

    @classmethod
    def of(cls, text: str) -> Prometheus:
        """From `PORT` or `HOST:PORT`, an IPv6 address in brackets."""
        host, colon, port = text.rpartition(":")
        if not port.isdecimal():
            raise OptionError(f"the sink prometheus is given as prometheus:PORT or prometheus:HOST:PORT: got {text!r}")
        return cls(int(port), host.removeprefix("[").removesuffix("]")) if colon else cls(int(port))

    def check(self) -> None:
        """Raise OptionError for an address that is none, or without the library."""
        if not 0 <= self.port <= 65535:
            raise OptionError(f"the port of the sink prometheus must be 0 to 65535: got {self.port}")
        try:
            ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError as err:
            raise OptionError(
                "the host of the sink prometheus must be localhost or an IP address, as 0.0.0.0 for all of this "
                f"machine's: got {self.host!r}"
            ) from err
        need("prometheus_client", self.name)

    def target(self, run_dir: Path) -> str:
        """The URL."""
        return _url(self.host, self.port)

    def open(self, run_dir: Path, memory: Memory) -> Output:
        """Listen. Raises OSError where the port is taken."""
        return _Endpoint(self.host, self.port, run_dir.resolve().name)


class _Endpoint:
    held = 0

    def __init__(self, host: str, port: int, run: str) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

        from headrace.sinks.metrics import Metrics

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._metrics = Metrics(registry, run)
        self._server, self._thread = start_http_server(port, host, registry)
        self.where = _url(host, self._server.server_port)
        self.memory: Memory = {}

    def take(self, event: Event) -> None:
        self._metrics.take(event)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self, outcome: str | None) -> None:
        """Free the port."""
        self.abandon()

    def abandon(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"
