"""Step: a model that learned from preferences, by DPO."""

from dataclasses import replace

from llmray.align.spec import AlignSpec
from llmray.artifact import Artifact
from llmray.flow.step import charge, step, work_folder


@step()
def align(model: Artifact, data: Artifact, spec: AlignSpec) -> Artifact:
    """`model` after DPO on the preferences in `data`; killed and called again it goes on from the last checkpoint."""
    from llmray.align.dpo import align as run_alignment
    from llmray.cluster import connect

    connect()
    result = run_alignment(replace(spec, model=model.uri, data=data.uri), run_dir=str(work_folder()))
    charge(core_seconds=result.core_seconds, gpu_seconds=result.gpu_seconds)
    return result.artifact
