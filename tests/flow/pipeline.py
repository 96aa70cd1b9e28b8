"""Steps for tests that start several processes or kill one: they count their work in the files of a folder.

`pipeline.py NAME FOLDER` runs one and prints what it returned; with `--no-wait`, waiting for a lease is an error.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path

from llmray.flow import step as step_module
from llmray.flow.run import open_run
from llmray.flow.step import charge, step, work_folder


def note(folder: str, name: str) -> None:
    with (Path(folder) / name).open("a") as file:
        file.write("x")


@step()
def first(folder: str) -> int:
    note(folder, "first")
    charge(core_seconds=2.0)
    return 1


@step()
def second(number: int, folder: str) -> list[object]:
    """Dies half-way the first time, and goes on from there the second."""
    note(folder, "second")
    half = work_folder() / "half"
    if not half.exists():
        half.write_text("done before")
        os.kill(os.getpid(), signal.SIGKILL)
    return [number + 1, half.read_text()]


def killed(folder: str) -> object:
    with open_run("pipeline"):
        return second(first(folder), folder)


@step()
def slow(folder: str) -> int:
    """Takes until somebody writes a line."""
    note(folder, "slow")
    print("computing", flush=True)
    sys.stdin.readline()
    return 7


def refuse_to_wait(_: float) -> None:
    raise AssertionError("waited for a lease")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    if "--no-wait" in sys.argv:
        step_module.time.sleep = refuse_to_wait
    print(json.dumps({"slow": slow, "killed": killed}[sys.argv[1]](sys.argv[2])))
