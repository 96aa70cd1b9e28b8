"""One training on Ray in a process of its own, so that it can be killed and its bytes compared.

The cluster is the one of `RAY_ADDRESS`. Prints what came of it as JSON; exit code 75 where SIGTERM ended it at a checkpoint.

    python benchmarks/training_drive.py spec.json --run-dir run --root artifacts
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llmray import cluster
from llmray.errors import StoppedError
from llmray.train.spec import TrainSpec
from llmray.train.trainer import train

MARK = "RESULT "


def main(argv: Sequence[str] | None = None) -> int:
    """Train once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="JSON of the fields of a TrainSpec")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="where the model goes")
    parser.add_argument("--max-failures", type=int, default=2)
    args = parser.parse_args(argv)
    cluster.connect()
    began = time.time()
    try:
        result = train(
            TrainSpec(**json.loads(args.spec.read_text())),
            run_dir=str(args.run_dir),
            root_uri=str(args.root),
            max_failures=args.max_failures,
        )
    except StoppedError as error:
        print(error)
        return error.exit_code
    print(MARK + json.dumps({"began": began, "digest": result.artifact.digest, "seconds": result.seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
