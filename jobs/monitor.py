"""Hold what people asked a model against the usual traffic, from the output log: drift or none, with its evidence.

python jobs/monitor.py --model docs@production --data docs@latest

The monitor of a running service does this as answers go out; this job looks at any stretch of the log afterwards. An
alarm goes to the registry (llmray alarms), once however often the job runs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmray import console
from llmray.flow import operations
from llmray.flow.watch import WatchConfig
from llmray.options import run_job


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is watched."""

    model: str = "docs@production"
    """The model whose traffic is looked at."""
    data: str = ""
    """Snapshot whose validation questions are the usual traffic; by default the one that the model was trained on."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """How sure an alarm must be, and which stretch of the log is read."""


def job(config: Config) -> None:
    found = operations.watch(config.model, config.data or None, config=config.watch)
    print(console.table(["figure", "value"], [[name, value] for name, value in found.items()]))
    print("\ndrift: what people ask is no longer usual" if found["alarm"] else "\nquiet")


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(job, Config, argv, prog="jobs/monitor.py", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
