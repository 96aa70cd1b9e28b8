"""Engines of known speed for the benchmarks of the framework itself: `--engine benchmarks.serving_engines:…` of a model."""

from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engines import ModelArgs

STEP_S = 0.02


def at_once(_: ModelArgs) -> EchoEngine:
    """Answers as fast as it is asked."""
    return EchoEngine()


def paced(_: ModelArgs) -> EchoEngine:
    """A word every 20 ms, as a model of that speed would: the machine is not saturated by what is measured."""
    return EchoEngine(step_s=STEP_S)
