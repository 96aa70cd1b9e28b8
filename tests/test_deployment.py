"""The composition root without a cluster: arguments, the folder check, the bridge."""

import asyncio
import json
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Ray Serve's own, from pydantic, as it is imported
    from llmray import deployment

from llmray import artifact
from llmray.errors import ConfigError, InputError, NotFoundError
from llmray.outputs import Feedback, Output
from llmray.serve.engine import EngineRequest
from llmray.serve.engines import ModelArgs, checked_folder, open_engine
from llmray.serve.packing import pack

OUTPUT = Output(
    id="out1",
    at=datetime(2026, 1, 1, tzinfo=UTC),
    prompt_digest=None,
    prompt_reference=None,
    variables={"a": "b"},
    messages=[{"role": "user", "content": "hi\0"}],
    completion="there\0",
    finish_reason="stop",
    model_digest="a" * 64,
    variant="stable",
    quantization="nf4",
    engine="hf",
    sampling={"temperature": 0.0, "stop": ("x",)},
    prompt_tokens=1,
    completion_tokens=1,
    ttft_s=None,
    latency_s=0.5,
)


def test_folder_must_hold_the_artifact_that_was_evaluated(tmp_path: Path) -> None:
    with artifact.draft("model", root_uri=str(tmp_path)) as draft:
        (draft.folder / "config.json").write_text("{}")
        made = draft.seal()
    with artifact.draft("dataset", root_uri=str(tmp_path)) as draft:
        (draft.folder / "config.json").write_text("{}")
        data = draft.seal()
    assert checked_folder(made.uri, made.digest) == made.local()
    with pytest.raises(InputError, match="the artifact that was evaluated"):
        checked_folder(made.uri, "f" * 64)
    with pytest.raises(InputError, match="holds a dataset"):
        checked_folder(data.uri, data.digest)
    with pytest.raises(InputError, match="has no config"):
        checked_folder(str(tmp_path / "empty"), "f" * 64)


def test_engine_is_a_name_or_a_path() -> None:
    engine = open_engine(ModelArgs(uri="", digest="", engine="llmray.serve.engines:echo_engine"))

    async def ask() -> str:
        request = EngineRequest(id="a", prompt="one two")
        return "".join([event.text async for event in engine.submit(request)])

    assert asyncio.run(ask()) == "one two"
    for wrong in ("vllm", "llmray.serve.engines:no_engine", "no.such.module:engine"):
        with pytest.raises(ConfigError, match="hf, external, echo or module:attribute"):
            open_engine(ModelArgs(uri="", digest="", engine=wrong))


def test_a_canary_inherits_how_the_stable_model_is_served_but_for_what_is_given() -> None:
    from llmray.flow.stages.serve import ServeConfig

    scaled = {
        "quantization": "int8",
        "adapters": {"tone": "folder"},
        "num_gpus": 1,
        "max_replicas": 4,
        "min_replicas": 0,
    }
    fixed = {"engine": "echo", "num_replicas": 3}
    assert deployment._inherited(scaled, ServeConfig().engine_options()) == scaled
    given = ServeConfig(kv_gb=2.0, routing="prefix", num_replicas=2).engine_options()
    assert deployment._inherited(scaled, given) == {
        **{name: scaled[name] for name in ("quantization", "adapters", "num_gpus")},
        **{"kv_gb": 2.0, "routing": "prefix", "num_replicas": 2},
    }
    given = ServeConfig(max_replicas=2).engine_options()
    assert deployment._inherited(fixed, given) == {"engine": "echo", "max_replicas": 2}
    for before, one in ((scaled, {"num_replicas": 2}), (fixed, {"max_replicas": 2, "min_replicas": 1})):
        ModelArgs(uri="", digest="", **deployment._inherited(before, one))
    for name in ServeConfig(max_replicas=2).engine_options() | scaled:  # what is left out must mean the same in both
        if name != "timeout_s":
            assert ModelArgs.model_fields[name].default == getattr(ServeConfig(), name)


def test_a_deployment_says_of_the_texts_what_was_asked_and_no_more() -> None:
    from llmray.flow.stages.serve import ServeConfig

    assert ServeConfig().text_log().model_fields_set == set()
    assert ServeConfig(redact=False).text_log().model_dump(exclude_unset=True) == {"redact": False}


def test_monitor_needs_one_reference(tmp_path: Path) -> None:
    questions = tmp_path / "usual.jsonl"
    questions.write_text("\n".join(json.dumps(text) for text in ("one", "two")) + "\n\n")
    assert deployment.usual_questions(deployment.MonitorArgs(reference_uri=str(questions))) == ["one", "two"]
    for fields in ({}, {"reference_uri": "a", "data_uri": "b"}):
        with pytest.raises(ValidationError, match="data_uri or reference_uri"):
            deployment.MonitorArgs(**fields)


def test_bridge_keeps_outputs_feedback_and_each_alarm_once(llmray_home: Path) -> None:
    bridge = deployment.RegistryBridge.func_or_class()

    async def scenario() -> None:
        await bridge.put_packed([pack(OUTPUT), pack(OUTPUT)])
        await bridge.put_packed([pack(OUTPUT), pack(replace(OUTPUT, id="half", completion="\ud800"))])
        assert (await bridge.output("half")).completion == "\N{REPLACEMENT CHARACTER}"
        kept = await bridge.output("out1")
        assert kept == replace(
            OUTPUT,
            completion="there\N{REPLACEMENT CHARACTER}",
            sampling={"temperature": 0.0, "stop": ["x"]},
        )
        with pytest.raises(NotFoundError):
            await bridge.output("out2")
        feedback = Feedback(
            id="f1",
            output_id="out2",
            kind="thumb",
            value={"thumb": "up"},
            other_output_id=None,
            source="test",
            rule=None,
            at=OUTPUT.at,
        )
        with pytest.raises(NotFoundError):
            await bridge.put_feedback(feedback)
        await bridge.put_feedback(replace(feedback, output_id="out1"))
        since = datetime(2026, 1, 1, tzinfo=UTC)
        for alarm_id, digest in (("1", "a"), ("1", "a"), ("2", "b")):
            await bridge.alarm({"alarm_id": alarm_id, "model_digest": digest})
        assert await bridge.count_alarms("a", since) == 1

    asyncio.run(scenario())
