"""A watch as Prometheus reads it. Needs `pip install 'bitwright[platform]'`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError

if TYPE_CHECKING:
    from bitwright.drift.watch import Watch

NEEDED = "metrics need prometheus-client: pip install 'bitwright[platform]'"

# name -> (what it says, how it is read off a watch)
_COUNTERS: dict[str, tuple[str, Any]] = {
    "texts": ("Texts seen", lambda watch: watch.seen),
    "windows": ("Windows closed", lambda watch: watch.windows),
    "alarms": ("Alarms raised", lambda watch: len(watch.alarms)),
    "seconds": ("Time that watching took", lambda watch: watch.seconds),
}


def register(watch: "Watch", registry: Any = None) -> None:
    """Add the metrics of a watch to a registry of prometheus_client, by default the global one.

    Raises:
        InputError: prometheus_client is not installed.
    """
    try:
        import prometheus_client
    except ModuleNotFoundError:
        raise InputError(NEEDED) from None
    (prometheus_client.REGISTRY if registry is None else registry).register(_Collector(watch))


class _Collector:
    """Reads a watch when Prometheus asks: nothing is counted twice, and nothing is done in between."""

    def __init__(self, watch: "Watch") -> None:
        self._watch = watch

    def collect(self) -> Iterator[Any]:
        """The metrics, each with the label `model`."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        watch = self._watch
        for name, (told, read) in _COUNTERS.items():
            counter = CounterMetricFamily(f"bitwright_drift_{name}", told, labels=["model"])
            counter.add_metric([watch.name], read(watch))
            yield counter
        drifted = GaugeMetricFamily("bitwright_drift_drifted", "1 if the texts have drifted", labels=["model"])
        drifted.add_metric([watch.name], float(watch.drifted))
        yield drifted
        tables = {"statistic": watch.statistics, "threshold": watch.reference.thresholds}
        for name, values in tables.items():
            gauge = GaugeMetricFamily(
                f"bitwright_drift_{name}", f"The {name} of the last window", labels=["model", "statistic"]
            )
            for statistic, value in values.items():
                gauge.add_metric([watch.name, statistic], value)
            yield gauge

    def describe(self) -> list[Any]:
        """Nothing is asked for at registration."""
        return []
