"""Put a model into service and change it there: deploy, rollout, status, shutdown.

Everything is one description of applications, sent to Serve. A new model always starts beside the old one; then only the
gateway's weights move; the old application is taken away when nothing runs on it any more. So no request fails.
A driver that dies in the middle leaves a description that the next call goes on from.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from llmray.errors import ConfigError, InputError, UnavailableError
from llmray.serve.control import DeploymentFailedError, ServeControl, check_port, wait_for
from llmray.serve.rollout import Advance, Counted, RollBack, RolloutPolicy, RolloutState, decide
from llmray.serve.variants import GatewayConfig, Variant

logger = logging.getLogger(__name__)

GATEWAY_APP, REGISTRY_APP, MONITOR_APP = "gateway", "registry", "monitor"
_GATEWAY, _MODEL, _REGISTRY = "Gateway", "Model", "RegistryBridge"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model to serve."""

    uri: str
    """Folder of the model artifact."""
    digest: str
    quantization: str = "nf4"
    """`nf4`, `int8` or `none`."""
    engine: str = "hf"
    num_cpus: float = 0.5
    num_gpus: float = 0.0
    num_replicas: int = 1

    @property
    def app(self) -> str:
        """Name of the Serve application: one for each digest and quantization."""
        return f"model-{self.digest[:12]}-{self.quantization}"

    def variant(self, name: str, weight: float) -> Variant:
        """This model behind the gateway."""
        return Variant(
            name=name,
            app=self.app,
            digest=self.digest,
            weight=weight,
            quantization=self.quantization,
            engine=self.engine,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployed:
    url: str
    """Base URL for OpenAI's clients: ends in `/v1`."""
    name: str
    """Model name that clients ask for."""
    digest: str
    app: str
    engine: Mapping[str, Any]
    """What the engine says of itself: load time in seconds, bytes of weights, device."""
    seconds: float
    """From the call to a running application."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutResult:
    status: Literal["done", "rolled_back"]
    reason: str
    digest: str
    """The model that has all the traffic now."""
    steps: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)
    """For each weight: what was counted and decided."""


class Service:
    """The applications of one cluster."""

    def __init__(self, control: ServeControl, *, host: str, port: int, runtime_env: Mapping[str, Any]) -> None:
        self.control = control
        self._runtime_env = dict(runtime_env)
        self._host, self._port = host, port
        if (address := control.http_address()) is None:
            check_port(host, port)
        elif address != (host, port):
            raise ConfigError(
                f"Serve listens on {address[0]}:{address[1]} already, not on {host}:{port}: use that, or shut it down"
            )

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self._host in ("0.0.0.0", "::") else self._host  # noqa: S104
        return f"http://{host}:{self._port}"

    def config(self) -> GatewayConfig | None:
        """How the traffic is split now; None without a gateway."""
        app = self.control.applications().get(GATEWAY_APP)
        return None if app is None else GatewayConfig.model_validate(app["deployments"][0]["user_config"])

    def deploy(
        self,
        source: ModelSource,
        *,
        name: str,
        default_prompt: str | None,
        registry_env: Mapping[str, str] | None,
        monitor: Mapping[str, Any] | None,
        timeout_s: float,
    ) -> Deployed:
        """Serve a model with all of the traffic; one that was served before is drained and taken away."""
        began = time.monotonic()
        before = self.config()
        config = GatewayConfig(
            model=name,
            variants=[source.variant("stable", 100.0)],
            monitor_app=None if monitor is None else MONITOR_APP,
            default_prompt=default_prompt,
        )
        changes: dict[str, Any] = {source.app: self._model_app(source)}
        if registry_env is not None:
            changes[REGISTRY_APP] = self._app(REGISTRY_APP, "registry", {}, env=registry_env)
        if monitor is not None:
            changes[MONITOR_APP] = self._app(MONITOR_APP, "monitor", dict(monitor))
        registry_app = None if registry_env is None else REGISTRY_APP
        if before is None:
            changes[GATEWAY_APP] = self._gateway_app(config, registry_app)
        self._start(changes, timeout_s)
        if before is not None:
            self._split(config, timeout_s=timeout_s)
            self._remove_unused(config, timeout_s=timeout_s)
            if monitor is None and MONITOR_APP in self.control.applications():
                self._send({MONITOR_APP: None})
        return Deployed(
            url=f"{self.url}/v1",
            name=name,
            digest=source.digest,
            app=source.app,
            engine=self.ask(source.app, _MODEL, "info"),
            seconds=time.monotonic() - began,
        )

    def rollout(
        self,
        source: ModelSource,
        policy: RolloutPolicy,
        *,
        drive: Callable[[float], None] | None,
        timeout_s: float,
        step_timeout_s: float,
        poll_s: float,
    ) -> RolloutResult:
        """Give a new model more and more of the traffic, or take it back."""
        before = self.config()
        if before is None:
            raise InputError("nothing is served yet: deploy a model first")
        stable = before.variants[0]
        if stable.app == source.app:
            return RolloutResult(status="done", reason="it has all of the traffic already", digest=source.digest)
        alone = before.model_copy(update={"variants": [stable.model_copy(update={"weight": 100.0})]})
        canary = len(before.variants) > 1 and before.variants[-1].app == source.app
        if len(before.variants) > 1 and not canary:
            self._split(alone, timeout_s=timeout_s)
        self._remove_unused(before if canary else alone, timeout_s=timeout_s)
        self._start({source.app: self._model_app(source)}, timeout_s)
        began, baseline, steps = datetime.now(UTC), self._counted(stable.app, source.app), []
        outcome: Advance | RollBack = Advance()
        for weight in policy.steps:
            variants = [stable.model_copy(update={"weight": 100.0 - weight}), source.variant("canary", weight)]
            self._split(before.model_copy(update={"variants": variants}), timeout_s=timeout_s)
            self._event("rollout.step", source.digest, {"weight": weight, "stable": stable.digest})
            at_start = self._counted(source.app)[0]
            if drive is not None:
                drive(weight)

            def look(at_start: Counted = at_start) -> RolloutState:
                now_stable, now_canary = self._counted(stable.app, source.app)
                return RolloutState(
                    stable=_since(now_stable, baseline[0]),
                    canary=_since(now_canary, baseline[1]),
                    at_step=now_canary.requests - at_start.requests,
                    alarms=0 if policy.ignore_alarms else self._alarms(source.digest, began),
                )

            outcome, state = _decided(look, policy, timeout_s=step_timeout_s, poll_s=poll_s)
            steps.append({"weight": weight, "requests": state.canary.requests, "errors": state.canary.errors})
            logger.info(
                "rollout: %g%% to %s: %d requests, %d errors", weight, source.digest[:12], *_numbers(state.canary)
            )
            if isinstance(outcome, RollBack):
                break
        winner = stable if isinstance(outcome, RollBack) else source.variant("stable", 100.0)
        final = before.model_copy(update={"variants": [winner.model_copy(update={"weight": 100.0})]})
        self._split(final, timeout_s=timeout_s)
        self._remove_unused(final, timeout_s=timeout_s)
        back = isinstance(outcome, RollBack)
        reason = outcome.reason if isinstance(outcome, RollBack) else "every step passed"
        self._event("rollout.rolled_back" if back else "rollout.done", source.digest, {"reason": reason, "steps": steps})
        return RolloutResult(
            status="rolled_back" if back else "done", reason=reason, digest=winner.digest, steps=tuple(steps)
        )

    def shutdown(self, *, timeout_s: float) -> None:
        """Take everything of ours away, the gateway first: what it still holds reaches the registry."""
        from ray import serve

        apps = self.control.applications()
        models = sorted(name for name in apps if name.startswith("model-"))
        for names in ([GATEWAY_APP], [*models, MONITOR_APP], [REGISTRY_APP]):
            if there := [name for name in names if name in apps]:
                self._send(dict.fromkeys(there))
                self.control.wait_gone(there, timeout_s=timeout_s)
        if not self.control.applications():
            serve.shutdown()

    def ask(self, app: str, deployment: str, method: str, *arguments: Any) -> Any:
        """Call one method of a deployment."""
        from ray import serve

        handle = serve.get_deployment_handle(deployment, app)
        return getattr(handle, method).remote(*arguments).result(timeout_s=30)

    def _start(self, changes: Mapping[str, Any], timeout_s: float) -> None:
        there = self.control.applications()
        self._send(changes)
        try:
            self.control.wait_running(changes, timeout_s=timeout_s)
        except (DeploymentFailedError, UnavailableError):
            self._send({name: there.get(name) for name in changes})
            raise

    def _split(self, config: GatewayConfig, *, timeout_s: float) -> None:
        """Have the gateway use a configuration; its replicas stay."""
        app = dict(self.control.applications()[GATEWAY_APP])
        app["deployments"] = [{"name": _GATEWAY, "user_config": config.model_dump()}]
        self._send({GATEWAY_APP: app})
        wait_for(
            lambda: self._traffic()["config"] == config.model_dump(),
            timeout_s=timeout_s,
            what="the gateway to take its new configuration",
        )

    def _remove_unused(self, config: GatewayConfig, *, timeout_s: float) -> None:
        """Take away the models that get no traffic, once nothing runs on them."""
        used = {variant.app for variant in config.variants}
        unused = [name for name in self.control.applications() if name.startswith("model-") and name not in used]
        if not unused:
            return

        def idle() -> bool:
            counts = self._traffic()["apps"]
            return not any(counts.get(name, {}).get("running") for name in unused)

        wait_for(idle, timeout_s=timeout_s, what=f"{', '.join(unused)} to finish their answers")
        self._send(dict.fromkeys(unused))
        self.control.wait_gone(unused, timeout_s=timeout_s)

    def _traffic(self) -> dict[str, Any]:
        return dict(self.ask(GATEWAY_APP, _GATEWAY, "traffic"))

    def _counted(self, *apps: str) -> list[Counted]:
        """Ended requests of applications, since the gateway started."""
        counts = self._traffic()["apps"]
        empty = {"requests": 0, "errors": 0, "running": 0}
        found = [counts.get(app, empty) for app in apps]
        return [Counted(requests=each["requests"] - each["running"], errors=each["errors"]) for each in found]

    def _alarms(self, digest: str, since: datetime) -> int:
        if REGISTRY_APP not in self.control.applications():
            return 0
        return int(self.ask(REGISTRY_APP, _REGISTRY, "count_alarms", digest, since))

    def _event(self, kind: str, subject: str, payload: Mapping[str, Any]) -> None:
        if REGISTRY_APP in self.control.applications():
            self.ask(REGISTRY_APP, _REGISTRY, "add_event", kind, subject, dict(payload))

    def _send(self, changes: Mapping[str, Any]) -> None:
        self.control.apply(changes, host=self._host, port=self._port)

    def _gateway_app(self, config: GatewayConfig, registry_app: str | None) -> dict[str, Any]:
        app = self._app(GATEWAY_APP, "gateway", {"registry_app": registry_app}, route_prefix="/")
        return app | {"deployments": [{"name": _GATEWAY, "user_config": config.model_dump()}]}

    def _model_app(self, source: ModelSource) -> dict[str, Any]:
        names = ("uri", "digest", "quantization", "engine", "num_cpus", "num_gpus", "num_replicas")
        return self._app(source.app, "model", {name: getattr(source, name) for name in names})

    def _app(
        self,
        name: str,
        builder: str,
        args: Mapping[str, Any],
        *,
        route_prefix: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        runtime_env = {**self._runtime_env, **({"env_vars": dict(env)} if env else {})}
        return {
            "name": name,
            "route_prefix": route_prefix,
            "import_path": f"llmray.deploy:{builder}",
            "runtime_env": runtime_env,
            "args": dict(args),
        }


def _decided(
    look: Callable[[], RolloutState], policy: RolloutPolicy, *, timeout_s: float, poll_s: float
) -> tuple[Advance | RollBack, RolloutState]:
    deadline = time.monotonic() + timeout_s
    while True:
        state = look()
        decision = decide(state, policy)
        if isinstance(decision, Advance | RollBack):
            return decision, state
        if time.monotonic() > deadline:
            return RollBack(f"after {timeout_s:g} s there were only {decision.reason}"), state
        time.sleep(poll_s)


def _since(now: Counted, then: Counted) -> Counted:
    return Counted(requests=now.requests - then.requests, errors=now.errors - then.errors)


def _numbers(counted: Counted) -> tuple[int, int]:
    return counted.requests, counted.errors
