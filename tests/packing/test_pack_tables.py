"""Tables as sources: rows, files that they name, and what a query selects of them."""

import csv
import json
import os
import subprocess
import sys
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.errors import DamagedError, OptionError, SourceError, TargetError
from headrace.packing.sorting import sorted_strings

ROWS = [{"__key__": f"r{i:03d}", "label": i % 3, "txt": f"row {i}"} for i in range(90)]


def as_csv(path, rows):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def as_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20)


WRITERS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


@pytest.fixture(params=WRITERS)
def table(request, tmp_path):
    """The rows as a table of each kind, by its path."""
    path = tmp_path / "data" / f"rows.{request.param}"
    path.parent.mkdir()
    WRITERS[request.param](path, ROWS)
    return path


def samples_of(url):
    return {sample["__key__"]: sample for sample in hr.open(url)}


def test_a_table_is_packed_row_by_row(table, tmp_path):
    for number, source in enumerate((table, str(table), table.parent)):
        hr.pack(source, tmp_path / f"out{number}", format="mds")
        assert samples_of(tmp_path / f"out{number}") == {row["__key__"]: row for row in ROWS}
    hr.pack(table, tmp_path / "tar", shuffle=False)
    assert [bytes(sample["label"]) for sample in hr.open(tmp_path / "tar")] == [b"%d" % row["label"] for row in ROWS]


# Files that rows name ---------------------------------------------------------------------------------------------


@pytest.fixture(params=WRITERS)
def listing(request, tmp_path, pngs):
    """A table that names an image in each row, by paths of several kinds."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    rows = []
    for i, data in enumerate(pngs[:30]):
        path = folder / "images" / f"{i}.v1.seg.png"
        path.write_bytes(data)
        named = (f"images/{path.name}", str(path), f"images/../images/{path.name}")[i % 3]
        rows.append({"__key__": f"r{i:03d}", "image": named, "label": i})
    path = folder / f"rows.{request.param}"
    WRITERS[request.param](path, rows)
    return path


def test_files_that_rows_name_come_in_their_place(listing, tmp_path, pngs):
    manifest = hr.pack(listing, tmp_path / "out", files="image")
    assert set(manifest.fields) == {"v1.seg.png", "label"}
    assert manifest.fields["v1.seg.png"].image_size == (8, 8)
    assert {key: bytes(sample["v1.seg.png"]) for key, sample in samples_of(tmp_path / "out").items()} == {
        f"r{i:03d}": data for i, data in enumerate(pngs[:30])
    }


def test_a_query_may_choose_the_files(listing, tmp_path):
    pytest.importorskip("duckdb")
    query = "select * from source where label < 7 order by label"
    assert hr.pack(listing, tmp_path / "out", files="image", query=query).samples == 7


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.png", r"names .*gone\.png, which cannot be read: No such file"),
        ("", "the column 'image' must name a file, got ''"),
        ("noextension", "whose name has no extension to name a field by"),
        ("images", "whose name has no extension"),
        ("bad.label", "would be the field 'label', which is there"),
        ("broken.png", r"broken\.png is not an image"),
        ("empty.png", r"empty\.png is empty \(0 bytes\)"),
    ],
)
def test_a_file_that_is_no_good_is_named(tmp_path, name, reason):
    (tmp_path / "images").mkdir()
    for broken, data in (("bad.label", b"x"), ("broken.png", b"no image"), ("empty.png", b"")):
        (tmp_path / broken).write_bytes(data)
    (tmp_path / "good.txt").write_text("fine")
    as_jsonl(tmp_path / "rows.jsonl", [{"image": "good.txt", "label": 1}, {"image": name, "label": 2}])
    with pytest.raises(SourceError, match=reason):
        hr.pack(tmp_path / "rows.jsonl", tmp_path / "out", files="image")
    manifest = hr.pack(tmp_path / "rows.jsonl", tmp_path / "out", files="image", on_error="skip")
    assert (manifest.samples, manifest.skipped) == (1, 1)


def test_a_file_that_changed_is_another_source(listing, tmp_path, make_png):
    hr.pack(listing, tmp_path / "out", files="image")
    (listing.parent / "images" / "3.v1.seg.png").write_bytes(make_png(99))
    with pytest.raises(TargetError, match="another source"):
        hr.pack(listing, tmp_path / "out", files="image")


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        ("rows", {"files": "nope"}, "has no column 'nope' that could name files: it has 'label', 'txt'"),
        ("iterable", {"files": "txt"}, "files is for tables"),
        ("folder", {"files": "txt"}, "files is for tables"),
        ("iterable", {"query": "select 1"}, "a query reads table files"),
        ("rows", {"files": ""}, "files must be text that is not empty"),
        ("rows", {"query": 5}, "query must be text that is not empty"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, images, source, options, reason):
    as_jsonl(tmp_path / "rows.jsonl", ROWS)
    given = {"rows": tmp_path / "rows.jsonl", "iterable": ROWS, "folder": images}[source]
    with pytest.raises((OptionError, SourceError), match=reason):
        hr.pack(given, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_table_among_images_does_not_hide_them(images, tmp_path):
    (images / "labels.csv").write_text("a,b\n1,2\n3,4\n")
    assert hr.pack(images, tmp_path / "out").samples == 61


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.txt"])
def test_an_empty_file_is_said_to_be_empty(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(SourceError, match=rf"{name} is empty \(0 bytes\)"):
        hr.pack(tmp_path / name, tmp_path / "out")


def test_a_broken_line_is_a_broken_sample_wherever_it_is(tmp_path):
    """Also where the file has hardly another one."""
    for number, lines in enumerate(['{"txt": "a"}\n{"txt":\n', '{"txt":\n{"txt": "a"}\n']):
        (tmp_path / "rows.jsonl").write_text(lines)
        with pytest.raises((SourceError, DamagedError), match=r"rows\.jsonl .* JSON"):
            hr.pack(tmp_path / "rows.jsonl", tmp_path / f"out{number}")
        manifest = hr.pack(tmp_path / "rows.jsonl", tmp_path / f"out{number}", on_error="skip")
        assert (manifest.samples, manifest.skipped) == (1, 1)


# Queries ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def query_of():
    """Packs what a query selects."""
    pytest.importorskip("duckdb")
    return lambda source, target, query, **options: hr.pack(source, target, query=query, format="mds", **options)


def test_a_query_chooses_and_makes_columns(table, tmp_path, query_of):
    query = "select __key__, label * 2 as double, upper(txt) as txt from source where label > 0"
    manifest = query_of(table, tmp_path / "out", query)
    assert samples_of(tmp_path / "out") == {
        row["__key__"]: {"__key__": row["__key__"], "double": row["label"] * 2, "txt": row["txt"].upper()}
        for row in ROWS
        if row["label"] > 0
    }
    assert query_of(table, tmp_path / "out", query, workers=1) == manifest


def test_ordered_rows_are_numbered_and_kept_in_their_order(table, tmp_path, query_of):
    query_of(table, tmp_path / "out", "select txt from source order by __key__ desc limit 5", shuffle=False)
    found = [(sample["__key__"], sample["txt"]) for sample in hr.open(tmp_path / "out")]
    assert found == [(f"{i:09d}", f"row {89 - i}") for i in range(5)]


def test_a_database_is_read_and_stays_as_it_is(tmp_path, query_of):
    import duckdb

    with duckdb.connect(str(tmp_path / "data.db")) as connection:
        connection.execute("create table numbers as select i as id, i * 0.5::double as half from range(100) t(i)")
    before = (tmp_path / "data.db").read_bytes()
    for number, name in enumerate(("numbers", "source")):
        query_of(tmp_path / "data.db", tmp_path / f"out{number}", f"select id as __key__, half from {name}")
        assert samples_of(tmp_path / f"out{number}")["7"]["half"] == 3.5
    assert (tmp_path / "data.db").read_bytes() == before


def test_types_of_sql_become_types_of_samples(tmp_path, query_of):
    as_jsonl(tmp_path / "rows.jsonl", ROWS[:1])
    query_of(
        tmp_path / "rows.jsonl",
        tmp_path / "out",
        "select 'k' as __key__, 1.25::decimal(9,2) as exact, date '2024-02-29' as day, [1, 2] as list, "
        "{'a': 1} as struct, 'x'::blob as data, null as nothing, true as yes, 3::hugeint as huge from source",
    )
    sample = hr.open(tmp_path / "out")[0]
    assert sample["exact"] == 1.25
    assert sample["day"] == "2024-02-29"
    assert (sample["list"], sample["struct"], bytes(sample["data"])) == ([1, 2], {"a": 1}, b"x")
    assert (sample["nothing"], sample["yes"], sample["huge"]) == (None, True, 3)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("select * exclude (__key__) from source", "must end with ORDER BY, by which rows are numbered"),
        ("select label, label from source order by 1", "must name each column once"),
        ("delete from source", "must be one SELECT"),
        ("copy (select 1) to 'source.csv'", "must be one SELECT"),
        ("select 1; select 2", "must be one SELECT"),
        ("selec", "is not understood"),
        ("select nope from source order by 1", "does not run: Binder Error"),
        ("select error('no') from source order by 1", "the query failed: .*no"),
        ("select * from read_text('{secret}') order by 1", "does not run: Permission Error"),
        ("select * from '{secret}' order by 1", "does not run"),
        ("select * from read_csv('http://127.0.0.1:1/x.csv') order by 1", "does not run"),
        ("select null as __key__ from source", "`__key__` must be text"),
    ],
)
def test_a_query_that_is_no_good_is_one_line(table, tmp_path, query_of, query, reason):
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    with pytest.raises((OptionError, SourceError), match=reason) as caught:
        query_of(table, tmp_path / "out", query.format(secret=tmp_path / "secret.csv"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_an_order_nothing_that_depends_on_it_is_done(table, tmp_path, query_of):
    for options in ({"shuffle": False}, {"sample": 0.5}, {"dedup": True}):
        with pytest.raises(OptionError, match="must end with ORDER BY: what is kept"):
            query_of(table, tmp_path / "out", "select * from source", **options)


ORDERED = """
select case when i % 7 = 3 then null else (i * 37) % 50 end as number, chr(((i * 31) % 700 + 33)::int) as text,
    [i % 3, null, i] as list, {'a': i % 4, 'b': 'x'} as struct, (i * 77 % 19)::decimal(9, 2) as exact,
    date '2024-01-01' + (i * 13 % 40)::int as day, (i * 41 % 23) / 0.3 as real, i % 2 = 0 as even, i as i
from range(300) t(i)
"""
ORDERS = ["number, i", "number desc nulls first, i desc", "2, i", "text desc, I", "list, i", "struct desc, i"]
ORDERS += ["exact, 6, i", "real, i", "even, day desc, i", "number nulls first, even, i"]


@pytest.mark.parametrize("terms", ORDERS)
def test_rows_are_sorted_as_duckdb_sorts_them(tmp_path, monkeypatch, terms):
    """Though it is done here, with the help of the disk."""
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "data.db")) as connection:
        connection.execute(f"create table numbers as {ORDERED}")
        expected = [row[-1] for row in connection.execute(f"{ORDERED} order by {terms}").fetchall()]
    monkeypatch.setattr("headrace.packing.sorting.MOST_RUNS", 3)
    monkeypatch.setattr("headrace.packing.sql_order.sorted_strings", partial(sorted_strings, memory_bytes=2000))
    query = f"select * from source order by {terms}"
    hr.pack(tmp_path / "data.db", tmp_path / "out", query=query, shuffle=False, format="parquet")
    assert [sample["i"] for sample in hr.open(tmp_path / "out")] == expected
    assert sorted(os.listdir(tmp_path)) == ["data.db", "out"]


@pytest.mark.parametrize(
    "query",
    [
        "select name from source order by id desc",
        "select name from source order by name collate nocase, id",
        "select name from source order by lower(name), id",
        "select name from source order by id desc limit 3",
        "select name from source order by all",
        "select distinct on (lower(name)) name from source order by name",
        "select name as name, id from source order by source.id desc",
        "select min(name) as name from source group by lower(name) order by count(*), 1",
        "select name from loud order by name, id",
    ],
)
def test_what_duckdb_alone_can_sort_it_sorts(tmp_path, query_of, query):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "data.db")) as connection:
        name = "chr((65 + i % 5 + i % 2 * 32)::int)"
        connection.execute(f"create table source as select i as id, {name} as name from range(9) t(i)")
        connection.execute("create table loud (name varchar collate nocase, id bigint)")
        connection.execute("insert into loud select name, id from source")
        expected = connection.execute(query).fetchall()
    query_of(tmp_path / "data.db", tmp_path / "out", query, shuffle=False)
    assert [sample["name"] for sample in hr.open(tmp_path / "out")] == [row[0] for row in expected]


BIG = """
import pathlib, sys
import headrace as hr
query = "select i as __key__, pad, md5(i::text) as hash from source order by hash"
assert hr.pack(sys.argv[1], sys.argv[2], query=query, format="tokens",
               transform=lambda sample: {"tokens": [1, 2, 3]}).samples == 200_000
print(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_a_query_sorts_more_than_its_memory(tmp_path):
    """What memory does not hold lies in files that are gone afterwards."""
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "data.db")) as connection:
        connection.execute("create table numbers as select i, repeat('x', 1500) as pad from range(200000) t(i)")
    done = subprocess.run(
        [sys.executable, "-c", BIG, tmp_path / "data.db", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500
    assert sorted(os.listdir(tmp_path)) == ["data.db", "out"]


def test_a_query_that_needs_too_much_memory_says_so(tmp_path, query_of):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "data.db")) as connection:
        connection.execute("create table numbers as select i, repeat('x', 1500) as pad from range(10) t(i)")
    query = "select sum(len(l)) as n from (select list(pad || j) as l from source, range(40000) t(j)) order by n"
    with pytest.raises((OptionError, SourceError), match="needs more memory than the 200MB that DuckDB may take"):
        query_of(tmp_path / "data.db", tmp_path / "out", query)
    assert sorted(os.listdir(tmp_path)) == ["data.db"]
