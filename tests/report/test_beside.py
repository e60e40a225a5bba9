"""What lies beside a run's steps: alarms, paces of ranks, skipped samples; and how the page shows it."""

from __future__ import annotations

import numpy as np
import pytest
from run_files import RunFile

from headrace.errors import StorageError
from headrace.report import write_page
from headrace.report.beside import read_beside


def paced(file, step, *p50_sec):
    file.write("ranks", step=step, p50_sec=list(p50_sec), p90_sec=[2 * sec for sec in p50_sec])


def test_what_lies_in_earlier_parts_of_the_record_is_read_too(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.write("alarm", step=1, rule="loss", message="first")
    file.path.rename(tmp_path / "events-0001.jsonl")
    file.write("alarm", step=9, rule="loss", message="second")
    assert [alarm["message"] for alarm in read_beside(file.path).alarms] == ["first", "second"]


def test_paces_are_those_of_the_history_that_counts(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    paced(file, 100, 0.010, 0.012)
    paced(file, 200, 0.011, 0.090)  # is done again
    file.start(step=150, attempt=1)
    paced(file, 200, 0.013, 0.014)
    paces = read_beside(file.path).paces
    assert paces.num_ranks == 2
    assert paces.steps.tolist() == [100, 200]
    assert paces.p50_sec.tolist() == [[0.010, 0.012], [0.013, 0.014]]
    assert np.array_equal(paces.p90_sec, 2 * paces.p50_sec)


def test_alarms_of_earlier_parts_of_a_long_record_are_there(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.write("alarm", step=1, rule="au", message="low")
    file.path.rename(tmp_path / "events-0001.jsonl")
    file.write("alarm", step=2, rule="disk", message="full")
    assert [alarm["rule"] for alarm in read_beside(file.path).alarms] == ["au", "disk"]


def test_after_a_start_with_other_ranks_only_these_are_compared(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    paced(file, 100, 0.010, 0.012, 0.010, 0.010)
    file.start(step=100, attempt=1, world_size=2)
    paced(file, 200, 0.010, 0.012)
    assert read_beside(file.path).paces.steps.tolist() == [200]


@pytest.mark.parametrize(
    "fields",
    [
        {"p50_sec": [0.1], "p90_sec": [0.1]},
        {"p50_sec": [0.1, 0.2], "p90_sec": [0.1]},
        {"p50_sec": [0.1, None], "p90_sec": [0.1, 0.2]},
        {"p50_sec": "0.1, 0.2", "p90_sec": None},
    ],
)
def test_paces_that_are_none_are_passed_over(tmp_path, fields):
    file = RunFile(tmp_path)
    file.start()
    file.write("ranks", step=1, **fields)
    assert read_beside(file.path).paces is None
    write_page(tmp_path)


def test_skipped_samples_are_counted_and_the_first_listed(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    folder = tmp_path / "skipped"
    folder.mkdir()
    lines = [f'{{"key": "a/{k}", "reason": "its checksum is another"}}\n' for k in range(50)]
    (folder / "rank10.jsonl").write_text("".join(lines))
    (folder / "rank2.jsonl").write_text('{"key": "<b>", "reason": "no JPEG"}\n{"key": "torn')
    found = read_beside(file.path)
    assert found.num_skipped == 52
    assert len(found.skipped) == 40
    assert [(one.rank, one.key, one.reason) for one in found.skipped[:3]] == [
        ("2", "<b>", "no JPEG"),
        ("2", '{"key": "torn', ""),
        ("10", "a/0", "its checksum is another"),
    ]
    page = write_page(tmp_path).read_text("utf-8")
    assert "52 damaged samples" in page
    assert "&lt;b&gt;" in page
    assert "12 more are in the run's skipped folder." in page


def test_a_run_without_any_of_it_has_nothing_of_it_on_its_page(tmp_path):
    RunFile(tmp_path).start()
    page = write_page(tmp_path).read_text("utf-8")
    assert "Ranks side by side" not in page
    assert "skipped</h2>" not in page


def test_ranks_stand_side_by_side_and_of_many_the_slowest(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    for step in (100, 200):
        paced(file, step, *(0.010 + 0.0001 * rank for rank in range(39)), 0.030)
    page = write_page(tmp_path).read_text("utf-8")
    assert "rank 0 takes 10.0 ms for a step, and rank 39 30.0 ms." in page
    assert "The 16 slowest of 40 ranks." in page
    assert "<td>2.51</td>" in page  # 30 ms to 11.95
    assert "A rank&#x27;s own part of a step" in page


def test_a_list_that_cannot_be_read_is_one_line(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    (tmp_path / "skipped" / "rank0.jsonl").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot read the list of skipped samples in .*skipped: Is a directory"):
        read_beside(file.path)
