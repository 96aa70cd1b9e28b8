"""Step: raw rows in, a deduplicated and cleaned dataset snapshot with its report out."""

from collections.abc import Sequence

from llmray.artifact import Artifact
from llmray.data.config import CurateConfig
from llmray.flow.inputs import SourceFile
from llmray.flow.step import metered, step


@step()
def curate(
    sources: Sequence[SourceFile],
    config: CurateConfig,
    parent: Artifact | None = None,
    against: Artifact | None = None,
    others: Sequence[SourceFile] = (),  # noqa: ARG001  (part of the key)
) -> Artifact:
    """A dataset snapshot of what the files hold.

    Args:
        parent: artifact that the files belong to, for its lineage.
        against: snapshot that is added to.
        others: files besides the sources that decide, as `config` names them: evaluation sets, models of embedders.
    """
    from llmray.cluster import connect

    connect()  # first: Ray Data reads its log level when it is imported
    import ray

    from llmray.data.curate import curate as run_curation

    with metered(cores=ray.cluster_resources().get("CPU", 1.0)):
        return run_curation(
            [source.uri for source in sources],
            config=config,
            parents={"source": parent.digest} if parent is not None else None,
            against=None if against is None else against.uri,
        )
