"""Put a model into service and change it there: deploy, rollout, status, shutdown.

Everything is one description of applications, sent to Serve. A new model always starts beside the old one; then only
the gateway's weights move; the old application is taken away when nothing runs on it any more. So no request fails. A
driver that dies in the middle leaves a description that the next call goes on from. Every move is an event in the registry;
one that is away is a warning, and stops nothing.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmray.errors import ConfigError, InputError, UnavailableError
from llmray.serve.canary import Canary, RolloutResult
from llmray.serve.control import DeploymentFailedError, ServeControl, check_port, wait_for
from llmray.serve.engines import ModelArgs
from llmray.serve.rollout import RolloutPolicy
from llmray.serve.tally import Tally, together
from llmray.serve.variants import GatewayConfig, Shadow, TextLog, Variant

logger = logging.getLogger(__name__)

GATEWAY_APP, REGISTRY_APP, MONITOR_APP = "gateway", "registry", "monitor"
_MODEL_PREFIX, _EMBEDDER = "model-", "embedder-"
_TAKE_OVER_S = 60.0
LONGEST_ANSWER_S = 600.0
"""A replica that is taken away gets this long to finish the answers that it began."""
_GATEWAY, _MODEL, _REGISTRY, _MONITOR = "Gateway", "Model", "RegistryBridge", "Monitor"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model to serve."""

    args: ModelArgs
    price_s: float | None = None
    """Money for a second of all its replicas; None without a price list."""

    @property
    def app(self) -> str:
        """Name of its Serve application."""
        return self.args.app

    def variant(self, name: str, weight: float) -> Variant:
        """This model behind the gateway."""
        return self.args.variant(name, weight, price_s=self.price_s)


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


class Service:
    """The applications of one cluster."""

    def __init__(self, control: ServeControl, *, host: str, port: int, runtime_env: Mapping[str, Any]) -> None:
        self.control = control
        self._runtime_env = dict(runtime_env)
        self._host, self._port = host, port
        self._gateways: dict[str, Mapping[str, Tally]] = {}
        self._gateway: Any = None
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
        if app is None:
            return None
        [gateway] = [one for one in app["deployments"] if one["name"] == _GATEWAY]
        return GatewayConfig.model_validate(gateway["user_config"])

    def deploy(
        self,
        source: ModelSource,
        *,
        name: str,
        default_prompt: str | None,
        registry_env: Mapping[str, str] | None,
        monitor: Mapping[str, Any] | None,
        embeddings: Mapping[str, Mapping[str, Any]],
        text_log: TextLog | None,
        timeout_s: float,
    ) -> Deployed:
        """Serve a model with all of the traffic; one that was served before is drained and taken away.

        A shadow goes on, unless it is this model. What `text_log` does not say stays as it was.
        """
        began = time.monotonic()
        before = self.config()
        shadow = None if before is None else _unless(source.app, before.shadow)
        kept = TextLog() if before is None else before.text_log
        config = GatewayConfig(
            model=name,
            variants=[source.variant("stable", 100.0)],
            monitor_app=None if monitor is None else MONITOR_APP,
            default_prompt=default_prompt,
            shadow=shadow,
            embeddings={model: f"{_EMBEDDER}{model}" for model in embeddings},
            text_log=kept.model_copy(update=text_log.model_dump(exclude_unset=True)) if text_log else kept,
        )
        changes: dict[str, Any] = {source.app: self._model_app(source)}
        for model, args in embeddings.items():
            changes[f"{_EMBEDDER}{model}"] = self._app(f"{_EMBEDDER}{model}", "embedder", args)
        if registry_env is not None:
            changes[REGISTRY_APP] = self._app(REGISTRY_APP, "registry", {}, env=registry_env)
        if monitor is not None:
            changes[MONITOR_APP] = self._app(MONITOR_APP, "monitor", dict(monitor))
        registry_app = None if registry_env is None else REGISTRY_APP
        if before is None:
            changes[GATEWAY_APP] = self._gateway_app(config, registry_app)
        self._start(changes, timeout_s)
        if before is not None:
            self.split(config)
        self._note_deployed(before, config)
        if before is not None:
            self._remove_unused(config)
            if monitor is None and MONITOR_APP in self.control.applications():
                self._send({MONITOR_APP: None})
        return Deployed(
            url=f"{self.url}/v1",
            name=name,
            digest=source.args.digest,
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
        config = self.config()
        if config is None:
            raise InputError("nothing is served yet: deploy a model first")
        stable, left = config.variants[0], config.variants[-1]
        if left.app not in (stable.app, source.app):  # another canary was left behind
            config = config.model_copy(update={"variants": [stable.model_copy(update={"weight": 100.0})]})
            self.split(config)
            self.event("rollout.abandoned", left.digest, {"reason": f"{source.args.digest} is rolled out instead"})
        if stable.app == source.app:
            return RolloutResult(status="done", reason="it has all of the traffic already", digest=source.args.digest)
        if config.shadow is not None and _unless(source.app, config.shadow) is None:  # from now on it is heard
            shadow, config = config.shadow, config.model_copy(update={"shadow": None})
            self.split(config)
            self._note_shadow(shadow, None)
        self._remove_unused(config, keep=[source.app])
        self._start({source.app: self._model_app(source)}, timeout_s)
        new = source.variant("canary", policy.steps[0])
        canary = Canary(self, config, new, policy, step_timeout_s=step_timeout_s, poll_s=poll_s)
        result, final = canary.run(drive)
        self._remove_unused(final)
        return result

    def shadow(self, source: ModelSource | None, *, share: float, timeout_s: float) -> None:
        """Copy a share of the requests, in percent, to a model that nobody hears; None ends it.

        Raises:
            InputError: nothing is served yet, or the model serves already.
        """
        config = self.config()
        if config is None:
            raise InputError("nothing is served yet: deploy a model first")
        shadow = None
        if source is not None:
            if source.app in {variant.app for variant in config.variants}:
                raise InputError(f"{source.app} answers requests already: it cannot be a shadow too")
            shadow = Shadow(variant=source.variant("shadow", 0.0), share=share)
            self._start({source.app: self._model_app(source)}, timeout_s)
        before, config = config.shadow, config.model_copy(update={"shadow": shadow})
        self.split(config)
        self._note_shadow(before, shadow)
        self._remove_unused(config)

    def model_options(self) -> dict[str, Any]:
        """How the model that has the traffic is served: arguments of its application but for the model itself.

        Raises:
            InputError: nothing is served yet.
        """
        config = self.config()
        if config is None:
            raise InputError("nothing is served yet: deploy a model first")
        args = self.control.applications()[config.variants[0].app]["args"]
        return {name: value for name, value in args.items() if name not in ("uri", "digest")}

    def shutdown(self, *, timeout_s: float) -> None:
        """Take everything of ours away, the gateway first: what it still holds reaches the registry."""
        from ray import serve

        apps = self.control.applications()
        models = sorted(name for name in apps if name.startswith((_MODEL_PREFIX, _EMBEDDER)))
        for names in ([GATEWAY_APP], [*models, MONITOR_APP], [REGISTRY_APP]):
            if there := [name for name in names if name in apps]:
                self._send(dict.fromkeys(there))
                self.control.wait_gone(there, timeout_s=timeout_s)
        if not self.control.applications():
            serve.shutdown()

    def split(self, config: GatewayConfig) -> None:
        """Have the gateway use a configuration; its replicas stay."""
        app = dict(self.control.applications()[GATEWAY_APP])
        app["deployments"] = [
            {**one, "user_config": config.model_dump()} if one["name"] == _GATEWAY else one
            for one in app["deployments"]
        ]
        self._send({GATEWAY_APP: app})
        wait_for(
            lambda: all(one["config"] == config.model_dump() for one in self._traffic()),
            timeout_s=_TAKE_OVER_S,
            what="the gateway to take its new configuration",
        )

    def tally(self, app: str) -> Tally:
        """What the gateway's replicas counted of an application since they started, those that are gone since included."""
        for one in self._traffic():
            self._gateways[one["replica"]] = one["apps"]
        return together(apps[app] for apps in self._gateways.values() if app in apps)

    def watch_anew(self, digest: str, reason: str) -> None:
        """Have the monitor watch a model as if it were new; one that it has not seen is new already."""
        try:
            if (
                MONITOR_APP in self.control.applications()
                and digest in self.ask(MONITOR_APP, _MONITOR, "status")["models"]
            ):
                self.ask(MONITOR_APP, _MONITOR, "reset", digest, reason, anew=True)
        except Exception as error:  # whatever the way to the monitor can raise
            logger.warning("the monitor of %s cannot be set anew now: %s", digest[:12], error)

    def alarms(self, digest: str, since: datetime) -> int | None:
        """Alarms of the monitors about a model; None where the registry does not say."""
        try:
            if REGISTRY_APP not in self.control.applications():
                return 0
            return int(self.ask(REGISTRY_APP, _REGISTRY, "count_alarms", digest, since))
        except Exception as error:  # whatever the way to the registry can raise
            logger.warning("the alarms about %s cannot be read now: %s", digest[:12], error)
            return None

    def event(self, kind: str, subject: str, payload: Mapping[str, Any]) -> None:
        """Keep what was done, in the registry if there is one and it can be reached."""
        try:
            if REGISTRY_APP in self.control.applications():
                self.ask(REGISTRY_APP, _REGISTRY, "add_event", kind, subject, dict(payload))
        except Exception as error:  # whatever the way to the registry can raise
            logger.warning("the event %s of %s was not kept: %s", kind, subject[:12], error)

    def ask(self, app: str, deployment: str, method: str, *arguments: Any, **named: Any) -> Any:
        """Call one method of a deployment."""
        from ray import serve

        handle = serve.get_deployment_handle(deployment, app)
        return getattr(handle, method).remote(*arguments, **named).result(timeout_s=30)

    def _start(self, changes: Mapping[str, Any], timeout_s: float) -> None:
        there = self.control.applications()
        self._send(changes)
        try:
            self.control.wait_running(changes, timeout_s=timeout_s)
        except (DeploymentFailedError, UnavailableError):
            self._send({name: there.get(name) for name in changes})
            self.control.wait_gone([name for name in changes if name not in there], timeout_s=_TAKE_OVER_S)
            raise

    def _note_deployed(self, before: GatewayConfig | None, now: GatewayConfig) -> None:
        if before is not None and before.variants == now.variants:
            return
        new, replaced = now.variants[0], [] if before is None else [one.digest for one in before.variants]
        self.event("rollout.deployed", new.digest, {"app": new.app, "replaced": replaced})
        self._note_shadow(None if before is None else before.shadow, now.shadow)

    def _note_shadow(self, before: Shadow | None, now: Shadow | None) -> None:
        if before is not None and (now is None or now.variant.app != before.variant.app):
            self.event("shadow.ended", before.variant.digest, {"app": before.variant.app})
        if now is not None and now != before:
            self.event("shadow.started", now.variant.digest, {"app": now.variant.app, "share": now.share})

    def _remove_unused(self, config: GatewayConfig, *, keep: Collection[str] = ()) -> None:
        """Take away the models that get no traffic, once nothing runs on them; one that is not done is the next call's."""
        used = {variant.app for variant in config.variants} | set(config.embeddings.values()) | set(keep)
        if config.shadow is not None:
            used.add(config.shadow.variant.app)
        ours = [name for name in self.control.applications() if name.startswith((_MODEL_PREFIX, _EMBEDDER))]
        unused = [name for name in ours if name not in used]
        if not unused:
            return

        def idle() -> bool:
            return not any(
                apps[name].running for one in self._traffic() for name in unused if name in (apps := one["apps"])
            )

        try:
            wait_for(idle, timeout_s=LONGEST_ANSWER_S, what=f"{', '.join(unused)} to finish their answers")
            self._send(dict.fromkeys(unused))
            self.control.wait_gone(unused, timeout_s=LONGEST_ANSWER_S)
        except UnavailableError as error:  # the traffic has moved all the same
            logger.warning("what serves no more is left for the next deploy or rollout to take away: %s", error)

    def _traffic(self) -> list[dict[str, Any]]:
        """What every replica of the gateway says; one that has just died says nothing."""
        from ray import serve
        from ray.serve.exceptions import DeploymentUnavailableError

        if self._gateway is None:
            self._gateway = serve.get_deployment_handle(_GATEWAY, GATEWAY_APP)
        said: list[dict[str, Any]] = []

        def answered() -> bool:
            try:
                found = self._gateway.broadcast("traffic").results(timeout_s=30, return_exceptions=True)
            except DeploymentUnavailableError:  # a new handle does not know the replicas yet
                return False
            said[:] = [one for one in found if not isinstance(one, BaseException)]
            return bool(said)

        wait_for(answered, timeout_s=_TAKE_OVER_S, what="the gateway to answer")
        return said

    def _send(self, changes: Mapping[str, Any]) -> None:
        self.control.apply(changes, host=self._host, port=self._port)

    def _gateway_app(self, config: GatewayConfig, registry_app: str | None) -> dict[str, Any]:
        app = self._app(GATEWAY_APP, "gateway", {"registry_app": registry_app}, route_prefix="/")
        return app | {"deployments": [{"name": _GATEWAY, "user_config": config.model_dump()}]}

    def _model_app(self, source: ModelSource) -> dict[str, Any]:
        return self._app(source.app, "model", source.args.model_dump(exclude_defaults=True))

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
            "import_path": f"llmray.deployment:{builder}",
            "runtime_env": runtime_env,
            "args": dict(args),
        }


def _unless(app: str, shadow: Shadow | None) -> Shadow | None:
    """A shadow, unless it is an application that answers from now on."""
    return None if shadow is None or shadow.variant.app == app else shadow
