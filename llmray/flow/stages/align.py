"""Step: a model that learned from preferences, by DPO."""

from dataclasses import replace

from llmray.align.spec import AlignSpec
from llmray.artifact import Artifact
from llmray.flow.step import metered, step, work_folder


@step()
def align(model: Artifact, data: Artifact, spec: AlignSpec) -> Artifact:
    """`model` after DPO on the preferences in `data`; killed and called again it goes on from the last checkpoint."""
    from llmray.align.dpo import align as run_alignment
    from llmray.cluster import connect

    connect()
    with metered(cores=spec.num_workers * spec.cpus_per_worker, gpus=spec.num_workers * spec.gpus_per_worker):
        return run_alignment(replace(spec, model=model.uri, data=data.uri), run_dir=str(work_folder())).artifact
