"""Serve a model behind OpenAI's API, with its prompts, lineage, feedback and monitor.

python jobs/deploy.py --model docs@production                          # stays up until Ctrl-C on a cluster of its own
python jobs/deploy.py --model docs@latest --rollout.steps 5 25 100 --canary        # beside what serves now

On a cluster that was there already (RAY_ADDRESS, ray job submit) the service stays when the job ends.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmray import cluster
from llmray.errors import GateRefusedError, UnavailableError
from llmray.flow import operations
from llmray.flow.stages.serve import ServeConfig
from llmray.options import run_job
from llmray.serve.rollout import RolloutPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is served."""

    model: str = "docs@production"
    """The model: a reference or the URI of an artifact."""
    name: str = "docs"
    """Model name that clients ask for."""
    data: str = ""
    """Snapshot whose validation questions are the usual traffic; by default the one that the model was trained on."""
    prompt: str = ""
    """Prompt for chats that name none, such as ask-docs@production."""
    canary: bool = False
    """Roll out beside what serves now, step by step, instead of at once."""
    stop: bool = False
    """Take the service away."""
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)
    """The steps of a canary, and when it goes back."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    """How the model is served."""


def job(config: Config) -> None:
    if config.stop:
        _take_away()
        print("nothing is served any more")
        return
    if config.canary:
        result = operations.roll_out(config.model, policy=config.rollout, config=config.serve)
        if not result.judged:
            raise UnavailableError(f"rollout without a verdict: {result.reason}; {result.digest[:12]} serves on")
        if result.status != "done":
            raise GateRefusedError(f"rollout {result.status}: {result.reason}; {result.digest[:12]} serves on")
        print(f"rollout done: {result.reason}; {result.digest[:12]} serves")
        return
    served = operations.deploy(
        config.model, name=config.name, data=config.data or None, prompt=config.prompt or None, config=config.serve
    )
    print(f"{served.name} ({served.digest[:12]}, {config.serve.quantization}) answers at {served.url}\n")
    print(f"curl {served.url}/chat/completions -H 'content-type: application/json' \\")
    print(
        f'  -d \'{{"model": "{served.name}", "messages": [{{"role": "user", "content": "What does `os.path.join` do?"}}]}}\''
    )
    if cluster.is_ours():
        print("\nCtrl-C ends it", flush=True)
        try:
            cluster.stay()
        except KeyboardInterrupt:
            print("taking the service away: answers that were begun are finished", flush=True)
        finally:
            _take_away()


def _take_away() -> None:
    """Answers that were begun are finished, and what is queued for the registry gets there."""
    from llmray import deployment

    deployment.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(job, Config, argv, prog="jobs/deploy.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
