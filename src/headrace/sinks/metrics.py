"""A run's events as Prometheus metrics, in the base units that Prometheus asks for; docs/sinks.md lists them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from headrace.sinks.points import point_of
from headrace.sinks.sink import Event

_STEP_BUCKETS_SEC = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_OWN_GAUGES = ("train/loss", "train/lr", "train/grad_norm", "train/epoch", "train/samples")
_PARTS = tuple(
    f"time/{part}_sec" for part in ("wait", "copy", "compute", "communication", "guard", "checkpoint", "rest")
)
_OF_COMPUTE = ("time/forward_sec", "time/backward_sec", "time/optimizer_sec")
_METERS = (("items", "items"), ("bytes", "bytes"), ("busy_sec", "busy_seconds"), ("wait_sec", "wait_seconds"))


_HOST = {
    "cpu": ("host_cpu_ratio", "Share of all processors that was busy"),
    "memory_used_bytes": ("host_memory_used_bytes", "Memory of the machine in use"),
    "disk_read_bytes_per_sec": ("host_disk_read_bytes_per_second", "Read from all disks"),
    "disk_written_bytes_per_sec": ("host_disk_written_bytes_per_second", "Written to all disks"),
    "network_received_bytes_per_sec": ("host_network_received_bytes_per_second", "Received, loopback left out"),
    "network_sent_bytes_per_sec": ("host_network_sent_bytes_per_second", "Sent, loopback left out"),
}
_GPUS = {
    "gpu_running": ("gpu_running_ratio", "Share of the time in which some kernel ran, which is no efficiency"),
    "gpu_power_watts": ("gpu_power_watts", "Power of a GPU"),
    "gpu_memory_used_bytes": ("gpu_memory_used_bytes", "Memory of a GPU in use"),
}


class Metrics:
    """Follows the events of one process's run. A gauge of what is not known yet is NaN."""

    def __init__(self, registry: CollectorRegistry, run: str) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            made = Gauge(f"headrace_{name}", text, labels, registry=registry)
            if not labels:
                made.set(math.nan)  # else it would say 0 before anything is known
            return made

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"headrace_{name}", text, labels, registry=registry)

        self._info = Info("headrace_run", "What runs", registry=registry)
        self._run = run
        self._info.info({"run": run})
        self._planned = gauge("planned_steps", "Steps that the run is to have in all; NaN where it is not known")
        self._world_size = gauge("world_size", "Processes of the run")
        self._step = gauge("step", "Completed steps of the run, earlier starts included")
        self._step_time = gauge("last_step_timestamp_seconds", "When the latest step ended, in Unix time")
        self._epoch = gauge("epoch", "Passes over the data that are complete")
        self._loss = gauge("loss", "Mean loss of the latest step over the global batch")
        self._lr = gauge("learning_rate", "Learning rate of the latest step")
        self._norm = gauge("gradient_norm", "Norm of all gradients of the latest step, where it is measured")
        self._metric = gauge("metric", "A metric of the latest step", "name")
        self._value = gauge("step_value", "Any other number of the latest step, by its name in the record", "name")
        self._rank_seconds = gauge("rank_step_seconds", "A rank's own time a step, by the guards", "rank", "statistic")
        self._evaluation = gauge("evaluation", "Loss and metrics of the latest evaluation", "name")
        self._checkpoint_step = gauge("checkpoint_step", "Step of the latest checkpoint")
        self._checkpoint_bytes = gauge("checkpoint_bytes", "Size of the latest checkpoint")
        self._threads = gauge("feed_threads", "Threads of a stage of the feed", "stage")
        self._steps = counter("steps", "Steps that this process made")
        self._samples = counter("samples", "Samples of these steps over all ranks")
        self._seconds = counter("step_part_seconds", "Time of these steps by where it went", "part")
        self._step_seconds = Histogram(
            "headrace_step_seconds", "Wall time of a step", buckets=_STEP_BUCKETS_SEC, registry=registry
        )
        self._checkpoints = counter("checkpoints", "Checkpoints that were committed")
        self._checkpoint_seconds = counter("checkpoint_write_seconds", "Time in which checkpoints were written")
        self._evaluation_seconds = counter("evaluation_seconds", "Time of evaluations")
        self._guards = counter("guard_findings", "What the guards found", "guard")
        self._alarms = counter("alarms", "Alarms that rang", "rule")
        self._restarts = counter("loader_restarts", "Processes of the loader that were replaced")
        self._stages = {
            key: counter(f"feed_{name}", f"A stage of the feed: its {name.replace('_', ' ')}", "stage")
            for key, name in _METERS
        }
        self._lost = counter("feed_lost_samples", "Samples that were skipped, dropped, or padded with", "how")
        self._host = {key: gauge(name, text) for key, (name, text) in _HOST.items()}
        self._gpus = {key: gauge(name, text, "gpu") for key, (name, text) in _GPUS.items()}
        self._read: dict[tuple[str, str], float] = {}

    def take(self, event: Event) -> None:
        """The next event of the run."""
        follow = getattr(self, f"_{event['event']}_happened", None)
        if follow is not None:
            follow(event)

    def _start_happened(self, event: Event) -> None:
        told = {name: str(event[name]) for name in ("mesh", "precision", "attempt") if event.get(name) is not None}
        told |= {f"{name}_version": str(text) for name, text in (event.get("versions") or {}).items()}
        self._info.info({"run": self._run, "host": str((event.get("machine") or {}).get("host", "")), **told})
        _set(self._planned, event.get("total_steps"))
        _set(self._world_size, event.get("world_size"))
        _set(self._step, event.get("step"))
        self._read.clear()  # meters of the feed begin anew

    def _step_happened(self, event: Event) -> None:
        point = point_of(event)
        values = {} if point is None else dict(point.values)
        metrics = event.get("metrics") or {}
        parts = _parts(values)
        _set(self._step, event.get("step"))
        _set(self._step_time, event.get("time"))
        _set(self._epoch, event.get("epoch"))
        _set(self._loss, event.get("loss"))
        _set(self._lr, event.get("lr"))
        _set(self._norm, event.get("grad_norm"))
        self._steps.inc()
        self._samples.inc(values.get("train/samples", 0.0))
        for name, value in values.items():
            short = name.partition("/")[2]
            if name == "time/step_sec":
                self._step_seconds.observe(value)
            elif name in parts:
                self._seconds.labels(short.removesuffix("_sec")).inc(max(0.0, value))
            elif name in _PARTS + _OF_COMPUTE:
                continue  # counted within another part, or by its own
            elif short in metrics:
                self._metric.labels(short).set(value)
            elif name not in _OWN_GAUGES:
                self._value.labels(short).set(value)

    def _evaluate_happened(self, event: Event) -> None:
        point = point_of(event)
        for name, value in ({} if point is None else point.values).items():
            short = name.partition("/")[2]
            if short == "sec":
                self._evaluation_seconds.inc(max(0.0, value))
            elif short not in ("epoch", "samples"):
                self._evaluation.labels(short).set(value)

    def _checkpoint_happened(self, event: Event) -> None:
        self._checkpoints.inc()
        self._checkpoint_seconds.inc(max(0.0, event.get("sec") or 0.0))
        _set(self._checkpoint_step, event.get("step"))
        _set(self._checkpoint_bytes, event.get("bytes"))

    def _feed_happened(self, event: Event) -> None:
        for stage, meter in (event.get("stages") or {}).items():
            for key, counter in self._stages.items():
                counter.labels(stage).inc(self._gained(stage, key, meter))
            if meter.get("threads") is not None:
                self._threads.labels(stage).set(meter["threads"])
        for how in ("skipped", "dropped", "padded"):
            self._lost.labels(how).inc(self._gained("", how, event))

    def _host_happened(self, event: Event) -> None:
        for key, shown in self._host.items():
            _set(shown, event.get(key))
        for key, shown in self._gpus.items():
            for number, value in enumerate(event.get(key) or ()):
                _set(shown.labels(str(number)), value)

    def _ranks_happened(self, event: Event) -> None:
        for key, statistic in (("p50_sec", "p50"), ("p90_sec", "p90")):
            for rank, sec in enumerate(event.get(key) or ()):
                _set(self._rank_seconds.labels(str(rank), statistic), sec)

    def _guard_happened(self, event: Event) -> None:
        self._guards.labels(str(event.get("guard"))).inc()

    def _alarm_happened(self, event: Event) -> None:
        self._alarms.labels(str(event.get("rule"))).inc()

    def _loader_restart_happened(self, event: Event) -> None:
        self._restarts.inc()

    def _gained(self, stage: str, key: str, meter: Mapping[str, Any]) -> float:
        """What a meter counted since the last reading; it begins anew with a loader."""
        now = float(meter.get(key) or 0)
        before = self._read.get((stage, key), 0.0)
        self._read[stage, key] = now
        return now - before if now >= before else now


def _parts(values: Mapping[str, float]) -> tuple[str, ...]:
    """Those of a step's times that add up to it: compute, or its own parts where all of them are known."""
    if all(part in values for part in _OF_COMPUTE):
        return (*(part for part in _PARTS if part != "time/compute_sec"), *_OF_COMPUTE)
    return _PARTS


def _set(gauge: Gauge, value: Any) -> None:
    if isinstance(value, int | float):
        gauge.set(value)
