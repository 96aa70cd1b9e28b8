"""Step: the documentation of the running Python as raw rows, for when the user brings none."""

import platform
import sys

from llmray import artifact as artifacts
from llmray.artifact import Artifact
from llmray.flow.step import step
from llmray.resources import Resources


@step(resources=Resources(cpu=1), name="source")
def python_docs(installation: str) -> Artifact:
    """Raw rows, as an artifact of kind `source` that holds jsonl.gz files.

    Args:
        installation: `running_python()`: another installation has other documentation.
    """
    from llmray.data.python_docs import write_python_docs

    with artifacts.draft("source") as draft:
        counts = write_python_docs(draft.folder)
        return draft.seal(config={"installation": installation}, report={"rows": counts})


def running_python() -> str:
    """Which Python this is, exactly."""
    return f"{platform.python_implementation()} {sys.version} at {sys.base_prefix}"
