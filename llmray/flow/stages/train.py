"""Steps: pre-training and fine-tuning, the same function under two names, so that each shows up as what it is."""

from dataclasses import replace

from llmray.artifact import Artifact
from llmray.flow.step import charge, step, work_folder
from llmray.train.spec import TrainSpec


def _train(model: Artifact, data: Artifact, spec: TrainSpec) -> Artifact:
    """`model` trained on `data`; killed and called again it goes on from the last checkpoint."""
    from llmray.cluster import connect
    from llmray.train.trainer import train

    connect()
    result = train(replace(spec, model=model.uri, data=data.uri), run_dir=str(work_folder()))
    charge(core_seconds=result.core_seconds, gpu_seconds=result.gpu_seconds)
    return result.artifact


pretrain = step(name="pretrain")(_train)
finetune = step(name="train")(_train)
