"""What a machine is busy with: on this one, and by files of a kernel that are made up."""

import sys
import types

import pytest

from headrace.telemetry import HostMeter
from headrace.telemetry.host import counters, memory, rates
from waiting import wait_for

STAT = "cpu  {busy} 0 0 {idle} 100 0 0 0 0 0\n"
DISKS = """   8 0 sda 1 0 {read} 0 1 0 {written} 0 0 0 0
   8 1 sda1 1 0 {read} 0 1 0 {written} 0 0 0 0
 253 0 dm-0 1 0 {read} 0 1 0 {written} 0 0 0 0
   7 0 loop0 1 0 9999 0 1 0 9999 0 0 0 0
"""
NVMES = """ 259 0 nvme0n1 1 0 {0} 0 1 0 0 0 0 0 0
 259 1 nvme0n1p1 1 0 {0} 0 1 0 0 0 0 0 0
 259 2 nvme0n10 1 0 {1} 0 1 0 0 0 0 0 0
   8 0 sda 1 0 {2} 0 1 0 0 0 0 0 0
   8 9 sda10 1 0 {2} 0 1 0 0 0 0 0 0
  65 0 sdaa 1 0 {3} 0 1 0 0 0 0 0 0
"""
NETWORK = """Inter-|   Receive  |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier
    lo: 5000 1 0 0 0 0 0 0 5000 1 0 0 0 0 0 0
  eth0: {received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0
"""


def made_up(proc, **numbers):
    (proc / "net").mkdir(exist_ok=True)
    (proc / "stat").write_text(STAT.format(**numbers))
    (proc / "diskstats").write_text(DISKS.format(**numbers))
    (proc / "net" / "dev").write_text(NETWORK.format(**numbers))


def test_rates_are_what_was_added_over_the_time_each_disk_once_and_loopback_never(tmp_path):
    made_up(tmp_path, busy=100, idle=100, read=0, written=10, received=1_000, sent=0)
    before = counters(tmp_path)
    made_up(tmp_path, busy=130, idle=110, read=40, written=10, received=5_000, sent=600)
    assert rates(before, counters(tmp_path), 2.0) == {
        "cpu": pytest.approx(0.75),
        "disk_read_bytes_per_sec": 40 * 512 / 2,
        "disk_written_bytes_per_sec": 0,
        "network_received_bytes_per_sec": 2_000,
        "network_sent_bytes_per_sec": 300,
    }


def test_partitions_are_told_from_disks_whose_names_begin_as_others_do(tmp_path):
    made_up(tmp_path, busy=1, idle=1, read=0, written=0, received=0, sent=0)
    (tmp_path / "diskstats").write_text(NVMES.format(0, 0, 0, 0))
    before = counters(tmp_path)
    (tmp_path / "diskstats").write_text(NVMES.format(1, 20, 300, 4000))
    assert rates(before, counters(tmp_path), 1.0)["disk_read_bytes_per_sec"] == 4321 * 512


def test_devices_that_come_or_go_or_count_anew_and_those_within_others_count_for_nothing(tmp_path):
    made_up(tmp_path, busy=1, idle=1, read=0, written=0, received=0, sent=0)

    def counted(**received):
        lines = [f"{name}: {count} 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0" for name, count in received.items()]
        (tmp_path / "net" / "dev").write_text("\n".join(["", "", *lines]))
        return counters(tmp_path)

    before = counted(eth0=1_000, usb0=70_000, ib0=5_000, veth12=0, docker0=0, bond0=0, **{"br-1a2b": 0, "eth0.7": 0})
    after = counted(eth0=1_500, usb1=80_000, ib0=10, veth12=500, docker0=500, bond0=500, **{"br-1a2b": 1, "eth0.7": 1})
    assert rates(before, after, 1.0)["network_received_bytes_per_sec"] == 500


def test_what_a_kernel_does_not_say_is_not_known(tmp_path):
    (tmp_path / "stat").write_text(STAT.format(busy=1, idle=1))
    found = rates(counters(tmp_path), counters(tmp_path), 1.0)
    assert set(found.values()) == {None}


def test_a_meter_writes_what_this_machine_does():
    events = []
    with HostMeter(lambda event, **fields: events.append((event, fields)), every_sec=0.02):
        wait_for(lambda: len(events) >= 3, "three readings")
    count = len(events)
    for event, fields in events:
        assert event == "host"
        assert fields["cpu"] is None or 0 <= fields["cpu"] <= 1
        assert 0 < fields["process_bytes"] <= fields["memory_used_bytes"] + fields["process_bytes"]
    assert memory()["memory_used_bytes"] > 0
    assert len(events) == count, "it has ended"


def test_of_gpus_each_number_is_asked_for_and_one_that_is_refused_is_unknown(monkeypatch):
    class NVMLError(Exception):
        pass

    def refuse(device):
        raise NVMLError("not supported")

    nvml = types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda device: types.SimpleNamespace(gpu=50 + device),
        nvmlDeviceGetPowerUsage=refuse,
        nvmlDeviceGetMemoryInfo=lambda device: types.SimpleNamespace(used=1 << 30),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    events = []
    with HostMeter(lambda _, **fields: events.append(fields), every_sec=0.02):
        wait_for(lambda: events, "a reading")
    assert events[0]["gpu_running"] == [0.5, 0.51]
    assert events[0]["gpu_power_watts"] == [None, None]
    assert events[0]["gpu_memory_used_bytes"] == [1 << 30] * 2
