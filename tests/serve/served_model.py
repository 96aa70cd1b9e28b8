"""What the `serve` tests get from their fixture."""

import warnings
from dataclasses import dataclass

import openai

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    import ray.serve  # noqa: F401

from llmray.registry.registry import Registry
from llmray.serve.service import Deployed


@dataclass
class Served:
    """A model in service, and the registry behind it."""

    deployed: Deployed
    registry: Registry
    database_url: str
    port: int

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.deployed.url, api_key="none", max_retries=0, timeout=60)
