"""The default source: what the standard library of the running Python says about itself.

Three files of rows: docstrings as plain text, "What does `os.path.join` do?" with the docstring as the answer, and
"Which module defines `normcase`?" with four modules to choose from. Repeats (aliases, inherited docstrings) and junk
(empty, stub and machine-made docstrings) are left in: they are real, and finding them is curation's job. Rejected:
pages from the web (a download, a licence) and generated text (nothing to find in it that we did not put there).
"""

import gzip
import heapq
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from llmray.digest import digest_of, fraction_of
from llmray.errors import LLMRayError

NUM_CHOICES = 4
_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class DocsCounts:
    """What was found and written."""

    modules: int
    """Modules that could be imported."""
    failed_modules: int
    """Modules that could not: made for another system, or their library is missing here."""
    objects: int
    """Names under which a module, class, function, method or property can be reached."""
    text_rows: int
    messages_rows: int
    task_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One question with an answer among modules, before its wrong answers are drawn."""

    question: str
    answer: str
    group: str

    @property
    def key(self) -> str:
        """Digest by which tasks are ordered: no order of discovery matters."""
        return digest_of([self.question, self.answer])


def write_python_docs(folder: Path) -> DocsCounts:
    """Write `text.jsonl.gz`, `questions.jsonl.gz` and `tasks.jsonl.gz`; the same Python gives the same bytes.

    Raises:
        LLMRayError: the walk of the standard library died.
    """
    objects, summary = walk()
    files = docs_rows(objects)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines, compresslevel=5, mtime=0))
    return DocsCounts(
        modules=summary["modules"],
        failed_modules=len(summary["failed"]),
        objects=len(objects),
        text_rows=len(files["text"]),
        messages_rows=len(files["questions"]),
        task_rows=len(files["tasks"]),
    )


def docs_rows(objects: Sequence[Mapping[str, str]]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The rows of each file: `text`, `questions` and `tasks`."""
    return {
        "text": [{"text": entry["doc"], "group": _group(entry)} for entry in objects],
        "questions": [
            {
                "messages": [
                    {"role": "user", "content": f"What does `{entry['name']}` do?"},
                    {"role": "assistant", "content": entry["doc"]},
                ],
                "group": _group(entry),
            }
            for entry in objects
        ],
        "tasks": task_rows(objects),
    }


def walk() -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Every documented or undocumented object, by name, from a process of its own; and the walk's counts."""
    script = Path(__file__).with_name("docs_walk.py")
    # -I: neither the working folder nor PYTHON* variables may change what the standard library is.
    command = [sys.executable, "-I", "-W", "ignore", "-X", "utf8", str(script)]
    done = subprocess.run(  # noqa: S603 (our own script)
        command, capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise LLMRayError(f"the walk of the standard library failed: {done.stderr.decode(errors='replace')[-500:]}")
    *lines, last = done.stdout.splitlines()
    objects = [json.loads(line) for line in lines]
    for entry in objects:
        # A docstring may hold half a surrogate pair, which no UTF-8 file can.
        entry["doc"] = entry["doc"].encode("utf-8", "replace").decode()
    return sorted(objects, key=lambda entry: (entry["name"], entry["doc"])), json.loads(last)


def task_rows(objects: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Rows that ask which module defines something; an alias asks again, as the library does.

    Only public functions, classes, methods and properties that say something about themselves are asked about.
    """
    asked = [task for entry in objects if (task := _task(entry)) is not None]
    choices = draw_choices({task.key: task for task in asked})
    return [
        {
            "messages": [{"role": "user", "content": task.question}, {"role": "assistant", "content": task.answer}],
            "choices": choices[task.key],
            "group": task.group,
        }
        for task in asked
        if task.key in choices
    ]


def draw_choices(tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """Four answers for each task, such that knowing how often a module is right helps nobody.

    Tasks are dealt into blocks of four with four different answers, and the four answers are the choices of all four
    tasks. So each set of choices comes up four times and each of its members is right once: every guess that looks at
    the choices alone is right one time in four. Rejected: drawing wrong answers at random, where "the commonest module"
    is right far more often. The commonest module left always gets a place, so that few tasks remain undealt; the other
    places are drawn by digest, in proportion to what is left.
    """
    waiting: dict[str, list[Task]] = defaultdict(list)
    right: dict[str, set[str]] = defaultdict(set)
    for key in sorted(tasks):
        waiting[tasks[key].answer].append(tasks[key])
        right[tasks[key].question].add(tasks[key].answer)
    drawn: dict[str, list[str]] = {}
    heap = [(-len(queue), answer) for answer, queue in waiting.items()]
    heapq.heapify(heap)
    step = 0
    while len(waiting) >= NUM_CHOICES:
        while (top := heap[0])[1] not in waiting or -top[0] != len(waiting[top[1]]):
            heapq.heappop(heap)
        step += 1
        block = _deal(waiting, top[1], right, step)
        if len(block) < NUM_CHOICES:
            del waiting[top[1]]
            continue
        answers = [task.answer for task in block]
        for task in block:
            drawn[task.key] = sorted(answers, key=partial(_place, task.key))
        for answer in answers:
            waiting[answer].pop()
            if waiting[answer]:
                heapq.heappush(heap, (-len(waiting[answer]), answer))
            else:
                del waiting[answer]
    return drawn


def _place(key: str, answer: str) -> str:
    return digest_of([key, answer])


def _deal(waiting: Mapping[str, list[Task]], first: str, right: Mapping[str, set[str]], step: int) -> list[Task]:
    """The next task of `first` and of three other modules; a question that two of them would answer is never dealt."""
    # Exponential races (Efraimidis and Spirakis 2006): sorting by u^(1/w) draws without replacement by weight.
    rest = sorted(
        (answer for answer in waiting if answer != first),
        key=lambda answer: -(fraction_of(f"{step}:{answer}") ** (1 / len(waiting[answer]))),
    )
    block = [waiting[first][-1]]
    for answer in rest:
        task = waiting[answer][-1]
        others = {chosen.answer for chosen in block}
        if not (right[task.question] & others) and all(answer not in right[chosen.question] for chosen in block):
            block.append(task)
            if len(block) == NUM_CHOICES:
                break
    return block


def _task(entry: Mapping[str, str]) -> Task | None:
    said = next((line.strip() for line in entry["doc"].splitlines() if line.strip()), "")
    dunder = entry["qualname"].rsplit(".", 1)[-1].startswith("__")
    if entry["kind"] == "module" or dunder or not said:
        return None
    question = f"Which module defines `{entry['qualname']}`? It is described as: {said}"
    return Task(question=question, answer=entry["module"].split(".")[0], group=_group(entry))


def _group(entry: Mapping[str, str]) -> str:
    """The name where it is defined: its aliases share it, and so fall on the same side of a split."""
    return f"{entry['module']}.{entry['qualname']}".rstrip(".")
