"""What is sent to Serve and what stays as it was, on a cluster in memory: nothing here starts."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from llmray.errors import UnavailableError
from llmray.serve import service as services
from llmray.serve.control import Application, ServeControl
from llmray.serve.engines import ModelArgs
from llmray.serve.rollout import RolloutPolicy
from llmray.serve.service import GATEWAY_APP, REGISTRY_APP, ModelSource, Service
from llmray.serve.tally import Tally
from llmray.serve.variants import GatewayConfig, TextLog

AT_ONCE = RolloutPolicy(steps=(50, 100), min_requests=0)


class MemoryControl(ServeControl):
    """Applications that run as soon as they are sent."""

    def __init__(self) -> None:
        self.apps: dict[str, Any] = {}

    def applications(self) -> dict[str, dict[str, Any]]:
        return dict(self.apps)

    def http_address(self) -> tuple[str, int] | None:
        return "127.0.0.1", 8000

    def apply(
        self, changes: Mapping[str, Application | None], *, host: str, port: int, everywhere: bool = False
    ) -> None:
        self.apps = {name: app for name, app in {**self.apps, **changes}.items() if app is not None}

    def wait_running(self, names: Iterable[str], *, timeout_s: float) -> None:
        assert set(names) <= set(self.apps)

    def wait_gone(self, names: Iterable[str], *, timeout_s: float) -> None:
        assert not set(names) & set(self.apps)


class MemoryService(Service):
    def __init__(self) -> None:
        self.cluster = MemoryControl()
        super().__init__(self.cluster, host="127.0.0.1", port=8000, runtime_env={})
        self.events: list[tuple[str, str]] = []
        self.registry_is_away = False
        self.running: dict[str, int] = {}
        self.missed: list[str] = []
        """Applications that the gateway was told of and that were gone."""

    def ask(self, app: str, deployment: str, method: str, *arguments: Any) -> Any:
        if app == REGISTRY_APP and self.registry_is_away:
            raise TimeoutError("the registry is away")
        if method == "add_event":
            self.events.append((arguments[0], arguments[1]))
        return {"info": {}, "count_alarms": 0}.get(method)

    def serve(self, letter: str, **more: Any) -> None:
        self.deploy(
            source(letter),
            name="docs",
            default_prompt=None,
            registry_env={},
            monitor=None,
            embeddings={},
            text_log=more.get("text_log"),
            timeout_s=1.0,
        )

    def roll(self, letter: str) -> str:
        result = self.rollout(source(letter), AT_ONCE, drive=self._drive, timeout_s=1.0, step_timeout_s=0.0, poll_s=0.0)
        return result.status

    def served(self) -> GatewayConfig:
        config = self.config()
        assert config is not None
        return config

    def models(self) -> set[str]:
        return {name[6] for name in self.cluster.apps if name.startswith("model-")}

    def _drive(self, weight: float) -> None:
        self._look_for_missing()

    def _look_for_missing(self) -> None:
        config = self.served()
        wanted = [variant.app for variant in config.variants]
        wanted += [config.shadow.variant.app] if config.shadow else []
        self.missed += [app for app in wanted if app not in self.cluster.apps]

    def _send(self, changes: Mapping[str, Any]) -> None:
        super()._send(changes)
        self._look_for_missing()

    def _traffic(self) -> list[dict[str, Any]]:
        apps = {name: Tally(running=self.running.get(name, 0)) for name in self.cluster.apps}
        return [{"replica": "one", "config": self.served().model_dump(), "apps": apps}]


def source(letter: str) -> ModelSource:
    return ModelSource(args=ModelArgs(uri="nothing", digest=letter * 64))


@pytest.fixture
def service() -> MemoryService:
    made = MemoryService()
    made.serve("a")
    return made


def test_every_move_is_an_event(service: MemoryService) -> None:
    service.shadow(source("b"), share=10.0, timeout_s=1.0)
    assert service.roll("b") == "done"
    service.serve("a")
    service.serve("a")
    service.shadow(source("b"), share=10.0, timeout_s=1.0)
    service.shadow(None, share=0.0, timeout_s=1.0)
    assert [(kind, subject[0]) for kind, subject in service.events] == [
        ("rollout.deployed", "a"),
        ("shadow.started", "b"),
        ("shadow.ended", "b"),
        ("rollout.step", "b"),
        ("rollout.step", "b"),
        ("rollout.done", "b"),
        ("rollout.deployed", "a"),
        ("shadow.started", "b"),
        ("shadow.ended", "b"),
    ]


def test_a_shadow_that_is_rolled_out_is_there_all_the_time(service: MemoryService) -> None:
    service.shadow(source("b"), share=100.0, timeout_s=1.0)
    assert service.roll("b") == "done"
    assert service.missed == []
    assert (service.served().shadow, service.models()) == (None, {"b"})


def test_deploy_keeps_the_shadow_and_what_is_kept_of_texts(service: MemoryService) -> None:
    service.serve("a", text_log=TextLog(share=20.0, redact=True))
    service.shadow(source("b"), share=10.0, timeout_s=1.0)
    before = service.served()
    service.serve("c", text_log=TextLog(share=30.0))
    assert service.served().shadow == before.shadow
    assert service.served().text_log == TextLog(share=30.0, redact=True)
    assert service.models() == {"b", "c"}
    service.serve("b")
    assert (service.served().shadow, service.models(), service.missed) == (None, {"b"}, [])


def test_a_new_split_leaves_what_the_gateway_was_given_otherwise(service: MemoryService) -> None:
    app = service.cluster.apps[GATEWAY_APP]
    app["deployments"] = [{"name": "Other"}, {**app["deployments"][0], "num_replicas": 3}]
    assert service.roll("b") == "done"
    other, gateway = service.cluster.apps[GATEWAY_APP]["deployments"]
    assert other == {"name": "Other"}
    assert gateway["num_replicas"] == 3
    assert [variant["digest"][0] for variant in gateway["user_config"]["variants"]] == ["b"]


def test_a_registry_that_is_away_stops_no_rollout_but_nothing_grows_unwatched(
    service: MemoryService, caplog: pytest.LogCaptureFixture
) -> None:
    service.registry_is_away = True
    result = service.rollout(source("b"), AT_ONCE, drive=None, timeout_s=1.0, step_timeout_s=0.0, poll_s=0.0)
    assert (result.status, result.judged) == ("rolled_back", False)
    assert "no word from the monitors" in result.reason
    assert service.models() == {"a"}
    assert "rollout.rolled_back" in caplog.text


def test_a_long_answer_on_the_old_model_does_not_fail_a_rollout(
    service: MemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "LONGEST_ANSWER_S", 0.0)
    service.running = {source("a").app: 1}
    assert service.roll("b") == "done"
    assert service.models() == {"a", "b"}
    service.running = {}
    assert service.roll("c") == "done"  # cleans up first
    assert service.models() == {"c"}


def test_a_canary_that_was_left_behind_goes_back_before_another(service: MemoryService) -> None:
    left, gone = source("b"), UnavailableError("the dashboard is away")

    def die(weight: float) -> None:
        monkey.setattr(service, "split", lose)
        raise gone

    def lose(config: GatewayConfig) -> None:
        raise gone

    with pytest.MonkeyPatch.context() as monkey, pytest.raises(UnavailableError):
        service.rollout(left, AT_ONCE, drive=die, timeout_s=1.0, step_timeout_s=0.0, poll_s=0.0)
    assert [variant.weight for variant in service.served().variants] == [50, 50]
    assert service.roll("a") == "done"  # what serves already has the rest of the traffic too
    assert [variant.weight for variant in service.served().variants] == [100]
    assert ("rollout.abandoned", left.args.digest) in service.events
    assert service.roll("c") == "done"
    assert service.models() == {"c"}


def test_another_way_of_answering_is_another_application() -> None:
    plain = ModelArgs(uri="", digest="a" * 64)
    assert plain.app == "model-aaaaaaaaaaaa-nf4"
    place = ModelArgs(uri="elsewhere", digest="a" * 64, max_replicas=3, num_cpus=2, routing="prefix", max_waiting=9)
    assert place.app == plain.app
    ways: list[dict[str, Any]] = [
        {"engine": "echo"},
        {"engine": "external", "external": {"command": ["serve", "{port}"]}},
        {"adapters": {"tone": "folder"}},
        {"device": "cuda"},
        {"num_gpus": 1},
        {"kv_gb": 2},
    ]
    names = {ModelArgs(uri="", digest="a" * 64, **way).app for way in ways}
    assert len(names) == len(ways)
    assert all(name.startswith(f"{plain.app}-") for name in names)
