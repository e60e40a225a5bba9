"""Every fault in every place, in the middle of an epoch: no batch is lost, doubled, changed or moved (law 7)."""

import subprocess
from collections import Counter

import feeding
import places
import pytest
from matrix import CELLS, MATRIX
from striking import STOPS, Run, answering, flip_each, flip_middle
from table import PAGE, cells_of


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "packed"
    feeding.pack(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(packed):
    with feeding.loader(packed) as loader:
        return feeding.Fed().take(loader).batches


@pytest.fixture(scope="session")
def packed_on_s3(packed, s3_strict_server):
    places.upload(packed, s3_strict_server.port)
    return s3_strict_server.port


@pytest.fixture
def roomy_disk(small_disk):
    """A file system of 4 MiB."""
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    return small_disk


@pytest.fixture
def place(request, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_STORAGE_TIMEOUT_SEC", str(places.TIMEOUT_SEC))
    with places.opened(request.param, packed, tmp_path, request) as place:
        yield place


@pytest.mark.parametrize(("fault", "place"), CELLS, indirect=["place"])
def test_a_fault_costs_no_batch(fault, place, undisturbed, request, record_property):
    scenario, outcome = MATRIX[fault][place.name]
    result = scenario(Run(place, request))
    lost, doubled = differences(result.batches, undisturbed)
    record_property("cell", (fault, place.name, result.outcome, result.recover_sec, lost, doubled))
    assert (result.outcome, lost, doubled) == (outcome, 0, 0)
    assert result.batches == undisturbed, "another order"
    assert "\n" not in result.error
    assert bool(result.error) == (outcome == STOPS and fault != "killed trainer")


def differences(found, expected):
    """How many batches were lost, and how many came that should not have."""
    found, expected = (Counter(map(str, batches)) for batches in (found, expected))
    return (expected - found).total(), (found - expected).total()


@pytest.mark.parametrize("place", places.NAMES, indirect=True)
def test_what_is_damaged_for_good_is_left_out_by_name_where_it_may(place, undisturbed):
    damage = flip_each if place.name == "local" else answering(flip_middle)
    with place.loader(on_error="skip") as loader:
        found = feeding.Fed().take(loader, {feeding.MIDDLE: lambda: damage(place)}).batches
        skipped = {one.key for one in loader.skipped}
    assert skipped
    assert found == [[sample for sample in batch if sample[0] not in skipped] for batch in undisturbed]


def test_the_page_has_each_cell_with_its_outcome():
    told, numbers = cells_of(PAGE.read_text("utf-8"))
    assert told == {(fault, place): MATRIX[fault][place][1] for fault, place in CELLS}
    assert numbers == {"0"}, "batches lost and duplicated"
