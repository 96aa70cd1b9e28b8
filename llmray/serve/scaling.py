"""How many replicas a model should have: a pure policy over waiting tokens, first tokens and requests under way.

The prompt tokens that stand before a request that comes now, over the speed at which prompts are read, are the time to
its first token: so many replicas are wanted that this keeps the objective. Where an engine does not know its speed, the
first tokens it gave are measured. Up at once and by as much as is needed; down one replica at a time, only where the
smaller number would still have room to spare, and after Serve's delay. With nothing to do the policy says zero, and
`min_replicas` decides; a request that comes then asks for a replica by the gateway's handle, where Serve counts it
(`balancer`). The others pass Serve by (`channel`), and the replicas count them.

Serve's controller, which has none of our code, runs `TokenScaling` by value: it uses nothing of llmray. Serve 2.60 says
that its environment variables set how often figures are sent, but only the deprecated `metrics_interval_s` does.
Rejected: Serve's own policy (requests under way alone: a hundred short prompts and a hundred long ones are the same to
it), and a controller of ours beside Serve's.
"""

import math
import time
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    from llmray.serve.engine import EngineLoad, TokenEvent
    from llmray.serve.engines import ModelArgs

_PUSH_S = 1.0
"""How often replicas and handles say how busy they are."""
_LOOK_BACK_S = 5.0
"""Requests under way are the mean of so long."""
_RECENT_S = 10.0
"""First tokens older than this say nothing of now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaLoad:
    """One replica, as it said last."""

    under_way: float
    """Requests that it has taken and not finished, the mean of late."""
    waiting: float
    """Those without a first token."""
    waiting_tokens: float
    """Prompt tokens before a request that comes now."""
    prefill_tokens_per_s: float
    """Zero where it is not known."""
    ttft_s: float
    """Median time to the first tokens of the last seconds; zero where there were none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingState:
    replicas: int
    """Running now."""
    target: int
    """Asked for at the last decision; more than `replicas` while some start."""
    asking: float
    """Calls of Serve's that wait for a replica, or are under way."""
    loads: tuple[ReplicaLoad, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingPolicy:
    ttft_objective_s: float
    """Seconds to the first token that no request should exceed."""
    requests_per_replica: float
    """Requests under way that one replica should have."""
    room: float = 0.7
    """How full replicas may be, as a share, for there to be one less."""


def desired_replicas(state: ScalingState, policy: ScalingPolicy) -> int:
    """Replicas that the load asks for, before `min_replicas` and `max_replicas`."""
    work = _replicas_of_work(state, policy)
    wanted = math.ceil(work)
    if wanted >= state.target:
        return wanted
    if state.replicas == 0:
        return state.target  # the first one is awaited: only then is it known whether the model loads
    roomy = math.ceil(work / policy.room)
    return max(roomy, state.target - 1) if roomy < state.target else state.target


class TokenScaling:
    """`desired_replicas` as Serve calls it."""

    def __init__(self, ttft_objective_s: float, requests_per_replica: float) -> None:
        self._policy = ScalingPolicy(ttft_objective_s=ttft_objective_s, requests_per_replica=requests_per_replica)

    def __call__(self, context: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        raw: Mapping[str, Mapping[Any, Any]] = context.raw_metrics or {}

        def series(name: str, replica: Any) -> list[float]:
            return [float(point.value) for point in raw.get(name, {}).get(replica) or ()] or [0.0]

        def mean(name: str, replica: Any) -> float:
            return sum(values := series(name, replica)) / len(values)

        names = ("waiting", "waiting_tokens", "prefill_tokens_per_s", "ttft_s")
        state = ScalingState(
            replicas=context.current_num_replicas,
            target=context.target_num_replicas,
            asking=context.total_num_requests,
            loads=tuple(
                ReplicaLoad(under_way=mean("under_way", replica), **{name: series(name, replica)[-1] for name in names})
                for replica in context.running_replicas
            ),
        )
        return desired_replicas(state, self._policy), {}


def replica_options(args: "ModelArgs") -> dict[str, Any]:
    """How many replicas a model has: options of a Serve deployment."""
    scaling = autoscaling_config(args)
    return {"num_replicas": args.num_replicas} if scaling is None else {"autoscaling_config": scaling}


def autoscaling_config(args: "ModelArgs") -> "AutoscalingConfig | None":
    """Serve's configuration of it; None for a fixed number of replicas."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    if args.max_replicas is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # metrics_interval_s: what is to replace it does nothing
        return AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            initial_replicas=max(1, args.min_replicas),  # so that a model that does not load fails where it is deployed
            metrics_interval_s=_PUSH_S,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=args.upscale_delay_s,
            downscale_delay_s=args.downscale_delay_s,
            policy=AutoscalingPolicy(
                policy_function="llmray.serve.scaling:TokenScaling",
                policy_kwargs={
                    "ttft_objective_s": args.ttft_objective_s,
                    "requests_per_replica": args.requests_per_replica,
                },
            ),
        )


class FirstTokens:
    """Measures how long first tokens take in one replica."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque(maxlen=256)

    async def timed(self, events: AsyncGenerator["TokenEvent", None]) -> AsyncGenerator["TokenEvent", None]:
        """The same events."""
        began: float | None = self._clock()
        async with aclosing(events):
            async for event in events:
                if began is not None and event.num_tokens:
                    now = self._clock()
                    self._seen.append((now, now - began))
                    began = None
                yield event

    def median_s(self) -> float:
        """Of the last seconds; zero where there were none."""
        since = self._clock() - _RECENT_S
        recent = sorted(seconds for at, seconds in self._seen if at >= since)
        return recent[len(recent) // 2] if recent else 0.0

    def stats(self, load: "EngineLoad", under_way: int) -> dict[str, float]:
        """What Serve collects from a replica for `TokenScaling`."""
        return {
            "under_way": float(under_way),
            "waiting": float(load.waiting),
            "waiting_tokens": float(load.waiting_tokens),
            "prefill_tokens_per_s": load.prefill_tokens_per_s or 0.0,
            "ttft_s": self.median_s(),
        }


def _replicas_of_work(state: ScalingState, policy: ScalingPolicy) -> float:
    """How many replicas the load would just fill."""
    loads = state.loads
    work = (state.asking + sum(load.under_way for load in loads)) / policy.requests_per_replica
    speeds = [load.prefill_tokens_per_s for load in loads if load.prefill_tokens_per_s > 0]
    if speeds:
        one_replica = sum(speeds) / len(speeds) * policy.ttft_objective_s
        work = max(work, sum(load.waiting_tokens for load in loads) / one_replica)
    # What was measured is late: it counts only while requests wait, and never on top of replicas that still start.
    if loads and state.target <= state.replicas and any(load.waiting for load in loads):
        late = sum(load.ttft_s for load in loads) / len(loads) / policy.ttft_objective_s
        if late > 1:
            work = max(work, len(loads) * min(late, 2.0))
    return work
