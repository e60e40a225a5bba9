"""CSV tables: records and cells as RFC 4180 has them, types of columns, damaged records, and which files are tables."""

import csv
import gzip
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from records_reading import (
    check_never_silent,
    check_reading,
    find,
    flipped,
    reread,
    samples_of,
    scan,
    scan_or_error,
)

import headrace as hr
from headrace.errors import DamagedError, DatasetError, ManifestError
from headrace.formats.csv import CSV, join_fields
from headrace.formats.csv.cells import DELIMITERS, CellError, kind_of, record_ends, split_record, wider
from headrace.formats.fields import Field
from headrace.formats.records.lines import line_ends

CELLS = st.text(st.sampled_from(list('ab ",;\t|\n0é.-')), max_size=8)
TEXT = b'id,text,score\r\n1,"a ""b"", c\nd",0.5\r\n2,plain,1\r\n3,,\r\n'


def write(path, content):
    path.write_bytes(content)
    return path


def to_csv(rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, end="\r\n"):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return file.getvalue().encode()


@given(
    st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=6),
    st.sampled_from(DELIMITERS),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\r\n", "\n"]),
)
def test_what_the_csv_module_writes_comes_back(tmp_path_factory, rows, delimiter, quoting, end):
    """Cells with delimiters, quotes and line ends in them, by every delimiter, plain and packed."""
    folder = tmp_path_factory.mktemp("csv")
    content = to_csv([["x", "y", "z"], *rows], delimiter, quoting, end)
    for name, stored in (("a.csv", content), ("a.csv.gz", gzip.compress(content))):
        index, _ = scan(CSV, write(folder / name, stored))
        samples = check_reading(CSV, index, stored)
        # The delimiter that gives the first two records most cells may be another one, if the cells are like that.
        if [*index.fields] == ["x", "y", "z"]:
            kinds = {column: field.type for column, field in index.fields.items()}
            assert [[one["__key__"], *map(one.get, "xyz")] for one in samples] == [
                [f"a:{i}", *(typed(kinds[column], cell) for column, cell in zip("xyz", row, strict=True))]
                for i, row in enumerate(rows)
            ]


def typed(kind, cell):
    if kind == "str":
        return cell
    return {"int": int, "float": float, "null": str}[kind](cell) if cell else None


@given(st.text(st.sampled_from('ab",'), max_size=12), st.sampled_from(["", "\n", "\r\n"]))
@example('"a', "")
@example('a"b"c,"d"', "\n")
@example('"a"b', "")
def test_a_record_is_split_as_the_csv_module_does(text, end):
    """Or refused, where that one says nothing about quotes that are not right."""
    try:
        cells = split_record(text + end, ",")
    except CellError:
        return
    assert cells == (next(csv.reader([text]), None) or [""])


@given(st.lists(st.lists(CELLS, min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 60))
def test_records_end_where_they_end_wherever_the_block_does(rows, cut):
    """What is open at the end of a block is given back, and goes on with the next one."""
    content = to_csv(rows, end="\n")
    ends, is_open = record_ends(content, line_ends(content), ",")
    assert not is_open
    assert len(ends) == len(rows)
    lines = content[:cut].rfind(b"\n") + 1
    if lines:
        part, part_open = record_ends(content[:lines], line_ends(content[:lines]), ",")
        assert part.tolist() == [end for end in ends.tolist() if end <= lines]
        assert part_open == (lines not in ends.tolist())


def test_records_longer_than_what_is_read_at_a_time_are_found(tmp_path):
    rows = [[str(i), "line\n" * (i * 7919 % 200_000), "x"] for i in range(30)]
    content = to_csv([["i", "text", "x"], *rows])
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    assert [[str(one["i"]), one["text"], one["x"]] for one in samples_of(index, content)] == rows


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2", "0"], "int"),
        (["1", "", "3"], "int"),
        (["9007199254740992", "-9007199254740992"], "int"),
        (["9007199254740993", "1"], "wide"),
        (["9223372036854775807", "-9223372036854775808"], "wide"),
        (["9007199254740992", "0.5"], "float"),
        (["9007199254740993", "0.5"], "str"),
        (["1" + "0" * 400, "0.5"], "str"),
        (["1e400", "0.5"], "str"),
        (["1e300", "1e-400"], "float"),
        (["9223372036854775808"], "str"),
        (["1", "2.5", "-.5", "1e-3", "3."], "float"),
        (["1.0", "nan", "-inf", ""], "float"),
        (["", ""], "null"),
        (["007"], "str"),
        (["+1"], "str"),
        (["1 "], "str"),
        (["1_000"], "str"),
        (["٣"], "str"),
        (["true"], "str"),
        (["1\0" + "2"], "str"),
        (["1", "a"], "str"),
        (["1\n2"], "str"),
        (["infinity"], "str"),
        (["-"], "str"),
        (["."], "str"),
    ],
)
def test_a_column_is_of_numbers_if_all_its_cells_are(cells, kind):
    assert kind_of(cells) == kind


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=1))
def test_whole_numbers_come_back_as_they_were(numbers):
    cells = ["" if number is None else str(number) for number in numbers]
    is_wide = any(number is not None and int(float(number)) != number for number in numbers)
    assert kind_of(cells) == ("wide" if is_wide else "int" if any(cells) else "null")


@given(st.lists(st.floats() | st.none(), min_size=1))
def test_numbers_come_back_as_they_were(numbers):
    cells = ["" if number is None else repr(number) for number in numbers]
    assert kind_of(cells) in ("float", "null")


def test_kinds_of_parts_make_that_of_the_whole():
    order = ["null", "int", "float", "str"]
    for i, one in enumerate(order):
        for j, other in enumerate(order):
            assert wider(one, other) == order[max(i, j)]
        assert wider(one, "wide") == wider("wide", one) == ["wide", "wide", "str", "str"][i]


def test_types_follow_from_all_records_and_empty_cells_are_none(tmp_path):
    content = b"i,f,s,e,__key__\n1,0.5,x,,one\n,2,,,two\n3,,y,,\n"
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    assert index.fields == {
        "i": Field("int", "int64", nullable=True),
        "f": Field("float", "float64", nullable=True),
        "s": Field("str"),
        "e": Field("null", nullable=True),
    }
    assert check_reading(CSV, index, content) == [
        {"__key__": "one", "i": 1, "f": 0.5, "s": "x", "e": None},
        {"__key__": "two", "i": None, "f": 2.0, "s": "", "e": None},
        {"__key__": "a:2", "i": 3, "f": None, "s": "y", "e": None},
    ]


@pytest.mark.parametrize(
    ("whole", "values"),
    [
        (Field("float", "float64"), [1.0, None]),
        (Field("str"), ["1", ""]),
        (Field("json"), ["1", ""]),
        (Field("int", "int64"), [1, None]),
        (Field("null"), [1, None]),
    ],
)
def test_a_column_is_read_as_the_dataset_has_it(tmp_path, whole, values):
    """A column of whole numbers, and what it is in the other files of the dataset."""
    content = b"x,y\n1,a\n,b\n"
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    found = [one["x"] for one in samples_of(index.read_as({"x": whole}), content)]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Field("int", "int64"), Field("float", "float64"), Field("float", "float64")),
        (Field("int", "int64", nullable=True), Field("str"), Field("str")),
        (Field("null", nullable=True), Field("int", "int64"), Field("int", "int64", nullable=True)),
        (Field("str"), Field("null", nullable=True), Field("str")),
        (Field("int", "int64"), Field("int", "int64", wide=True), Field("int", "int64", wide=True)),
        (Field("float", "float64"), Field("int", "int64", wide=True), Field("str")),
    ],
)
def test_files_of_one_dataset_may_have_columns_of_different_types(one, other, both):
    assert join_fields(one, other) == join_fields(other, one) == both


def test_all_files_of_a_dataset_are_read_alike(tmp_path):
    """Opened as it lies, and with an index."""
    write(tmp_path / "a.csv", b"x,y,z\n1,1,\n")
    write(tmp_path / "b.csv", b"x,y,z\n1.5,a,7\n")
    rows = [
        {"__key__": "a:0", "x": 1.0, "y": "1", "z": None},
        {"__key__": "b:0", "x": 1.5, "y": "a", "z": 7},
    ]
    assert list(hr.open(tmp_path)) == rows
    hr.index(tmp_path)
    assert list(hr.open(tmp_path)) == rows
    assert hr.open(tmp_path).schema["z"] == Field("int", "int64", nullable=True)


def test_text_stays_text_whatever_the_dataset_says(tmp_path):
    content = b"x,y\nabc,1\n"
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    assert samples_of(index.read_as({"x": Field("int", "int64")}), content)[0]["x"] == "abc"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"2", "record 1, at byte 8: it has 1 cells, the table 2 columns"),
        (b"2,b,c", "record 1, at byte 8: it has 3 cells, the table 2 columns"),
        (b'2,"b"c', "record 1, at byte 8: a quoted cell is followed by 'c' instead of a delimiter"),
        (b"2,\xff", "record 1, at byte 8: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_record_that_does_not_fit_is_a_damaged_sample_and_the_others_are_fine(tmp_path, record, reason):
    content = b"x,y\n1,a\n" + record + b"\n3,c\n"
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    for one in (index, reread(CSV, index, len(content))):
        offset, length = one.extent(0, 3)
        opened = one.open(0, 3, memoryview(content)[offset : offset + length])
        assert [*opened.damage] == [1]
        assert opened.damage[1].startswith(reason)
        assert (opened.sample(0)["x"], opened.sample(2)["y"]) == (1, "c")


def test_a_stray_quote_is_a_character_like_others(tmp_path):
    content = b'inch,x\n5" pipe,1\n3" pipe,2\n'
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    assert [one["inch"] for one in samples_of(index, content)] == ['5" pipe', '3" pipe']


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b'x,y\n1,a\n2,"b\n3,c\n', DamagedError, "cut short, or has a quote too many: record 1, at byte 8"),
        (b"x,y,x\n1,2,3\n", DatasetError, "two columns are named 'x'; rename one of them"),
        (b'x,"y\n', DamagedError, "begins a quoted cell that never ends"),
        (b'x,"y"z\n1,2\n', DatasetError, "its first record, the header of the table, is broken .*'z' instead of"),
        (b"x,\xff\n1,2\n", DatasetError, "header of the table, is broken .*: correct it, or save the file as UTF-8"),
        (b"", DatasetError, "is empty, without the header that names a table's columns: restore or remove it"),
        (b"\r\n\n", DatasetError, "is empty, without the header"),
        (b"x,y\n1\n2\n", DamagedError, "all records are broken, the first one like this: record 0, at byte 4"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, error, message):
    with pytest.raises(error, match=message):
        scan(CSV, write(tmp_path / "a.csv", content))


def test_a_column_without_a_name_is_called_by_its_number(tmp_path):
    content = b",x\n0,a\n1,b\n"  # as pandas writes its index
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    assert samples_of(index, content)[1] == {"__key__": "a:1", "0": 1, "x": "b"}


def test_a_mark_of_utf8_and_blank_lines_are_passed_over(tmp_path):
    content = b"\xef\xbb\xbfx,y\r\n\r\n1,a\r\n\r\n2,b"
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    assert [(one["x"], one["y"]) for one in samples_of(index, content)] == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_the_delimiter_follows_from_the_first_two_records(tmp_path, delimiter):
    content = delimiter.join(["a b", "c", "d"]).encode() + b"\n" + delimiter.join(["1", "x y", "z"]).encode() + b"\n"
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    assert [*index.fields] == ["a b", "c", "d"]


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_record_does_not_hide_the_delimiter(tmp_path, delimiter, broken):
    rows = [["a", "b", "c"]] + [[str(i)] * (2 if i == broken else 3) for i in range(4)]
    content = "".join(delimiter.join(row) + "\n" for row in rows).encode()
    write(tmp_path / "a.csv", content)
    for place in (tmp_path, tmp_path / "a.csv"):
        ds = hr.open(place)
        assert [*ds.schema] == ["a", "b", "c"]
        with pytest.raises(DamagedError, match=f"a:{broken} .*: it has 2 cells, the table 3 columns"):
            ds[broken]
        assert len(ds.verify()) == 1
    index, _ = scan(CSV, tmp_path / "a.csv")
    assert [one and one["c"] for one in samples_of(index, content)] == [None if i == broken else i for i in range(4)]


def test_a_table_of_one_column_has_no_delimiter(tmp_path):
    content = b"text\nhello; world\nyes\n"
    index, _ = scan(CSV, write(tmp_path / "a.csv", content))
    assert [one["text"] for one in samples_of(index, content)] == ["hello; world", "yes"]


def test_a_record_may_be_as_long_as_a_sample_and_no_longer(tmp_path):
    path = write(tmp_path / "a.csv", b"x,y\n1," + b"a" * 5000 + b"\n")
    assert scan(CSV, path, max_sample_bytes=6000)[0].num_samples == 1
    with pytest.raises(DamagedError, match="longer than max_sample_bytes=5,000"):
        scan(CSV, path, max_sample_bytes=5000)
    path = write(tmp_path / "b.csv", b'x,y\n1,"' + b"a\n" * (4 << 20))
    with pytest.raises(DamagedError, match="longer than max_sample_bytes"):
        scan(CSV, path, max_sample_bytes=5000)


@given(st.integers(0, 1000), st.integers(1, 255), st.booleans())
def test_a_flipped_byte_is_never_silent(tmp_path_factory, at, change, is_packed):
    path = tmp_path_factory.mktemp("flip") / ("a.csv.gz" if is_packed else "a.csv")
    content = gzip.compress(TEXT, mtime=0) if is_packed else TEXT
    index, _ = scan(CSV, write(path, content))
    check_never_silent(index, samples_of(index, content), flipped(content, at, change))
    scan_or_error(CSV, path, flipped(content, at, change))


@given(st.integers(0, 1000))
def test_a_file_cut_anywhere_is_never_silent_with_an_index(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("cut") / "a.csv"
    index, _ = scan(CSV, write(path, TEXT))
    check_never_silent(index, samples_of(index, TEXT), TEXT[: length % len(TEXT)])
    scan_or_error(CSV, path, TEXT[: length % len(TEXT)])


def test_an_index_whose_columns_are_not_its_fields_is_refused(tmp_path):
    index, _ = scan(CSV, write(tmp_path / "a.csv", TEXT))
    data = index.to_file().replace(b'"columns":["id"', b'"columns":["ix"')
    with pytest.raises(ManifestError, match="must be the index's fields"):
        CSV.read_index(memoryview(data), "a.idx", len(TEXT))
    data = index.to_file().replace(b'"delimiter":","', b'"delimiter":"x"')
    with pytest.raises(ManifestError, match="must be a delimiter"):
        CSV.read_index(memoryview(data), "a.idx", len(TEXT))


def test_it_is_found_by_name(tmp_path):
    write(tmp_path / "a.csv", TEXT)
    write(tmp_path / "b.TSV", b"x\ty\n1\t2\n")
    write(tmp_path / "c.csv.gz", gzip.compress(TEXT))
    write(tmp_path / "about.txt", b"x,y\n1,2\n")
    assert find(CSV, tmp_path) == ["a.csv", "b.TSV", "c.csv.gz"]


@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": b"x,y\n1,2\n", "b.txt": b"x,y\n1,2\n"},
        {"labels.csv": TEXT, "a.jpg": b"\xff\xd8"},
    ],
)
def test_what_is_something_else_is_not_taken_for_a_table(tmp_path, files):
    for name, content in files.items():
        write(tmp_path / name, content)
    assert find(CSV, tmp_path) is None


@pytest.mark.parametrize("other", ["7", "0.5", ""])
@pytest.mark.parametrize("number", ["12345678901234567891", "-98765432109876543210", "9007199254740993"])
def test_whole_numbers_are_never_rounded(tmp_path, number, other):
    (tmp_path / "a.csv").write_text(f"id,v\n{number},1\n{other},2\n{number[:-1]}7,3\n")
    first = hr.open(tmp_path)[0]["id"]
    assert str(first) == number


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_whole_numbers_are_not_rounded_for_the_floats_of_other_files(tmp_path, order):
    """Nor for those that come later in a file than what is read at a time. Columns that allow it are floats."""
    parts = ["9007199254740993,9007199254740992", "0.5,0.5", "7,"]
    for k, part in enumerate(order):
        (tmp_path / f"{k}.csv").write_text(f"wide,exact\n{parts[part]}\n")
    (tmp_path / "3.csv").write_text("wide,exact\n" + "9007199254740993,1\n" * 300_000 + "0.5,0.5\n")
    for _ in range(2):
        ds = hr.open(tmp_path)
        assert [ds[order.index(k)]["wide"] for k in range(3)] == ["9007199254740993", "0.5", "7"]
        assert [ds[order.index(k)]["exact"] for k in range(3)] == [9007199254740992.0, 0.5, None]
        assert (ds[3]["wide"], ds[-1]["wide"], ds[-1]["exact"]) == ("9007199254740993", "0.5", 0.5)
        if not (tmp_path / "headrace.json").exists():
            hr.index(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"x,y\n1\n", DamagedError, "all records are broken, the first one like this: record 0, at byte 4"),
        (b"", DatasetError, "a.csv is empty, without the header"),
        (b"\xff\xfe\x00", DatasetError, "the header of the table, is broken .*'utf-8' codec"),
        (b'x,"y\n', DamagedError, "begins a quoted cell that never ends"),
    ],
)
def test_of_a_file_named_like_one_it_is_said_what_is_wrong(tmp_path, content, error, message):
    write(tmp_path / "a.csv", content)
    for place in (tmp_path, tmp_path / "a.csv"):
        with pytest.raises(error, match=message):
            hr.open(place)
