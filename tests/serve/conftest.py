"""A tiny model made on the spot, and the served application that the `serve` tests share."""

from pathlib import Path

import pytest
from tiny_llama import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama with a byte-level tokenizer and a chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)
