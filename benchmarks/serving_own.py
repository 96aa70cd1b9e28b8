"""llmray's gateway and `hf` engine in one process, without Ray, for a benchmark of the engine's speed beside other servers.

python benchmarks/serving_own.py MODEL_FOLDER QUANTIZATION PORT
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from llmray.serve.core import Gateway
from llmray.serve.gateway import create_app
from llmray.serve.hf_engine import HfEngine
from llmray.serve.ports import Ports
from llmray.serve.variants import GatewayConfig, Variant

NAME = "model"


def main(argv: Sequence[str]) -> int:
    """Serve until told to end."""
    folder, quantization, port = argv
    logging.basicConfig(level=logging.INFO)
    engine = HfEngine.open(Path(folder), quantization, device="cpu")
    gateway = Gateway(Ports(), backend=lambda _: engine, watcher=lambda _: None)
    variant = Variant(name="stable", app="model", digest="0" * 64, quantization=quantization)
    gateway.configure(GatewayConfig(model=NAME, variants=[variant]))
    uvicorn.run(create_app(gateway), port=int(port), log_level="warning")
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
