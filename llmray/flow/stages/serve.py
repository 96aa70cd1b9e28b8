"""Steps behind the gateway: a model meets people, and a new model takes over from the one that serves.

What these steps do to the world stays in the registry (outputs, feedback, alarms, rollout events), in the same database
as the cache: where the result is known, so is all that it speaks of.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC
from typing import Any, Literal

from llmray import artifact as artifacts
from llmray.artifact import Artifact
from llmray.client.http import Client
from llmray.errors import ConfigError, InputError, UnavailableError
from llmray.flow.run import open_run
from llmray.flow.step import metered, step
from llmray.flow.traffic import Question, ordered, unusual_questions
from llmray.flow.visit import Crowd, Reply, Visitors, Watch, annotate
from llmray.serve import quantizations
from llmray.serve.rollout import RolloutPolicy
from llmray.serve.service import Deployed
from llmray.serve.variants import TextLog

log = logging.getLogger(__name__)

_PLACE = {"identity": False}
_OF_ENGINE = (
    *("quantization", "engine", "external", "adapters", "kv_gb", "routing"),
    *("num_replicas", "min_replicas", "max_replicas", "num_cpus", "num_gpus", "timeout_s"),
    *("ttft_limit_s", "ttft_objective_s"),
)
_BESIDE = 0.4
"""Cores reserved for gateway, registry and monitor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """How a model is served."""

    quantization: str = "nf4"
    """How the weights are kept: nf4, int8, bf16, or none for as stored; nf4-bf16 for another output head than int8."""
    engine: str = field(default="hf", metadata={"code": True})
    """hf, external, echo, or your own as module:attribute."""
    external: dict[str, Any] | None = None
    """For the engine external: the server to start (command, health, can, …: `llmray.serve.external_args`)."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Folders of LoRA adapters, by the names that clients ask for as model."""
    embeddings: dict[str, str] = field(default_factory=dict)
    """Folders of embedding models (or minilm), by the names that clients ask for as model."""
    kv_gb: float | None = field(default=None, metadata=_PLACE)
    """Memory for keys and values, in GB; by default 1.07 on a CPU and 70% of what is free on a GPU."""
    text_share: float | None = field(default=None, metadata=_PLACE)
    """Percent of the outputs whose texts are kept in the output log; by default as before, and at first all."""
    redact: bool | None = field(default=None, metadata=_PLACE)
    """Whether personal data and keys are masked in the texts that are kept; by default as before, and at first not."""
    num_replicas: int = field(default=1, metadata=_PLACE)
    """Replicas of each model, where max_replicas is not given."""
    min_replicas: int = field(default=1, metadata=_PLACE)
    """Fewest replicas where max_replicas is given: 0 lets an idle model go."""
    max_replicas: int | None = field(default=None, metadata=_PLACE)
    """Most replicas; their number follows waiting tokens and the time to the first token."""
    ttft_objective_s: float = field(default=2.0, metadata=_PLACE)
    """Seconds to the first token that the number of replicas is to keep."""
    ttft_limit_s: float = field(default=10.0, metadata=_PLACE)
    """Seconds to the first token beyond which a request is refused at once."""
    routing: Literal["power_of_two", "prefix", "session"] = field(default="power_of_two", metadata=_PLACE)
    """Which replica gets a request: the less busy of two; the one that has seen its prompt's beginning, or its user."""
    num_cpus: float = field(default=0.5, metadata=_PLACE)
    """Cores reserved for each model."""
    num_gpus: float = field(default=0.0, metadata=_PLACE)
    """GPUs reserved for each model."""
    host: str = field(default="127.0.0.1", metadata=_PLACE)
    """Address to listen on; one that other machines reach needs an API key first (`llmray keys create`)."""
    port: int = field(default=8000, metadata=_PLACE)
    """Port to listen on."""
    average_run_length: float = 10_000.0
    """Usual requests between two false alarms of the monitor, at least, in the mean."""
    timeout_s: float = field(default=180.0, metadata=_PLACE)
    """Seconds that a model may take to start."""

    def __post_init__(self) -> None:
        if self.engine == "hf":
            quantizations.parse(self.quantization)
        if self.text_share is not None and not 0 <= self.text_share <= 100:
            raise ConfigError(f"serve.text_share ({self.text_share}) must lie between 0 and 100")
        if not 0 < self.port < 65536:
            raise ConfigError(f"serve.port ({self.port}) must lie between 1 and 65535: try 8000")
        for name in ("ttft_objective_s", "ttft_limit_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"serve.{name} ({getattr(self, name)}) must be above 0")
        if not self.average_run_length > 1:
            raise ConfigError(f"serve.average_run_length ({self.average_run_length}) must be above 1: try 10000")

    def engine_options(self) -> dict[str, Any]:
        """What `llmray.deployment` takes for each model: what differs from the defaults, so that a canary inherits the rest."""
        usual = ServeConfig()
        return {name: getattr(self, name) for name in _OF_ENGINE if getattr(self, name) != getattr(usual, name)}

    def text_log(self) -> TextLog:
        """How much text is kept; what is not given stays as it is."""
        given = {"share": self.text_share, "redact": self.redact}
        return TextLog.model_validate({name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficConfig:
    """The simulated people of the lifecycle."""

    usual: int = 100
    """Questions about what the model was trained for; each is answered twice."""
    unusual: int = 40
    """Questions about something else, asked until the monitor raises an alarm."""
    max_tokens: int = 24
    """Longest answer, in tokens."""
    temperature: float = 0.8
    """Temperature of the second answer; the first is greedy."""
    seed: int = 0
    """Seed of who asks what."""

    def __post_init__(self) -> None:
        for name in ("usual", "unusual", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"traffic.{name} ({getattr(self, name)}) must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counter:
    """Where people come to: what is served under which name, by which prompt."""

    name: str
    """Model name that clients ask for."""
    prompt: str
    """Reference of the prompt, `ask-docs@production`."""
    prompt_digest: str
    """What it names."""


@step()
def converse(
    model: Artifact, data: Artifact, counter: Counter, serving: ServeConfig, config: TrafficConfig
) -> Artifact:
    """Serve a model, let people ask it usual things and unusual ones, and let an annotator judge its answers.

    Returns:
        An artifact of kind `traffic`: `replies.jsonl`, `feedback.jsonl`, `monitor.json`; its report says how many
        requests failed, whether the monitor was quiet on the usual traffic, and when it raised its alarm.
    """
    from llmray import deployment

    with metered(cores=serving.num_cpus + _BESIDE):
        served = put_into_service(model, data, name=counter.name, serving=serving)
        deployment.reset_monitor(model.digest, "other people come in")
        with _visitors(served, counter, config.max_tokens) as visitors:
            talk = _talk(visitors, Client(served.url), model, data, config)
    replies = [*talk.first, *talk.second, *talk.unusual]
    if all(reply.error for reply in replies):
        raise UnavailableError(f"none of {len(replies)} questions was answered: {replies[0].error}")
    with artifacts.draft("traffic") as draft:
        _write_lines(draft.folder / "replies.jsonl", [asdict(reply) for reply in replies])
        _write_lines(draft.folder / "feedback.jsonl", talk.feedback)
        curve = {"curve": talk.curve, "usual": talk.usual, "alarm": talk.alarm}
        (draft.folder / "monitor.json").write_text(json.dumps(curve))
        return draft.seal(
            parents={"model": model.digest, "data": data.digest},
            config={"serve": asdict(serving), "traffic": asdict(config), "prompt": counter.prompt},
            report={
                "url": served.url,
                "engine": dict(served.engine),
                **_counted(replies),
                "seconds_p50": _quantile([reply.seconds for reply in replies], 0.5),
                "seconds_p95": _quantile([reply.seconds for reply in replies], 0.95),
                "quiet_on_usual": talk.quiet,
                "alarm": talk.alarm,
                "feedback": _by_kind(talk.feedback),
                "mean_f1": _mean([line["f1"] for line in talk.feedback if line["kind"] == "thumb"]),
            },
        )


@step()
def canary(
    *,
    stable: Artifact,
    candidate: Artifact,
    data: Artifact,
    counter: Counter,
    serving: ServeConfig,
    policy: RolloutPolicy,
    config: TrafficConfig,
) -> dict[str, Any]:
    """Roll `candidate` out beside `stable` while people go on asking.

    Returns:
        `status` (done, rolled_back), `reason`, `steps` (what was counted at each weight), `requests`, `failed`, `errors`.

    Raises:
        UnavailableError: too few requests came to judge by, which says nothing about the candidate.
    """
    from llmray import deployment

    questions = fresh_questions(data.uri, config.usual, config.seed)
    with metered(cores=2 * serving.num_cpus + _BESIDE):
        served = put_into_service(stable, data, name=counter.name, serving=serving)
        with _visitors(served, counter, config.max_tokens) as visitors, Crowd(visitors, questions) as crowd:
            result = deployment.rollout(candidate.uri, candidate.digest, policy=policy, **serving.engine_options())
    if not result.judged:
        raise UnavailableError(f"the rollout went back without a verdict: {result.reason}; try again")
    counted = _counted(crowd.replies)
    log.info("rollout: %s, %d requests, %d failed", result.status, counted["requests"], counted["failed"])
    return {
        "status": result.status,
        "reason": result.reason,
        "steps": [dict(one) for one in result.steps],
        **counted,
    }


def put_into_service(
    model: Artifact, data: Artifact | None, *, name: str, prompt: str | None = None, serving: ServeConfig | None = None
) -> Deployed:
    """Serve a model with all of the traffic; what is served already, with the same options, just goes on.

    Args:
        data: the snapshot whose validation questions are the usual traffic; None for no monitor.
        prompt: reference of the prompt for chats that name none.
    """
    from llmray import cluster, deployment

    serving = serving or ServeConfig()
    cluster.connect()
    monitor = None
    if data is not None:
        monitor = deployment.MonitorArgs(data_uri=data.uri, average_run_length=serving.average_run_length)
    return deployment.deploy(
        model.uri,
        model.digest,
        name=name,
        default_prompt=prompt,
        monitor=monitor,
        embeddings={name: deployment.EmbedderArgs(uri=uri) for name, uri in serving.embeddings.items()},
        text_log=serving.text_log(),
        host=serving.host,
        port=serving.port,
        **serving.engine_options(),
    )


def fresh_questions(data_uri: str, count: int, seed: int) -> list[Question]:
    """Validation questions that the monitor's reference does not hold, with what the data answers.

    Raises:
        InputError: there are none.
    """
    from llmray.data.snapshot import load_rows
    from llmray.monitor.reference import usual_messages

    _, fresh = usual_messages(data_uri)
    wanted = set(fresh)
    columns = ["id", "messages", "choices"]
    rows = load_rows(data_uri, shape="messages", split="validation", columns=columns).sort_by("id").to_pylist()
    found = {
        row["messages"][0]["content"]: Question(
            id=row["id"], text=row["messages"][0]["content"], answer=row["messages"][-1]["content"]
        )
        for row in rows
        if row["choices"] is None and len(row["messages"]) == 2 and row["messages"][0]["content"] in wanted
    }
    if not found:
        raise InputError(f"{data_uri} has no validation question of one turn to ask: curate with validation_fraction")
    return ordered(list(found.values()), seed)[:count]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Talk:
    """What people and the model said to each other, and what was said about it."""

    first: Sequence[Reply]
    second: Sequence[Reply]
    unusual: Sequence[Reply]
    usual: int
    """Usual answers."""
    quiet: bool
    """Whether the monitor raised no alarm on them."""
    alarm: Mapping[str, Any] | None
    """The one on the unusual questions."""
    feedback: Sequence[Mapping[str, Any]]
    curve: Sequence[tuple[int, float]]


def _talk(visitors: Visitors, gateway: Client, model: Artifact, data: Artifact, config: TrafficConfig) -> _Talk:
    """Ask the usual questions twice, have the answers judged, and then ask about something else."""
    questions = fresh_questions(data.uri, config.usual, config.seed)
    others = [
        Question(id=f"unusual-{number}", text=text, answer="")
        for number, text in enumerate(unusual_questions(config.unusual, config.seed))
    ]
    watch = Watch(visitors)
    first = watch.ask(questions, temperature=0.0, seed=config.seed)
    second = watch.ask(questions[::-1], temperature=config.temperature, seed=config.seed)[::-1]
    usual, quiet = watch.asked, not watch.alarms
    log.info("traffic: %d usual answers, the monitor %s", usual, "is quiet" if quiet else "raised an ALARM")
    feedback = annotate(gateway, first, second)
    unusual = watch.ask(others, temperature=0.0, seed=config.seed, until_alarm=True)
    alarm = _alarm(model.digest, usual) if watch.alarms and quiet else None
    told = "no alarm" if alarm is None else f"drift alarm after {alarm['after_unusual']} of them"
    log.info("traffic: %d unusual questions: %s", len(unusual), told)
    return _Talk(
        first=first,
        second=second,
        unusual=unusual,
        usual=usual,
        quiet=quiet,
        alarm=alarm,
        feedback=feedback,
        curve=watch.curve,
    )


@contextmanager
def _visitors(served: Deployed, counter: Counter, max_tokens: int) -> Iterator[Visitors]:
    visitors = Visitors(served.url, model=counter.name, prompt=counter.prompt, max_tokens=max_tokens)
    try:
        yield visitors
    finally:
        visitors.close()


def _alarm(model_digest: str, usual: int) -> Mapping[str, Any] | None:
    """The newest alarm about a model, as the registry has it."""
    with open_run("traffic") as run:
        event = next((one for one in run.registry.events("drift.alarm") if one.subject == model_digest), None)
    if event is None:
        return None
    return {
        "event": event.id,
        "after_unusual": event.payload["after"] - usual,
        "statistic": event.payload["statistic"],
        "average_run_length": event.payload["average_run_length"],
        "at": event.at.astimezone(UTC).isoformat(),
    }


def _counted(replies: Sequence[Reply]) -> dict[str, Any]:
    failed = [reply for reply in replies if reply.error]
    return {
        "requests": len(replies),
        "failed": len(failed),
        "errors": sorted({str(reply.error) for reply in failed})[:5],
    }


def _by_kind(feedback: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    kinds = [str(line["kind"]) for line in feedback]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _write_lines(path: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _quantile(values: Sequence[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 4)


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
