"""Steps: pre-training and fine-tuning, the same function under two names, so that each shows up as what it is."""

from dataclasses import replace

from llmray.artifact import Artifact
from llmray.flow.step import metered, step, work_folder
from llmray.train.spec import TrainSpec


def _train(model: Artifact, data: Artifact, spec: TrainSpec) -> Artifact:
    """`model` trained on `data`; killed and called again it goes on from the last checkpoint."""
    from llmray.cluster import connect
    from llmray.train.trainer import train

    connect()
    with metered(cores=spec.num_workers * spec.cpus_per_worker, gpus=spec.num_workers * spec.gpus_per_worker):
        return train(replace(spec, model=model.uri, data=data.uri), run_dir=str(work_folder())).artifact


pretrain = step(name="pretrain")(_train)
finetune = step(name="train")(_train)
