"""Files for the readers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[[str, Sequence[Any]], str]:
    """Write records as JSON lines below the test's folder; returns the path."""

    def write(name: str, records: Sequence[Any]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
        return str(path)

    return write
