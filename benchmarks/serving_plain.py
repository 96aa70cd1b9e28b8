"""The peer of `serving_overhead.py`: the same engine behind FastAPI and uvicorn in one process, and nothing else.

python benchmarks/serving_plain.py PORT paced
"""

import sys
from collections.abc import AsyncGenerator

import orjson
import serving_engines
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from llmray.serve.engine import EngineRequest, Sampling
from llmray.serve.engines import ModelArgs


def create_app(engine_name: str) -> FastAPI:
    """One route that streams a chat."""
    app = FastAPI()
    engine = getattr(serving_engines, engine_name)(ModelArgs(uri="", digest=""))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = orjson.loads(await request.body())
        asked = EngineRequest(
            id="1", messages=tuple(body["messages"]), sampling=Sampling(max_tokens=body.get("max_tokens"))
        )
        return StreamingResponse(_sse(asked), media_type="text/event-stream")

    async def _sse(asked: EngineRequest) -> AsyncGenerator[bytes, None]:
        async for event in engine.submit(asked):
            choice = {"index": 0, "delta": {"content": event.text}, "finish_reason": event.finish_reason}
            yield b"data: " + orjson.dumps({"object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"
        yield b"data: [DONE]\n\n"

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
