"""Align on one process without Ray, each run in a fork of its own (DeepSpeed's state outlives a run).

Reads jobs from standard input, `{"spec", "run_dir", "kill_at_line", "trouble"}` by name, and prints what came of each.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import transformers
from trouble import Trouble

from llmray.align import loop
from llmray.align.spec import AlignSpec
from llmray.errors import UserError
from llmray.train.engine import Place
from llmray.train.run_folder import EXPORT, METRICS, claim
from llmray.train.template import load_tokenizer


def align(job: dict[str, Any], answers: "SimpleQueue[dict[str, Any]]") -> None:
    torch.set_num_threads(1)
    spec = AlignSpec(**job["spec"])
    trouble = dict(job.get("trouble", {}))
    if "nan_gradient_of" in trouble:
        trouble["nan_gradient_of"] = load_tokenizer(spec.model)(trouble["nan_gradient_of"])["input_ids"][0]
    scale = {int(at): factor for at, factor in trouble.pop("scale", {}).items()}
    loop.load_whole = Trouble(scale=scale, **trouble).around(loop.load_whole)
    folder = claim(job["run_dir"], spec.settings())

    def clock() -> float:
        """The loop reads the clock before each line of metrics."""
        metrics = folder / METRICS
        if (
            job.get("kill_at_line")
            and metrics.exists()
            and len(metrics.read_text().splitlines()) >= job["kill_at_line"]
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return time.time()

    try:
        outcome = loop.run(spec, Place(), folder=folder, export_to=folder / EXPORT, clock=clock)
    except UserError as error:
        answers.put({"error": type(error).__name__, "message": str(error)})
    else:
        answers.put(asdict(outcome))


def main() -> None:
    transformers.logging.disable_progress_bar()
    context = multiprocessing.get_context("fork")
    results = {}
    for name, job in json.load(sys.stdin).items():
        answers: SimpleQueue[dict[str, Any]] = context.SimpleQueue()
        process = context.Process(target=align, args=(job, answers))
        process.start()
        process.join()
        results[name] = {"exit": process.exitcode, **({} if answers.empty() else answers.get())}
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
