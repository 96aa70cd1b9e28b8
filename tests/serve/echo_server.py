"""Our own gateway over the echo engine as a server of its own: what the tests of the external engine start.

python echo_server.py PORT STEP_S
"""

import sys

import uvicorn

from llmray.serve.core import Gateway
from llmray.serve.echo_engine import EchoEngine
from llmray.serve.gateway import create_app
from llmray.serve.ports import Ports
from llmray.serve.variants import GatewayConfig, Variant


def main(port: int, step_s: float) -> None:
    engine = EchoEngine(step_s=step_s, context_tokens=64)
    gateway = Gateway(Ports(), backend=lambda _: engine, watcher=lambda _: None)
    gateway.configure(GatewayConfig(model="echo", variants=[Variant(name="stable", app="echo", digest="a" * 64)]))
    app = create_app(gateway)

    @app.get("/active")
    async def active() -> int:
        return engine.active

    print("echo server begins")
    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
