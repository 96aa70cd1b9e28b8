"""A gateway over ports in memory that listens on a free port, in a thread."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvicorn
from memory_ports import Bench

from llmray.serve.gateway import create_app
from llmray.serve.intake import Limits

Result = TypeVar("Result")


class RunningGateway:
    def __init__(self, bench: Bench, limits: Limits | None = None) -> None:
        self.bench = bench
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(128)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        app = create_app(bench.gateway, limits)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=5))
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.server.serve([self._socket]))
        self.loop.close()
