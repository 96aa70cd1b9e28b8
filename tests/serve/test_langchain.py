"""langchain's standard suite for chat models, through `ChatOpenAI` and a gateway on a port.

What the suite skips by its own properties (images, sound, PDF files, Anthropic's content blocks) are inputs that no
engine here reads; such messages are refused. The suite is not ours, so its asynchronous tests are marked here.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from memory_ports import Bench
from running_gateway import RunningGateway
from scripted_model import ScriptedEngine


@pytest.fixture(scope="class")
def running(request: pytest.FixtureRequest) -> Iterator[None]:
    bench = Bench(stable=ScriptedEngine())
    bench.configure(adapters=("poet",))
    running = RunningGateway(bench)
    request.cls.url = running.url
    yield
    running.stop()


# what ChatOpenAI says of itself: it reads schemas of pydantic 1 another way, and prints what the openai client parsed
@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema", "ignore:Pydantic serializer warnings")
@pytest.mark.usefixtures("running")
class TestChatOpenAI(ChatModelIntegrationTests):
    url: str

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "docs", "base_url": self.url, "api_key": "none", "stream_usage": True, "max_retries": 0}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "poet"

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:  # type: ignore[override]
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        model = ChatOpenAI(**self.chat_model_params)
        if not stream:
            return model.invoke("Hello again")
        first, *others = model.stream("Hello again")
        for other in others:
            first += other  # type: ignore[assignment]
        return first

    @pytest.mark.xfail(reason="measures time with cassettes of recorded answers; our answers are never recorded")
    def test_stream_time(self) -> None:  # type: ignore[override]
        raise NotImplementedError


for name in dir(TestChatOpenAI):
    if asyncio.iscoroutinefunction(getattr(TestChatOpenAI, name)):
        # one event loop: ChatOpenAI keeps its connections for as long as the process lives
        pytest.mark.asyncio(loop_scope="class")(getattr(TestChatOpenAI, name))
