"""The options of reading: what they accept, and how they come from a command line."""

import pickle
from dataclasses import dataclass, field

import pytest

from llmray.data.readers import Chunk, Reading, check_sources
from llmray.data.readers.reading import Format, format_of
from llmray.errors import ConfigError, InputError
from llmray.options import parse


@pytest.mark.parametrize(
    ("uri", "kind", "packing"),
    [
        ("a.jsonl", "jsonl", None),
        ("s3://b/A.JSONL.GZ", "jsonl", "gzip"),
        ("a.csv.zst", "csv", "zstd"),
        ("a.tsv", "tsv", None),
        ("a.b.txt.gz", "text", "gzip"),
        ("README.md", "text", None),
        ("a.parquet", "parquet", None),
        ("data-00000-of-00001.arrow", "arrow", None),
    ],
)
def test_the_name_tells_the_format(uri: str, kind: str, packing: str | None) -> None:
    assert format_of(uri, Reading()) == Format(kind=kind, packing=packing)  # type: ignore[arg-type]


@pytest.mark.parametrize("uri", ["a.json", "a.xlsx", "a.gz", "a.parquet.gz", "a.arrow.zst", "jsonl", "a"])
def test_other_names_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"name files that end in .*\.jsonl.*reading\.formats"):
        check_sources([uri])


def test_formats_of_names_that_do_not_tell() -> None:
    reading = Reading(formats={"mrpc*.txt*": "tsv", "*/lines/*": "jsonl"})
    assert format_of("/data/mrpc_train.txt", reading).kind == "tsv"
    assert format_of("/data/mrpc_train.txt.gz", reading) == Format(kind="tsv", packing="gzip")
    assert format_of("/data/lines/a", reading).kind == "jsonl"
    assert format_of("/data/other.txt", reading).kind == "text"
    with pytest.raises(InputError, match="compressed inside"):
        format_of("a.bin.gz", Reading(formats={"*.bin.gz": "parquet"}))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"columns": {"sentence": "text"}}, "names 'sentence', which is no field of a row"),
        ({"formats": {"*.txt": "excel"}}, r"reading\.formats \('excel'\) must be one of jsonl"),
        ({"header": ("text", "text")}, "names a column twice"),
        ({"max_record_mb": 0}, r"reading\.max_record_mb \(0\) must be between 1 and 1,024.*try 256"),
        ({"max_record_mb": 2048}, r"reading\.max_record_mb \(2048\) must be between 1 and 1,024"),
    ],
)
def test_impossible_options_name_the_fix(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Reading(**options)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """Something that reads."""

    reading: Reading = field(default_factory=Reading)
    """How."""


def test_options_from_a_command_line() -> None:
    flags = ["--reading.columns", '{"text": "sentence"}', "--reading.formats", '{"*.txt": "tsv"}']
    flags += ["--reading.header", "sentence", "label", "--reading.quotes", "false", "--reading.text_rows", "line"]
    job = parse(_Job, flags, prog="job", description="")
    assert job.reading == Reading(
        columns={"text": "sentence"},
        formats={"*.txt": "tsv"},
        header=("sentence", "label"),
        quotes=False,
        text_rows="line",
    )
    assert parse(_Job, [], prog="job", description="").reading == Reading()


def test_options_and_chunks_cross_process_borders() -> None:
    reading = Reading(columns={"text": "sentence"}, header=("sentence",))
    chunk = Chunk(uri="a.jsonl", source="a", start=5, end=9)
    assert pickle.loads(pickle.dumps((reading, chunk))) == (reading, chunk)
