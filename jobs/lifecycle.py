"""Go once round the whole loop: data, model, tuning, gate, service, drift, feedback, alignment, rollout.

python jobs/lifecycle.py
python jobs/lifecycle.py --name mine --sources 'my/data/*.jsonl.gz' --model path/or/hub-id --train.num_workers 4

Killed and called again it goes on from the last finished step; unchanged it does nothing and says so.
"""

import sys
from collections.abc import Sequence

from llmray.flow import summary
from llmray.flow.lifecycle import LifecycleConfig, run
from llmray.flow.report import write_report
from llmray.options import run_job


def job(config: LifecycleConfig) -> None:
    outcome = run(config)
    write_report(outcome, config.output)
    print(summary.text(outcome))


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(job, LifecycleConfig, argv, prog="jobs/lifecycle.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
