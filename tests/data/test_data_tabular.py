"""csv and tsv: strings stay strings, quotes hold what they hold, and a broken row costs itself alone."""

import csv
import gzip
import io
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmray.data.readers import Found, Loss, Quarantined, Reading, Record, read

anything = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def records(folder: Path, content: bytes, name: str = "a.csv", reading: Reading | None = None) -> list[Record]:
    path = folder / name
    path.write_bytes(content)
    return list(read(str(path), reading))


def texts(found: list[Record]) -> list[tuple[int, str | None]]:
    return [(record.number, record.row.text) for record in found if isinstance(record, Found)]


def bad(found: list[Record]) -> list[tuple[int, str]]:
    return [(record.number, record.reason) for record in found if isinstance(record, Quarantined)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"id,text\n1,001\n2,2024-01-01\n3,true\n4,1e5\n5,\n6, NA \n"),
        ("a.tsv", b"id\ttext\n1\t001\n2\t2024-01-01\n3\ttrue\n4\t1e5\n5\t\n6\t NA \n"),
        ("a.CSV", b"\xef\xbb\xbftext,id\r\n001,1\r\n2024-01-01,2\r\ntrue,3\r\n1e5,4\r\n,5\r\n NA ,6\r\n"),
    ],
)
def test_every_value_stays_a_string(tmp_path: Path, name: str, content: bytes) -> None:
    found = records(tmp_path, content, name)
    assert texts(found) == [(2, "001"), (3, "2024-01-01"), (4, "true"), (5, "1e5"), (6, ""), (7, " NA ")]
    assert bad(found) == []


def test_quotes_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = b'text,n\n"a, b",1\n"she said ""no""",2\n"first\nsecond\n\nfourth",3\n5" disk,4\n"",5\n'
    assert texts(records(tmp_path, content)) == [
        (2, "a, b"),
        (3, 'she said "no"'),
        (4, "first\nsecond\n\nfourth"),
        (8, '5" disk'),
        (9, ""),
    ]


VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\r\0\ufeff"), max_size=12)


@given(st.lists(st.tuples(VALUE, VALUE), max_size=8), st.sampled_from(["a.csv", "a.tsv", "a.csv.gz", "a.tsv.zst"]))
@anything
def test_what_the_csv_module_writes_is_read(tmp_path: Path, rows: list[tuple[str, str]], name: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="," if "csv" in name else "\t", lineterminator="\n")
    writer.writerows([("text", "group"), *rows])
    content = buffer.getvalue().encode()
    packed = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(name.rsplit(".", 1)[-1], bytes)
    found = records(tmp_path, packed(content), name)
    assert [record.row.text for record in found if isinstance(record, Found)] == [text for text, _ in rows]
    assert [record.row.group for record in found if isinstance(record, Found)] == [group or None for _, group in rows]
    assert len(found) == len(rows)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"only one", "has 1 field where the header has 2"),
        (b"a,b,c", "has 3 fields where the header has 2"),
        (b'"a\nb",1,2', "has 3 fields where the header has 2"),
        (b"\xff\xfe,1", "broken encoding: not UTF-8 at byte 0"),
        (b'"quoted \xff\nmore",1', "broken encoding: not UTF-8 at byte 8"),
        (b'"a" b,1', "malformed quotes"),
    ],
)
def test_a_broken_row_costs_itself_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    found = records(tmp_path, b"text,n\nbefore,1\n" + line + b"\n\nafter,2\n")
    ((number, why),) = bad(found)
    assert (number, reason in why) == (3, True), why
    assert texts(found) == [(2, "before"), (5 + line.count(b"\n"), "after")]


def test_a_stray_quote_does_not_swallow_the_rows_after_it(tmp_path: Path) -> None:
    lines = b"text,n\na,1\n" + b'"b,2\n' + b"c,3\nd,4\n"
    closed_by_another = records(tmp_path, lines + b'"e",5\nf,6\n')
    assert [text for _, text in texts(closed_by_another)] == ["a", "c", "d", "e", "f"]
    never_closed = records(tmp_path, lines)
    assert [text for _, text in texts(never_closed)] == ["a", "c", "d"]
    for found in (closed_by_another, never_closed):
        ((number, why),) = bad(found)
        assert (number, "reading.quotes" in why) == (3, True)


def test_many_stray_quotes_take_time_in_proportion(tmp_path: Path) -> None:
    # Each would read to the end of the file if nothing stopped it: 100,000 lines would then never end.
    found = records(tmp_path, b"text,n\n" + b'"b,2\n' * 50_000 + b'"b,2\nc,3\n' * 25_000)
    assert len(found) == 100_000
    assert len(texts(found)) >= 24_999


def test_without_quotes_a_quote_is_a_character(tmp_path: Path) -> None:
    content = b'text\tn\n"He said\t1\n"so"\t2\n'
    found = records(tmp_path, content, "a.tsv", Reading(quotes=False))
    assert texts(found) == [(2, '"He said'), (3, '"so"')]
    assert bad(found) == []


def test_a_long_field_is_no_trouble(tmp_path: Path) -> None:
    long = b"x" * 400_000
    assert len(texts(records(tmp_path, b'text,n\n"' + long + b'\n",1\n'))[0][1] or "") == 400_001


def test_columns_take_other_names(tmp_path: Path) -> None:
    content = b"sentence,text,label\ns,t,l\n"
    (found,) = records(tmp_path, content, reading=Reading(columns={"text": "sentence"}))
    assert isinstance(found, Found)
    assert found.row.text == "s"
    (found,) = records(tmp_path, content, reading=Reading(columns={"question": "text", "answer": "label"}))
    assert isinstance(found, Found)
    assert found.row.messages == (("user", "t"), ("assistant", "l"))


def test_a_name_that_is_used_counts_as_nothing_else(tmp_path: Path) -> None:
    reading = Reading(columns={"text": "answer"})
    (found,) = records(tmp_path, b"question,answer\nq,a\n", reading=reading)
    assert isinstance(found, Found)
    assert (found.row.shape, found.row.text) == ("text", "a")


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    (found,) = records(tmp_path, b"group,label\ng,l\n", reading=Reading(columns={"text": "sentence"}))
    assert isinstance(found, Quarantined)
    assert "columns takes text from 'sentence', which is not there" in found.reason


def test_files_without_a_header(tmp_path: Path) -> None:
    found = records(tmp_path, b"first,1\nsecond,2\n", reading=Reading(header=("text", "label")))
    assert texts(found) == [(1, "first"), (2, "second")]
    found = records(tmp_path, b"first,1\nsecond,2\n")
    assert [number for number, why in bad(found) if "reading.header" in why] == [1, 2]


@pytest.mark.parametrize(
    ("header", "reason"),
    [(b"text,text", "names 'text' twice"), (b'"text,n', "the header cannot be read"), (b"a,b", "reading.columns")],
)
def test_below_a_broken_header_every_row_is_accounted_for(tmp_path: Path, header: bytes, reason: str) -> None:
    found = records(tmp_path, header + b"\na,1\nb,2\n")
    rows = bad(found)
    assert [number for number, _ in rows] == [1, 2, 3]
    assert all(reason in why for _, why in rows)
    assert texts(found) == []


def test_a_broken_name_of_another_column_is_no_trouble(tmp_path: Path) -> None:
    assert texts(records(tmp_path, b"text,\xff\xff\na,1\n")) == [(2, "a")]


def test_empty_values_of_optional_fields_are_absent(tmp_path: Path) -> None:
    content = b"instruction,input,output,system,group,choices\ndo,,done,,,\n"
    (found,) = records(tmp_path, content)
    assert isinstance(found, Found)
    assert (found.row.messages, found.row.group) == ((("user", "do"), ("assistant", "done")), None)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"text,n\n", b"text,n"])
def test_files_without_rows(tmp_path: Path, content: bytes) -> None:
    assert records(tmp_path, content) == []


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_file_gives_up_what_is_there(tmp_path: Path, suffix: str) -> None:
    rows = b"".join(b'%d,"row %d\nof two lines"\n' % (number, number * 7919 % 1000) for number in range(20_000))
    packed = (gzip.compress if suffix == "gz" else zstandard.ZstdCompressor().compress)(b"n,text\n" + rows)
    found = records(tmp_path, packed[: len(packed) // 2], f"a.csv.{suffix}")
    whole = texts(found)
    assert len(whole) > 4_000
    assert whole == [(2 + 2 * n, f"row {n * 7919 % 1000}\nof two lines") for n in range(len(whole))]
    *_, loss = found
    assert isinstance(loss, Loss)
    assert "truncated" in loss.reason
    assert len(bad(found)) <= 2
