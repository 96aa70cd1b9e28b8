"""One quote too many in a good csv or tsv file costs the row it is in, whatever surrounds it."""

import csv
import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmray.data.readers import Found, Loss, Quarantined, Reading, Record, read

anything = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def records(folder: Path, content: str, name: str = "a.csv", reading: Reading | None = None) -> list[Record]:
    path = folder / name
    path.write_bytes(content.encode())
    return list(read(str(path), reading))


def texts(found: list[Record]) -> list[str | None]:
    return [record.row.text for record in found if isinstance(record, Found)]


def bad(found: list[Record]) -> list[int]:
    return [record.number for record in found if isinstance(record, Quarantined)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A good table, where one more quote goes, and what is then to be had of the other rows."""

    name: str
    before: list[str]
    broken: str
    after: list[str]
    expected_before: list[tuple[int, str, str | None]]
    """(line, text, group) of each row."""
    expected_after: list[tuple[int, str, str | None]]


def may_close(value: str, delimiter: str) -> bool:
    """Whether the quote that opens this value, where it has one, could as well close another."""
    return value.lstrip('"')[:1] in (delimiter, "\n", "\r")


CHARACTER = st.one_of(st.sampled_from('"",\n\r\tab '), st.characters(codec="utf-8", exclude_characters="\0\ufeff"))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    width, delimiter = draw(st.integers(1, 3)), draw(st.sampled_from(",\t"))
    value = st.text(CHARACTER, max_size=8).filter(
        lambda value: not may_close(value, delimiter) and (not value or bool(value.strip(" \r")))
    )
    rows = draw(st.lists(st.tuples(*[value] * width), min_size=1, max_size=12))
    # csv.writer quotes carriage returns only where lines end with them.
    ends = ["\r\n"] if any("\r" in value for row in rows for value in row) else ["\n", "\r\n"]
    end, quoting = draw(st.sampled_from(ends)), draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    written = []
    for row in rows:
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end).writerow(row)
        written.append(buffer.getvalue() + draw(st.sampled_from(["", "", end, f" {end}"])))
    header = delimiter.join(["text", "group", "n"][:width]) + end
    at = draw(st.integers(0, len(rows) - 1))
    place = draw(st.integers(0, len(written[at].rstrip(" \r\n"))))
    lines = [1 + sum(part.count("\n") for part in [header, *written[:number]]) for number in range(len(rows))]
    expected = [(line, row[0], (row[1] or None) if width > 1 else None) for line, row in zip(lines, rows, strict=True)]
    return Case(
        name="a.csv" if delimiter == "," else "a.tsv",
        before=[header, *written[:at]],
        broken=f'{written[at][:place]}"{written[at][place:]}',
        after=written[at + 1 :],
        expected_before=expected[:at],
        expected_after=expected[at + 1 :],
    )


@given(cases())
@anything
def test_a_stray_quote_costs_its_row_alone(tmp_path: Path, case: Case) -> None:
    found = records(tmp_path, "".join([*case.before, case.broken, *case.after]), case.name)
    begin = 1 + sum(part.count("\n") for part in case.before)
    end = begin + case.broken.count("\n")

    def rows(low: int, high: float) -> list[tuple[int, str | None, str | None] | Record]:
        return [
            (one.number, one.row.text, one.row.group) if isinstance(one, Found) else one
            for one in found
            if low <= one.number < high
        ]

    assert rows(0, begin) == case.expected_before
    assert rows(end, float("inf")) == case.expected_after
    assert rows(begin, end)  # It is accounted for.


@pytest.mark.parametrize(
    "between",
    ["", "\n", " \r\n\n", "short\n", "a,b,c\n", '"fine, too",2\n', "\r\n", '5" disk,2\n'],
    ids=["nothing", "a blank line", "blank lines", "a short line", "a long line", "quotes", "crlf", "an inch"],
)
@pytest.mark.parametrize("last", ["", '"quoted, later",8\nlast,9\n'], ids=["to the end", "to a quote"])
def test_what_is_no_row_does_not_bind_the_others(tmp_path: Path, between: str, last: str) -> None:
    good = "".join(f"good {number},{number}\n" for number in range(6))
    found = records(tmp_path, f'text,group\n"stray,1\n{good}{between}{good}{last}')
    expected = [f"good {number}" for number in range(6)]
    extra = ["fine, too"] if "fine" in between else ['5" disk'] if "disk" in between else []
    assert texts(found) == [*expected, *extra, *expected, *(["quoted, later", "last"] if last else [])]
    assert bad(found)[0] == 2
    assert len(bad(found)) == 1 + (between in ("short\n", "a,b,c\n"))


def test_a_single_column(tmp_path: Path) -> None:
    assert texts(records(tmp_path, 'text\n"stray\none\n\ntwo\n')) == ["one", "two"]
    found = records(tmp_path, 'text\n"stray\none\n\ntwo\n"three, quoted"\nfour\n')
    assert (texts(found), bad(found)) == (["one", "two", "three, quoted", "four"], [2])


def test_a_stray_quote_after_a_text_of_several_lines(tmp_path: Path) -> None:
    # The lines of the row itself are no rows: they do not speak against those after it.
    content = 'text,group\n"one\ntwo\nthree, four"",1\ngood,2\n"quoted, good",3\n'
    found = records(tmp_path, content)
    assert (texts(found), bad(found)) == (["good", "quoted, good"], [2])


def test_a_quote_that_another_closes_is_none_too_many(tmp_path: Path) -> None:
    # Nobody could tell that the last comma was meant to begin a text: the rows between are what was quoted.
    found = records(tmp_path, 'text,group\n"stray,1\nsecond,2\n",3\nthird,4\n')
    assert (texts(found), bad(found)) == (["stray,1\nsecond,2\n", "third"], [])
    # But where the rows would be too few or too many fields, they are rows.
    found = records(tmp_path, 'text,group\n"stray,1\nsecond,2\nthird,3\n12",4,5\nfourth,6\n')
    assert (texts(found), bad(found)) == (["second", "third", "fourth"], [2, 5])


def test_lines_of_a_broken_text_are_not_made_rows(tmp_path: Path) -> None:
    found = records(tmp_path, 'text,group\n"one line\nand, a comma\nof prose\nwith a "word" in it",2\nafter,3\n')
    assert (texts(found)[-1], bad(found)[0]) == ("after", 2)
    assert "and" not in texts(found)
    too_many = records(tmp_path, 'text,group\n"one line\nof prose",2,3\nafter,4\n')
    assert (texts(too_many), bad(too_many)) == (["after"], [2])


def test_a_text_that_damage_cut_is_one_record(tmp_path: Path) -> None:
    content = 'text,group\ngood,1\n"one line\nof prose\nand, a comma\nand no end\n' + "x" * 1000
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content.encode(), compresslevel=0)[:-600])
    found = list(read(str(tmp_path / "a.csv.gz")))
    assert texts(found) == ["good"]
    assert bad(found) == [3, 7]  # The text, and the line in which the file ends.
    assert isinstance(found[-1], Loss)
    stray = 'text,group\ngood,1\n"stray,2\n' + "row,3\n\n" * 300
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(stray.encode(), compresslevel=0)[:-600])
    assert len(texts(list(read(str(tmp_path / "a.csv.gz"))))) > 150


@pytest.mark.parametrize("line", ['"b,2', 'b","2', 'a",b,"c', '""",2', '",a","b'])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_many_stray_quotes_take_time_in_proportion(tmp_path: Path, line: str, every: int) -> None:
    # Each would read to the end of the file, or to the same later quote, if nothing stopped it: that would never end.
    block = f"{line}\n" + "c,3\n" * (every - 1)
    content = "text,group\n" + block * (6_000 // every)
    assert lines_given(tmp_path, content) < 4 * 6_000
    assert lines_given(tmp_path, content + 'x,"y" z\nlast,1\n') < 4 * 6_000


def lines_given(folder: Path, content: str) -> int:
    """How many lines the csv module is given while a file is read."""
    from llmray.data.readers import tabular

    given = 0
    plain = tabular._text

    def counted(line: bytes) -> str:
        nonlocal given
        given += 1
        return plain(line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular, "_text", counted)
        assert records(folder, content)
    return given


def test_quotes_are_looked_for_no_further_than_a_record_may_go(tmp_path: Path) -> None:
    good = "".join(f"{number:07d} {'x' * 90},{number}\n" for number in range(30_000))
    found = records(tmp_path, f'text,group\n"stray,1\n{good}', reading=Reading(max_record_mb=1))
    assert (len(texts(found)), bad(found)) == (30_000, [2])
    (stray,) = (record for record in found if isinstance(record, Quarantined))
    assert "reading.max_record_mb (1 MiB)" in stray.reason
