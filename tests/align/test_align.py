"""Alignment on Ray Train: sharded over two workers, published, resumed, and refused."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from preferences import base, records, snapshot

from llmray import artifact
from llmray.align.dpo import AlignResult, align
from llmray.align.spec import AlignSpec
from llmray.errors import ConfigError

pytestmark = pytest.mark.ray


@dataclass(frozen=True, kw_only=True)
class Aligned:
    spec: AlignSpec
    root: Path
    result: AlignResult
    lines: list[dict[str, Any]]

    def again(self, **options: Any) -> AlignResult:
        return align(self.spec, run_dir=str(self.root / "run"), root_uri=str(self.root), **options)


@pytest.fixture(scope="module")
def aligned(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    root = tmp_path_factory.mktemp("align")
    spec = AlignSpec(
        model=base(root).uri,
        data=snapshot(root, records()).uri,
        zero=2,
        num_workers=2,
        max_length=96,
        max_steps=9,
        lr=1e-2,
        checkpoint_every=4,
    )
    lines: list[dict[str, Any]] = []
    result = align(spec, run_dir=str(root / "run"), root_uri=str(root), on_report=lines.append)
    return Aligned(spec=spec, root=root, result=result, lines=lines)


def test_two_workers_raise_the_margin_and_every_step_is_reported(aligned: Aligned) -> None:
    assert [line["step"] for line in aligned.lines] == list(range(1, 10))
    assert aligned.lines == [json.loads(text) for text in Path(aligned.result.metrics_path).read_text().splitlines()]
    assert aligned.lines[0]["rewards/margins"] == 0.0
    assert aligned.lines[-1]["rewards/margins"] > 1.0
    assert aligned.result.reward_accuracy == 1.0
    # Three steps of eight pairs are one pass through the twenty-four.
    assert aligned.result.reward_margin == pytest.approx(
        sum(line["rewards/margins"] for line in aligned.lines[-3:]) / 3, abs=1e-5
    )


def test_the_artifact_is_a_model_that_loads_and_knows_what_it_was_made_from(aligned: Aligned) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = artifact.load(aligned.result.artifact.uri)
    assert made.kind == "model"
    assert made.parents == {
        "base": artifact.load(aligned.spec.model).digest,
        "data": artifact.load(aligned.spec.data).digest,
    }
    assert made.config == {"align": aligned.spec.identity()}
    assert {"steps": 9, "pairs": 24, "gpu_seconds": 0}.items() <= made.report.items()
    assert made.report["core_seconds"] == pytest.approx(2 * sum(made.report["seconds"].values()), rel=0.01)
    assert (Path(made.uri) / "metrics.jsonl").read_text() == Path(aligned.result.metrics_path).read_text()
    assert artifact.verify(made) == []

    tokenizer = AutoTokenizer.from_pretrained(made.uri)
    model, before = (AutoModelForCausalLM.from_pretrained(uri).eval() for uri in (made.uri, aligned.spec.model))
    assert model.config.use_cache

    def log_odds(of: Any) -> float:
        row = records()[0]
        asked = {"role": "user", "content": row["prompt"]}
        totals = []
        for side in ("chosen", "rejected"):
            encoded = tokenizer.apply_chat_template(
                [asked, {"role": "assistant", "content": row[side]}],
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=True,
            )
            ids, answered = encoded["input_ids"], torch.as_tensor(encoded["assistant_masks"]).reshape(1, -1)
            with torch.no_grad():
                logprobs = of(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            totals.append(float((logprobs * answered[:, 1:]).sum()))
        return totals[0] - totals[1]

    # The reward margin of equation 5, by hand from the published weights.
    assert aligned.spec.beta * (log_odds(model) - log_odds(before)) > 1.0


def test_a_finished_run_returns_at_once_and_the_same(aligned: Aligned) -> None:
    def untouched(line: dict[str, Any]) -> None:
        raise AssertionError(f"trained again: {line}")

    assert aligned.again(on_report=untouched) == aligned.result


def test_a_run_folder_belongs_to_one_spec(aligned: Aligned) -> None:
    with pytest.raises(ConfigError, match=r"other settings \(beta\)"):
        align(replace(aligned.spec, beta=0.3), run_dir=str(aligned.root / "run"))
