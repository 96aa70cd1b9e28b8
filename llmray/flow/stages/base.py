"""Step: a tokenizer and random weights, learned from a dataset's plain text, for when the user brings no model."""

from llmray.artifact import Artifact
from llmray.flow.step import step
from llmray.resources import Resources
from llmray.train.base_model import BaseModelSpec


@step(resources=Resources(cpu=1))
def newborn(data: Artifact, shape: BaseModelSpec) -> Artifact:
    """A small Llama that knows how to cut text into tokens, and nothing else yet."""
    from llmray.train.base_model import make_base

    return make_base(data.uri, shape)
