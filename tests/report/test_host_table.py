"""What the machine was busy with, on the page: mean and largest of what the run looked at."""

from run_files import RunFile, write_run

from headrace.report import write_page
from headrace.report.host import host_table

READINGS = [
    {"cpu": 0.5, "memory_used_bytes": 4_000_000_000, "gpu_running": [0.2, None], "disk_read_bytes_per_sec": None},
    {"cpu": 0.9, "memory_used_bytes": 2_000_000_000, "gpu_running": [0.4, 0.9], "disk_read_bytes_per_sec": 1e6},
]


def test_mean_and_largest_of_what_is_known():
    found = host_table(READINGS)
    assert found["cpu"] == {"mean": 0.7, "largest": 0.9}
    assert found["gpu_running"]["mean"] == 0.5
    assert found["disk_read_bytes_per_sec"] == {"mean": 1e6, "largest": 1e6}
    assert "network_sent_bytes_per_sec" not in found


def test_the_page_has_the_machine_where_the_run_looked_at_it(tmp_path):
    write_run(tmp_path, num_steps=20, crash_at=None)
    assert "The machine" not in write_page(tmp_path).read_text()
    for reading in READINGS:
        RunFile(tmp_path).write("host", **reading)
    page = write_page(tmp_path).read_text()
    assert "The machine" in page
    assert "processors busy" in page
    assert "received from the network" not in page
