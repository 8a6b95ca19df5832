"""The readings of a mount's status for Prometheus, over HTTP on an address of the user's choice.

The only importer of prometheus_client, which is optional: importing this fails without it. The
client library's own default registry, with numbers of the process, is not used: what is exported
is what `status.json` shows, and where the mount is.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from epochfs.config import Address
from epochfs.counters import readings
from epochfs.errors import MountFailure
from epochfs.session.status import StatusSource

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class _Readings(Collector):
    """Makes metrics of a status at each scrape."""

    def __init__(self, source: StatusSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        status = self._source()
        names = ("version", "registry", "mountpoint")
        info = GaugeMetricFamily("epochfs_mount", "What is mounted, and where.", labels=names)
        info.add_metric([status.version, status.registry, status.mountpoint], 1)
        yield info
        for reading in readings(status):
            family = _FAMILIES[reading.kind](f"epochfs_{reading.name}", reading.about)
            family.add_metric([], reading.value)
            yield family


def serve(address: Address, source: StatusSource) -> str:
    """Serve the metrics from threads of their own, until the process ends; return their URL.

    Raises MountFailure where the address cannot be listened on.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Readings(source))
    try:
        server, _ = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise MountFailure(
            f"cannot serve metrics on {address}: {error.strerror}: choose another --metrics"
        ) from None
    return f"http://{Address(address.host, server.server_port)}/metrics"
