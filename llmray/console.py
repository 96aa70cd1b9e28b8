"""What a person sees while a job runs: one quiet line a step on standard error, and tables at the end on standard output."""

import logging
import sys
import time
import warnings
from collections.abc import Sequence

NOISY = (
    "ray",
    "ray.data",
    "ray.train",
    "ray.tune",
    "ray.serve",
    "httpx",
    "DeepSpeed",
    "transformers",
    "torch",
    "alembic",
)


def setup(level: int = logging.INFO) -> None:
    """Show llmray's progress lines with the seconds since the start, and only the warnings of everything below it."""
    started = time.monotonic()

    class Elapsed(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            minutes, seconds = divmod(int(time.monotonic() - started), 60)
            return f"{minutes:3d}:{seconds:02d}  {super().format(record)}"

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Elapsed("%(message)s"))
    root = logging.getLogger("llmray")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
    for name in NOISY:  # the filter, too, since some libraries set the level of their logger when they are imported
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).addFilter(_only_errors)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial that fails is told in our own words
    warnings.filterwarnings("ignore", module=r"(ray|torch|deepspeed|transformers|trl|google)\b")


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded to their widest cell; numbers to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headers), *cells]) for column in range(len(headers))]
    right = [all(isinstance(row[column], int | float) for row in rows) and bool(rows) for column in range(len(headers))]

    def line(values: Sequence[str]) -> str:
        padded = [
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(values, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(headers)), "  ".join("-" * width for width in widths), *map(line, cells)])


def _text(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:,.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return "" if cell is None else str(cell)
