"""The shell around the policy, on a lever in memory: steps, rolling back, and going on where a dead controller stopped."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from llmray.errors import UnavailableError
from llmray.serve.canary import Canary, RolloutResult
from llmray.serve.rollout import RolloutPolicy
from llmray.serve.tally import Tally
from llmray.serve.variants import GatewayConfig, Variant

OLD, NEW = (Variant(name="stable", app=f"app-{one}", digest=one * 64) for one in "ab")
POLICY = RolloutPolicy(steps=(5, 25, 100), min_requests=4)


class Service:
    """A gateway that answers a hundred requests each time somebody looks, and then some that fail."""

    def __init__(self, errors: Mapping[str, int]) -> None:
        self.config = GatewayConfig(model="docs", variants=[OLD])
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.weights: list[list[float]] = []
        self.alarmed: list[int | None] = []
        """What is known of alarms at the next looks."""
        self.watched_anew: list[str] = []
        self.gone = False
        """Whether it takes no configuration any more."""
        self._errors = errors
        self._tallies = {OLD.app: Tally(requests=5000, errors=4000, answers=1000), NEW.app: Tally()}

    def split(self, config: GatewayConfig) -> None:
        if self.gone:
            raise UnavailableError("the gateway does not answer")
        self.config = config
        self.weights.append([variant.weight for variant in config.variants])

    def tally(self, app: str) -> Tally:
        for variant in self.config.variants:
            if variant.app == app:
                count = round(variant.weight)
                errors = min(count, self._errors.get(app, 0))
                self._tallies[app] += Tally(requests=count, errors=errors, answers=count - errors)
        return self._tallies[app]

    def watch_anew(self, digest: str, reason: str) -> None:
        assert not self.weights, "before the first request"
        self.watched_anew.append(digest)

    def alarms(self, digest: str, since: datetime) -> int | None:
        return self.alarmed.pop(0) if self.alarmed else 0

    def event(self, kind: str, subject: str, payload: Mapping[str, Any]) -> None:
        self.events.append((kind, payload))


def roll(service: Service, drive: Any = None) -> RolloutResult:
    result, service.config = Canary(service, service.config, NEW, POLICY, step_timeout_s=60, poll_s=0.0).run(drive)
    return result


def test_good_model_takes_every_step_and_what_was_before_does_not_count() -> None:
    service = Service(errors={})
    assert roll(service).status == "done"
    assert service.weights == [[95, 5], [75, 25], [0, 100], [100]]
    assert [kind for kind, _ in service.events] == ["rollout.step"] * 3 + ["rollout.done"]
    assert service.config.variants == [NEW]


def test_bad_model_goes_back_at_the_first_step() -> None:
    service = Service(errors={NEW.app: 100})
    result = roll(service)
    assert (result.status, result.judged, result.digest) == ("rolled_back", True, OLD.digest)
    assert service.weights == [[95, 5], [100]]
    assert service.config.variants == [OLD]
    assert service.events[-1][0] == "rollout.rolled_back"


def test_next_controller_goes_on_at_the_weight_where_one_died() -> None:
    def die_at_25(weight: float) -> None:
        service.gone = weight == 25  # what is dead moves nothing any more
        if service.gone:
            raise ConnectionError

    service = Service(errors={})
    with pytest.raises(ConnectionError):
        roll(service, die_at_25)
    assert service.weights == [[95, 5], [75, 25]]
    service.weights.clear()
    service.gone = False
    assert roll(service).status == "done"
    assert service.weights == [[75, 25], [0, 100], [100]]


@pytest.mark.parametrize("error", [UnavailableError("the registry is away"), KeyboardInterrupt()])
def test_a_rollout_that_breaks_off_gives_the_traffic_back(error: BaseException) -> None:
    def break_off(weight: float) -> None:
        raise error

    service = Service(errors={})
    with pytest.raises(type(error)):
        roll(service, break_off)
    assert service.weights == [[95, 5], [100]]
    assert service.config.variants == [OLD]
    assert [kind for kind, _ in service.events] == ["rollout.step", "rollout.abandoned"]


def test_a_model_that_alarmed_once_is_watched_again() -> None:
    service = Service(errors={})
    roll(service)
    assert service.watched_anew == [NEW.digest]


def test_alarms_that_cannot_be_read_are_no_verdict_for_that_look() -> None:
    service = Service(errors={})
    service.alarmed = [None, None, 0, 0, None, 1]
    assert roll(service).reason == "the monitors raised 1 alarms"
    assert service.weights == [[95, 5], [75, 25], [0, 100], [100]]
    assert service.config.variants == [OLD]


def test_a_release_that_refuses_everything_gets_no_more() -> None:
    class Refused(Service):
        def tally(self, app: str) -> Tally:
            counted = super().tally(app)
            return Tally(requests=counted.requests, refused=counted.requests) if app == NEW.app else counted

    service = Refused(errors={})
    assert roll(service).status == "rolled_back"
    assert service.weights == [[95, 5], [100]]


def test_too_little_traffic_is_no_verdict() -> None:
    service = Service(errors={})
    policy = RolloutPolicy(steps=(1e-9, 100))
    result, final = Canary(service, service.config, NEW, policy, step_timeout_s=-1, poll_s=0.0).run(None)
    assert (result.status, result.judged) == ("rolled_back", False)
    assert final.variants == [OLD]
