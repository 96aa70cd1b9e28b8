"""Run the loop on one process without Ray, and measure the most memory that its steps take.

Each run has a forked process of its own: DeepSpeed's state and the most memory of a process outlive a run. Prints for
each run the bytes above what the process had before it made the model, as JSON.
"""

import ctypes
import importlib
import json
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from shapes import config
from tiny_training import tokenizer

from llmray.train import loop
from llmray.train.engine import Place
from llmray.train.hooks import Alone
from llmray.train.spec import TrainSpec

for name in ("stage_1_and_2", "stage3", "muon.muon_optimizer"):  # memory of code, not of a run
    importlib.import_module(f"deepspeed.runtime.zero.{name}")
for name in (
    "peft",
    "bitsandbytes",
    "transformers.integrations.bitsandbytes",
    "transformers.quantizers.quantizer_bnb_4bit",
):
    importlib.import_module(name)


M_MMAP_THRESHOLD = -3
"""Its number in glibc's malloc.h."""


class Peak(Alone):
    """Looks at the most memory so far after every step."""

    bytes = 0

    def metrics(self, line: dict[str, Any]) -> None:
        self.bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(job: tuple[TrainSpec, Path, bool]) -> int:
    spec, export_to, with_holes = job
    torch.set_num_threads(1)
    if not with_holes:
        assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16), "no glibc"
    touch(spec)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = Peak(export_to.with_name(f"{export_to.name}-checkpoint"))
    loop.run(spec, Place(), peak, resume_from=None, export_to=export_to)
    return peak.bytes - before


def touch(spec: TrainSpec) -> None:
    """Have the code of a step in this process's memory: a fork begins without it."""
    model = transformers.LlamaForCausalLM(config("tied", num_hidden_layers=1)).to(getattr(torch, spec.dtype))
    for _ in range(2):
        output = model(
            input_ids=torch.zeros(4, 64, dtype=torch.long),
            position_ids=(torch.arange(64) % 8).expand(4, -1),
            use_cache=False,
        )
        torch.nn.functional.cross_entropy(output.logits[0].float(), torch.zeros(64, dtype=torch.long)).backward()
    torch.optim.AdamW(model.parameters(), fused=True).step()


def main(
    data_uri: str, root: Path, *, sizes: dict[str, int], runs: dict[str, dict[str, Any]], with_holes: list[str]
) -> dict[str, int]:
    made = config("tied", **sizes)
    transformers.LlamaForCausalLM(made).save_pretrained(root / "model")
    tokenizer().save_pretrained(root / "model")
    specs = {
        name: TrainSpec(model=str(root / "model"), data=data_uri, num_workers=1, max_steps=2, eval_rows=0, **options)
        for name, options in runs.items()
    }
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return {name: pool.apply(measure, ((spec, root / name, name in with_holes),)) for name, spec in specs.items()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), **json.loads(sys.argv[3]))))
