"""Methods, ZeRO stages and places of training, without Ray: one loss, and a model that says what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from apart import run_apart
from tiny_training import snapshot
from torch.nn.functional import kl_div, log_softmax

from llmray.artifact import Artifact

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    odd = [{"question": "What is Ω?", "answer": "A letter."}]
    return snapshot(tmp_path_factory.mktemp("data"), more=odd, validation=[21, 22, 23, 24])


def results(group: str, data: Artifact, folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = run_apart("methods_alone.py", group, data.uri, str(folder))
    return made


@pytest.fixture(scope="module")
def parity(data: Artifact, folder: Path) -> dict[str, Any]:
    return results("parity", data, folder)


@pytest.fixture(scope="module")
def places(parity: dict[str, Any], data: Artifact, folder: Path) -> dict[str, Any]:
    """After the others, since some go on from their checkpoints."""
    return results("places", data, folder)


def losses(run: dict[str, Any]) -> list[float]:
    return [line["loss"] for line in run["lines"]]


def heldout(run: dict[str, Any]) -> list[float]:
    halfway = [line["heldout_loss"] for line in run["lines"] if "heldout_loss" in line]
    return [*halfway, run["outcome"]["heldout_loss"]]


@pytest.mark.parametrize(
    "name",
    [
        *(f"{of}_zero{zero}" for of in ("full", "lora", "qlora", "Qwen3", "GPTNeoX") for zero in (1, 2, 3)),
        *("full_zero3_by_two", "qlora_zero3_by_two"),
    ],
)
def test_every_stage_takes_the_same_steps(parity: dict[str, Any], name: str) -> None:
    here, there = parity[name], parity[f"{name.split('_', maxsplit=1)[0]}_zero0"]
    assert len(losses(here)) == 8
    assert losses(here) == pytest.approx(losses(there), rel=1e-5)
    assert heldout(here) == pytest.approx(heldout(there), rel=1e-5)
    assert heldout(here)[-1] < heldout(here)[0] < losses(here)[0]


def test_four_bits_are_another_model_but_nearly_the_same(parity: dict[str, Any]) -> None:
    whole, quantized = (losses(parity[f"{method}_zero2"]) for method in ("lora", "qlora"))
    assert quantized == pytest.approx(whole, rel=5e-3)
    assert abs(quantized[0] - whole[0]) > 1e-4 * whole[0]


@pytest.mark.parametrize("name", ["full_zero2_optimizer", "full_zero3_all", "qlora_zero3_all"])
def test_offload_changes_no_loss(parity: dict[str, Any], places: dict[str, Any], name: str) -> None:
    without = name.rsplit("_", 1)[0]
    assert losses(places[name]) == pytest.approx(losses(parity[without]), rel=1e-5)
    assert heldout(places[name]) == pytest.approx(heldout(parity[without]), rel=1e-5)


def test_an_offloaded_optimizer_skips_a_gradient_that_is_no_number(places: dict[str, Any]) -> None:
    diverged = places["gradient"]["diverged"]
    assert "the norm of the gradient is inf, and the step was not taken; it comes from row 26. " in diverged


@pytest.mark.parametrize("name", ["full_zero2_again", "lora_zero3_again", "qlora_zero3_again"])
def test_activations_computed_again_change_no_loss(parity: dict[str, Any], places: dict[str, Any], name: str) -> None:
    without = parity[name.removesuffix("_again")]
    assert losses(places[name]) == pytest.approx(losses(without), rel=1e-6)


@pytest.mark.parametrize("name", ["qlora_zero2", "full_zero2_optimizer"])
def test_a_resumed_run_goes_on_to_the_same_losses(parity: dict[str, Any], places: dict[str, Any], name: str) -> None:
    straight, resumed = {**parity, **places}[name], places[f"{name}_resumed"]
    assert losses(resumed) == losses(straight)[4:]
    assert resumed["outcome"]["heldout_loss"] == straight["outcome"]["heldout_loss"]


def test_evaluating_on_the_way_changes_nothing_in_four_bits(parity: dict[str, Any], places: dict[str, Any]) -> None:
    """On some CPUs bitsandbytes would repack the weights, see `quantized.keep_packing`."""
    assert losses(places["qlora_zero3_unseen"]) == losses(parity["qlora_zero3"])


def test_four_bit_layers_say_the_same_before_and_after_evaluation(parity: dict[str, Any]) -> None:
    model = quantized(parity["model"])
    ids = torch.arange(40)[None] % 300
    with torch.no_grad():
        before = model.train()(ids).logits
        evaluated = model.eval()(ids).logits
        after = model.train()(ids).logits
    assert torch.equal(before, after)
    assert torch.allclose(evaluated, before, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("name", "dtype"), [("qlora_zero2", "float32"), ("bf16", "bfloat16")])
def test_the_merged_model_says_what_the_adapter_on_four_bits_says(
    parity: dict[str, Any], places: dict[str, Any], folder: Path, name: str, dtype: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, export = parity["model"], folder / name / "export"
    merged = AutoModelForCausalLM.from_pretrained(export, dtype="auto")
    assert merged.dtype == getattr(torch, dtype)
    assert not hasattr(merged.config, "quantization_config")
    trained = PeftModel.from_pretrained(quantized(model), export / "adapter").eval()
    elsewhere = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), export / "adapter")
    ids = torch.arange(40)[None] % 300
    near, far, before = (
        divergence(other, trained, ids) for other in (merged.float(), elsewhere.merge_and_unload(), quantized(model))
    )
    assert near <= (1e-6 if dtype == "float32" else 1e-3)
    assert near < far / 10
    assert before > 1e-3, "the adapter says something"


def quantized(model: str) -> Any:
    """As a run on it loads it, in float32."""
    from llmray.train.engine import load_whole
    from llmray.train.spec import TrainSpec
    from llmray.train.template import load_tokenizer

    spec = TrainSpec(model=model, method="qlora", max_length=96)
    return load_whole(spec, load_tokenizer(model), option="train.max_length")


def divergence(model: Any, of: Any, ids: torch.Tensor) -> float:
    """Mean KL divergence a token, in nats."""
    with torch.no_grad():
        said, expected = (log_softmax(one(ids).logits.float()[0], dim=-1) for one in (model, of))
    return float(kl_div(said, expected, log_target=True, reduction="batchmean"))
