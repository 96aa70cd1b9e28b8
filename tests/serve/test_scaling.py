"""How many replicas: the policy alone, and as Serve's controller runs it."""

import asyncio
import math
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    from ray.serve.config import AutoscalingConfig

from llmray.serve.echo_engine import EchoEngine
from llmray.serve.engine import EngineLoad, EngineRequest
from llmray.serve.engines import ModelArgs
from llmray.serve.scaling import (
    FirstTokens,
    ReplicaLoad,
    ScalingPolicy,
    ScalingState,
    TokenScaling,
    autoscaling_config,
    desired_replicas,
)

POLICY = ScalingPolicy(ttft_objective_s=2.0, requests_per_replica=10)


def load(
    *, tokens: float = 0, speed: float = 0, ttft_s: float = 0, waiting: float = 0, under_way: float = 0
) -> ReplicaLoad:
    return ReplicaLoad(
        under_way=under_way, waiting=waiting, waiting_tokens=tokens, prefill_tokens_per_s=speed, ttft_s=ttft_s
    )


def state(replicas: int, asking: float, *loads: ReplicaLoad, target: int | None = None) -> ScalingState:
    return ScalingState(replicas=replicas, target=replicas if target is None else target, asking=asking, loads=loads)


def test_nothing_to_do_is_no_replica_and_something_is_one() -> None:
    assert desired_replicas(state(1, 0), POLICY) == 0
    assert desired_replicas(state(0, 1), POLICY) == 1
    assert desired_replicas(state(1, 0.2, load()), POLICY) == 1
    assert desired_replicas(state(0, 0, target=1), POLICY) == 1  # one that still starts is awaited


def test_waiting_tokens_beyond_the_objective_ask_for_as_many_as_they_need() -> None:
    # 1,000 tokens a second and 2 s: a replica may have 2,000 tokens before a new request
    assert desired_replicas(state(1, 3, load(tokens=1900, speed=1000)), POLICY) == 1
    assert desired_replicas(state(1, 3, load(tokens=9000, speed=1000)), POLICY) == 5
    assert desired_replicas(state(2, 3, load(tokens=9000, speed=1000), load(speed=2000)), POLICY) == 3


def test_requests_under_way_ask_for_replicas_too() -> None:
    assert desired_replicas(state(1, 25, load()), POLICY) == 3


def test_measured_first_tokens_count_while_requests_wait_and_nothing_starts() -> None:
    late = load(ttft_s=3.0, waiting=1)
    assert desired_replicas(state(2, 4, late, late), POLICY) == 3
    assert desired_replicas(state(2, 4, late, late, target=3), POLICY) == 2  # the third one is awaited, and enough
    assert desired_replicas(state(2, 19, load(ttft_s=3.0), load(ttft_s=3.0)), POLICY) == 2


def test_down_goes_one_at_a_time_and_only_with_room_to_spare() -> None:
    assert desired_replicas(state(5, 1, *[load()] * 5), POLICY) == 4
    assert desired_replicas(state(2, 9.5, load(), load()), POLICY) == 2  # one replica would be 95% full
    assert desired_replicas(state(2, 6.5, load(), load()), POLICY) == 1


@given(
    replicas=st.integers(0, 50),
    requests=st.floats(0, 1000),
    tokens=st.floats(0, 1e6),
    more=st.floats(0, 1000),
)
def test_more_load_never_asks_for_less(replicas: int, requests: float, tokens: float, more: float) -> None:
    def wanted(requests: float, tokens: float) -> int:
        loads = (load(tokens=tokens, speed=1000),) * replicas
        return desired_replicas(state(replicas, requests, *loads), POLICY)

    least = wanted(requests, tokens)
    assert least >= max(replicas - 1, 0) or least >= math.ceil(requests / POLICY.requests_per_replica)
    assert wanted(requests + more, tokens) >= least
    assert wanted(requests, tokens + more) >= least


def test_same_load_settles() -> None:
    for requests in (0.5, 7, 9.9, 35, 120):
        replicas = 40
        for _ in range(60):
            replicas = desired_replicas(state(replicas, requests, *[load()] * replicas), POLICY)
        settled = replicas
        assert desired_replicas(state(settled, requests, *[load()] * settled), POLICY) == settled
        assert settled * POLICY.requests_per_replica >= requests


def context(**changes: Any) -> Any:
    points = {"waiting_tokens": {"a": [SimpleNamespace(value=0.0), SimpleNamespace(value=900.0)]}}
    plain = {
        "raw_metrics": points | {"prefill_tokens_per_s": {"a": [SimpleNamespace(value=100.0)]}},
        "current_num_replicas": 1,
        "target_num_replicas": 1,
        "total_num_requests": 3.0,
        "running_replicas": ["a"],
    }
    return SimpleNamespace(**plain | changes)


def test_serve_context_gives_the_newest_figures() -> None:
    scaling = TokenScaling(ttft_objective_s=2.0, requests_per_replica=4.0)
    assert scaling(context()) == (5, {})
    assert scaling(context(raw_metrics=None)) == (1, {})
    assert scaling(context(running_replicas=["new"])) == (1, {})


def test_policy_runs_where_llmray_is_not_installed() -> None:
    config = autoscaling_config(ModelArgs(uri="", digest="", min_replicas=0, max_replicas=4, ttft_objective_s=1.5))
    assert config is not None
    pickled = config.policy.get_serialized_policy_def()
    code = (
        "import pickle, sys\n"
        f"policy = pickle.loads({pickled!r})(**{config.policy.policy_kwargs!r})\n"
        "assert not [name for name in sys.modules if name.startswith('llmray')], 'it brought llmray along'\n"
        "print(policy.__class__.__name__)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, env={})
    assert (done.stdout.strip(), done.stderr) == ("TokenScaling", "")


def test_arguments_become_serves_configuration() -> None:
    assert autoscaling_config(ModelArgs(uri="", digest="")) is None
    config = autoscaling_config(ModelArgs(uri="", digest="", min_replicas=0, max_replicas=4, downscale_delay_s=60))
    assert isinstance(config, AutoscalingConfig)
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (0, 1, 4)
    assert config.policy.policy_kwargs == {"ttft_objective_s": 2.0, "requests_per_replica": 32}
    for wrong in ({"min_replicas": 0}, {"max_replicas": 2, "num_replicas": 2}, {"max_replicas": 2, "min_replicas": 3}):
        with pytest.raises(ValidationError, match="_replicas"):
            ModelArgs(uri="", digest="", **wrong)


def test_first_tokens_are_timed_and_forgotten() -> None:
    now = 0.0

    async def ask(seconds: float) -> None:
        nonlocal now
        events = first.timed(EchoEngine().submit(EngineRequest(id="a", prompt="one two")))
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        now += seconds
        await waiting
        await events.aclose()

    async def scenario() -> None:
        nonlocal now
        for seconds in (1.0, 3.0, 2.0):
            await ask(seconds)
        assert first.median_s() == 2.0
        busy = EngineLoad(running=1, waiting=2, waiting_tokens=30, prefill_tokens_per_s=None)
        assert first.stats(busy, 5) == {
            "under_way": 5.0, "waiting": 2.0, "waiting_tokens": 30.0, "prefill_tokens_per_s": 0.0, "ttft_s": 2.0
        }  # fmt: skip
        now += 60
        assert first.median_s() == 0.0

    first = FirstTokens(clock=lambda: now)
    asyncio.run(scenario())
