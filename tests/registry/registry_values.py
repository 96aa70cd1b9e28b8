"""Moments and values that registry tests put in."""

import itertools
import multiprocessing
from datetime import UTC, datetime, timedelta
from typing import Any

from llmray.artifact import Artifact
from llmray.digest import digest_of
from llmray.outputs import Feedback, Output

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
AT = datetime(2026, 1, 31, 13, tzinfo=UTC)

PROCESSES = multiprocessing.get_context("forkserver")
"""Starts processes that share nothing and need not each import for two seconds."""
PROCESSES.set_forkserver_preload(
    ["alembic.autogenerate", "hypothesis.strategies", "llmray.registry.registry", "pytest"]
)

_fresh = itertools.count()


def fresh() -> str:
    """A name that no other example of a property test has used."""
    return f"example-{next(_fresh)}"


class Clock:
    """Moments that move a second on with every look."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def artifact(content: str, *, kind: str = "dataset", **rest: Any) -> Artifact:
    digest = digest_of([kind, content])
    return Artifact(kind=kind, digest=digest, uri=f"/artifacts/{kind}/{digest[:24]}", **rest)


def output(identity: str, **rest: Any) -> Output:
    values: dict[str, Any] = {
        "id": identity,
        "at": AT,
        "messages": [{"role": "user", "content": "What does os.path.join do?"}],
        "completion": "It joins paths.",
        "finish_reason": "stop",
        "model_digest": "a" * 64,
        "variant": "stable",
        "quantization": "nf4",
        "engine": "hf",
        "sampling": {"temperature": 0.5},
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "ttft_s": 0.02,
        "latency_s": 0.1,
    }
    return Output(**values | rest)


def feedback(identity: str, output_id: str, **rest: Any) -> Feedback:
    values: dict[str, Any] = {"kind": "thumb", "value": {"up": True}, "source": "ada", "at": AT}
    return Feedback(id=identity, output_id=output_id, **values | rest)
