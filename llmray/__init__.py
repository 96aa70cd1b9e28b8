"""llmray: the whole life of a language model on Ray.

    import llmray as lr

    docs = lr.curate(["raw/*.jsonl.gz"], name="docs")
    base = lr.base_model(docs)
    best = lr.tune(docs, model=base, budget=lr.Budget(core_seconds=600))
    model = lr.finetune(base, docs, config=best.config)
    report = lr.evaluate(model, tasks=["heldout"])
    lr.promote(model, to="production", evidence=report)

Names are loaded when they are first used: importing llmray loads neither ray nor torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmray.align.spec import AlignSpec as AlignSpec
    from llmray.artifact import Artifact as Artifact
    from llmray.client.http import Client as Client
    from llmray.data.config import CurateConfig as CurateConfig
    from llmray.evaluate.gate import GatePolicy as GatePolicy
    from llmray.evaluate.gate import TaskPolicy as TaskPolicy
    from llmray.flow.lifecycle import LifecycleConfig as LifecycleConfig
    from llmray.flow.lifecycle import run as lifecycle  # noqa: F401
    from llmray.flow.operations import (  # noqa: F401
        align,
        as_model,
        base_model,
        curate,
        diff,
        evaluate,
        finetune,
        tune,
        watch,
    )
    from llmray.flow.prompts import (  # noqa: F401
        delete_label,
        label_prompt,
        prompt,
        protect_label,
        put_prompt,
        record_verdict,
        rollback_label,
    )
    from llmray.flow.run import open_run as open_run
    from llmray.flow.serving import deploy, promote, roll_out, shadow  # noqa: F401
    from llmray.flow.stages.evaluate import EvaluateConfig as EvaluateConfig
    from llmray.flow.stages.serve import ServeConfig as ServeConfig
    from llmray.flow.step import step as step
    from llmray.registry.registry import Registry as Registry
    from llmray.resources import Resources as Resources
    from llmray.train.base_model import BaseModelSpec as BaseModelSpec
    from llmray.train.spec import TrainSpec as TrainSpec
    from llmray.tune.ledger import Budget as Budget
    from llmray.tune.spec import TuneSpec as TuneSpec

_HOMES = {
    "AlignSpec": "llmray.align.spec",
    "Artifact": "llmray.artifact",
    "BaseModelSpec": "llmray.train.base_model",
    "Budget": "llmray.tune.ledger",
    "Client": "llmray.client.http",
    "CurateConfig": "llmray.data.config",
    "EvaluateConfig": "llmray.flow.stages.evaluate",
    "GatePolicy": "llmray.evaluate.gate",
    "LifecycleConfig": "llmray.flow.lifecycle",
    "Registry": "llmray.registry.registry",
    "Resources": "llmray.resources",
    "ServeConfig": "llmray.flow.stages.serve",
    "TaskPolicy": "llmray.evaluate.gate",
    "TrainSpec": "llmray.train.spec",
    "TuneSpec": "llmray.tune.spec",
    "align": "llmray.flow.operations",
    "as_model": "llmray.flow.operations",
    "base_model": "llmray.flow.operations",
    "curate": "llmray.flow.operations",
    "delete_label": "llmray.flow.prompts",
    "deploy": "llmray.flow.serving",
    "diff": "llmray.flow.operations",
    "evaluate": "llmray.flow.operations",
    "finetune": "llmray.flow.operations",
    "label_prompt": "llmray.flow.prompts",
    "lifecycle": "llmray.flow.lifecycle:run",
    "open_run": "llmray.flow.run",
    "promote": "llmray.flow.serving",
    "prompt": "llmray.flow.prompts",
    "protect_label": "llmray.flow.prompts",
    "put_prompt": "llmray.flow.prompts",
    "record_verdict": "llmray.flow.prompts",
    "roll_out": "llmray.flow.serving",
    "rollback_label": "llmray.flow.prompts",
    "shadow": "llmray.flow.serving",
    "step": "llmray.flow.step",
    "tune": "llmray.flow.operations",
    "watch": "llmray.flow.operations",
}
"""Where each public name lives."""

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmray' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return __all__


class _FrontDoor(ModuleType):
    """Keeps `lr.evaluate` a verb: importing the package `llmray.evaluate` would bind its module to that name here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontDoor
