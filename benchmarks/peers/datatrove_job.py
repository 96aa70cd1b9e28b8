"""datatrove's near-duplicate job as its documentation lays it out; runs in datatrove's own environment, without llmray.

python benchmarks/peers/datatrove_job.py INPUT WORK BANDS ROWS WORDS WORKERS
"""

import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Signatures, buckets, clusters, filter: one local executor a stage, as many tasks as files."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    source, work = arguments[0], Path(arguments[1])
    bands, rows, words, workers = map(int, arguments[2:])
    config = MinhashConfig(n_grams=words, num_buckets=bands, hashes_per_bucket=rows)
    files = len(list(Path(source).glob("*.jsonl")))
    reader = JsonlReader(source, glob_pattern="*.jsonl")
    signatures, buckets, removed = (str(work / name) for name in ("signatures", "buckets", "removed"))
    stages = [
        (files, [reader, MinhashDedupSignature(output_folder=signatures, config=config)]),
        (bands, [MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)]),
        (1, [MinhashDedupCluster(input_folder=buckets, output_folder=removed, config=config)]),
        (
            files,
            [
                reader,
                MinhashDedupFilter(input_folder=removed),
                JsonlWriter(str(work / "kept"), compression=None),
            ],
        ),
    ]
    for number, (tasks, pipeline) in enumerate(stages, 1):
        LocalPipelineExecutor(
            pipeline=pipeline,
            tasks=tasks,
            workers=min(tasks, workers),
            logging_dir=str(work / "logs" / str(number)),
        ).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
