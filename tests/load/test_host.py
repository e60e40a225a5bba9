"""How much memory a loader may count on, here and in a container."""

import pytest

from headrace.load.host import available_memory_bytes

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """A machine with 16 GiB to give, and a container's files as the kernel writes them."""
    (tmp_path / "meminfo").write_text(
        f"MemTotal: {32 * GIB >> 10} kB\nMemAvailable:   {16 * GIB >> 10} kB\nHugePages_Total: 0\n"
    )

    def container(limit, used=0, cached=0):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text(
            f"anon 1\nactive_file {cached // 4}\ninactive_file {cached - cached // 4}\n"
        )

    container.available = lambda: available_memory_bytes(tmp_path / "meminfo", tmp_path)
    return container


def test_without_a_limit_it_is_what_the_kernel_says(machine):
    assert machine.available() == 16 * GIB
    machine("max")
    assert machine.available() == 16 * GIB


def test_a_container_s_limit_counts_but_not_the_page_cache_that_fills_it(machine):
    machine(8 * GIB, used=3 * GIB)
    assert machine.available() == 5 * GIB
    machine(8 * GIB, used=8 * GIB, cached=6 * GIB)
    assert machine.available() == 6 * GIB
    machine(64 * GIB, used=8 * GIB)
    assert machine.available() == 16 * GIB
    machine(1 * GIB, used=2 * GIB)
    assert machine.available() == 0


def test_this_machine_has_some():
    assert available_memory_bytes() > 0
