"""schemathesis on our OpenAPI document: what the document says is what a gateway on a port does, and nothing breaks it.

Bodies are generated that fit the document, and bodies that do not. `model` is fixed, since any other is a 404 before
anything else is looked at. Rules that JSON Schema has no words for (one field needs another) are 400s for bodies that fit
the document, so 400 is let through where schemathesis expects such a body to be taken.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from memory_ports import Bench
from running_gateway import RunningGateway
from scripted_model import ScriptedEngine
from test_openai_client import Lengths

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    from llmray.deployment import RegistryBridge

from llmray.serve.gateway import create_app


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    registry = RegistryBridge.func_or_class(f"sqlite:///{tmp_path_factory.mktemp('registry') / 'registry.db'}")
    bench = Bench(stable=ScriptedEngine(), registry=registry)
    bench.embedders["embed-app"] = Lengths()
    bench.configure(embeddings={"lengths": "embed-app"})
    running = RunningGateway(bench)
    yield running
    running.stop()


NEED_OTHERS = {"stream_options", "top_logprobs", "variables", "tool_choice", "max_completion_tokens", "prompt", "tools"}
"""Fields of chats that are refused without, or beside, another one."""
SAID = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "user"]},
        "content": {"type": "string"},
        "name": {"enum": ["eve", None]},
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}


def documented(*, answerable: bool) -> Any:
    """The document, with the models that the gateway has; or only chats that nothing speaks against."""
    document = create_app(Bench().gateway).openapi()
    for path, model in (("chat/completions", "docs"), ("completions", "docs"), ("embeddings", "lengths")):
        body = document["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        fields = body["properties"]
        fields["model"] = {"const": model}
        if "timeout_s" in fields:  # less would be over before there is an answer, which is a 504
            fields["timeout_s"] = {"type": "number", "minimum": 60, "maximum": 86_400}
        if answerable and "messages" in fields:
            body["properties"] = fields = {name: fields[name] for name in fields.keys() - NEED_OTHERS}
            body["required"] = ["model", "messages"]
            fields["messages"] = {"type": "array", "minItems": 1, "maxItems": 5, "items": SAID}
            fields["n"] = {"enum": [1, 2, None]}
    schema = schemathesis.openapi.from_dict(document)
    schema.config.generation.update(deterministic=True)
    schema.config.checks.positive_data_acceptance.expected_statuses = ["2xx", "400", "404"]
    if not answerable:
        return schema
    schema.config.checks.negative_data_rejection.enabled = False  # the gateway takes more than this document says
    return schema.include(path="/v1/chat/completions")


schema = documented(answerable=False)
chats = documented(answerable=True)
bounded = settings(
    max_examples=30,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@schema.parametrize()
@bounded
def test_the_gateway_keeps_to_its_document(running: RunningGateway, case: schemathesis.Case) -> None:
    case.call_and_validate(base_url=running.url.removesuffix("/v1"))


@chats.parametrize()
@bounded
def test_chats_are_answered_as_the_document_says(running: RunningGateway, case: schemathesis.Case) -> None:
    case.call_and_validate(base_url=running.url.removesuffix("/v1"))
