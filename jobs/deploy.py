"""Serve a model behind OpenAI's API, with its prompts, lineage, feedback and monitor.

python jobs/deploy.py --model docs@production                          # stays up until Ctrl-C on a cluster of its own
python jobs/deploy.py --model docs@latest --rollout.steps 5 25 100 --canary        # beside what serves now
python jobs/deploy.py --model docs@latest --shadow 10                              # hears a tenth, and is not heard

On a cluster that was there already (RAY_ADDRESS, ray job submit) the service stays when the job ends.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmray import cluster
from llmray.flow import serving
from llmray.flow.promote import require_done
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
    shadow: float = 0.0
    """Percent of the requests to copy to the model, whose answers nobody gets; see llmray shadow."""
    end_shadow: bool = False
    """Copy no more requests."""
    stop: bool = False
    """Take the service away."""
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)
    """The steps of a canary, and when it goes back."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    """How the model is served; a canary and a shadow are served as what serves now, but for what is given."""


def job(config: Config) -> None:
    if config.stop:
        _take_away()
        print("nothing is served any more")
        return
    if config.canary:
        result = serving.roll_out(config.model, policy=config.rollout, config=config.serve)
        require_done(result)
        print(f"rollout done: {result.reason}; {result.digest[:12]} serves")
        return
    if config.shadow or config.end_shadow:
        serving.shadow(None if config.end_shadow else config.model, share=config.shadow, config=config.serve)
        print(
            "no requests are copied any more" if config.end_shadow else f"{config.shadow:g}% of the requests are copied"
        )
        return
    served = serving.deploy(
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
