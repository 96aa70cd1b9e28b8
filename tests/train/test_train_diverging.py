"""Trainings in which something goes wrong, on one process and on two, without Ray: what is noticed, and what is left."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apart import run_apart
from tiny_training import snapshot

pytestmark = pytest.mark.slow

ROW = 26
"""The only one with the odd byte."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    odd = [{"question": "What is Ω?", "answer": "A letter."}]
    data = snapshot(tmp_path_factory.mktemp("data"), more=odd, validation=[21, 22, 23, 24])
    result: dict[str, Any] = run_apart("diverging_alone.py", data.uri, str(folder))
    return result


def curve(run: dict[str, Any], name: str) -> list[float]:
    return [line[name] for line in run["lines"]]


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "two_zero3"])
def test_every_stage_of_zero_tells_the_same_gradient_norm_and_clips_by_it(runs: dict[str, Any], name: str) -> None:
    """The second loss hangs on how the first gradient was clipped: weights would else have moved further."""
    for figure in ("grad_norm", "loss"):
        assert curve(runs[name], figure) == pytest.approx(curve(runs["zero0"], figure), rel=1e-5)
    assert min(curve(runs["zero0"], "grad_norm")) > 0.5


def test_in_bfloat16_without_sharding_it_is_the_same_run_as_with_it(runs: dict[str, Any]) -> None:
    for figure in ("grad_norm", "loss"):
        assert curve(runs["bf16_zero0"], figure) == pytest.approx(curve(runs["bf16_zero2"], figure), rel=1e-3)


@pytest.mark.parametrize("name", [*(f"gradient_zero{zero}" for zero in range(4)), "gradient_bf16"])
def test_a_gradient_that_is_no_number_ends_the_run_though_its_loss_is_one(runs: dict[str, Any], name: str) -> None:
    run = runs[name]
    assert 0 < len(run["lines"]) < 8
    assert re.search(r"the norm of the gradient is (nan|inf), and the step was not taken", run["diverged"])
    assert f"it comes from row {ROW}. To mend it, look at row {ROW}, or lower train.lr" in run["diverged"]
    assert set(run["all"]) == {run["diverged"]}, "every rank says the same"


def test_a_row_with_a_loss_that_is_no_number_is_named_alone(runs: dict[str, Any]) -> None:
    """Its block holds others, and so does the batch on the other rank."""
    run = runs["row"]
    assert "the loss is nan" in run["diverged"]
    assert f"it comes from row {ROW}. " in run["diverged"]
    assert set(run["all"]) == {run["diverged"]}


def test_what_the_first_rank_refuses_in_the_data_is_raised_on_all(runs: dict[str, Any]) -> None:
    mine, other = runs["refused"]["all"]
    assert "more than train.max_length (20): raise that, or choose train.too_long truncate or split" in mine
    assert mine == other


def test_where_every_row_is_bad_the_weights_are_to_blame(runs: dict[str, Any]) -> None:
    assert "every row of the batch gives it, so it is the weights that are lost" in runs["weights"]["diverged"]


def test_one_spike_puts_a_checkpoint_off_and_the_run_goes_on(runs: dict[str, Any]) -> None:
    run = runs["spike"]
    assert len(run["lines"]) == 32
    assert [line["step"] for line in run["lines"] if "high_for" in line] == [20]
    assert run["saved"] == [4, 8, 12, 16, 21, 24, 28, 32]


def test_a_slow_rise_ends_the_run_and_nothing_high_was_saved(runs: dict[str, Any], folder: Path) -> None:
    run = runs["rise"]
    assert [line["high_for"] for line in run["lines"] if "high_for" in line] == [1, 2, 3, 4]
    assert f"at step {len(run['lines']) + 1}," in run["diverged"]
    assert "for 5 steps; the batch held rows " in run["diverged"]
    last = run["saved"][-1]
    assert "high_for" not in run["lines"][last - 1]
    assert f"that of step {last}, in {folder / 'rise' / 'checkpoints'}" in run["diverged"]


def test_a_resumed_run_judges_the_same(runs: dict[str, Any]) -> None:
    straight, again = runs["rise"], runs["rise_again"]
    assert curve(again, "loss") == curve(straight, "loss")[-len(again["lines"]) :]
    assert again["diverged"] == straight["diverged"].replace("/rise/", "/rise_again/")


def test_the_last_checkpoint_of_a_run_that_diverged_has_weights_that_are_numbers(
    runs: dict[str, Any], folder: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    assert runs["rise_published"]["outcome"]["progress"]["step"] == 20
    model = AutoModelForCausalLM.from_pretrained(folder / "rise_published" / "export")
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


def test_dropout_falls_and_a_resumed_run_throws_the_same_dice(runs: dict[str, Any]) -> None:
    dropped = curve(runs["dropout"], "loss")
    assert abs(dropped[0] - curve(runs["zero2"], "loss")[0]) > 1e-4
    assert curve(runs["dropout_again"], "loss") == dropped[1:]


def test_every_rank_and_step_throws_dice_of_its_own() -> None:
    from llmray.train.loop import _dice

    thrown = {_dice(seed, step, rank) for seed in range(3) for step in range(20) for rank in range(4)}
    assert len(thrown) == 3 * 20 * 4
    assert _dice(1, 2, 3) == _dice(1, 2, 3)


def test_weights_that_are_no_numbers_are_not_saved(runs: dict[str, Any]) -> None:
    """Here only the last rank finds them, as under ZeRO-3."""
    run = runs["lost"]
    assert run["saved"] == []
    assert "some weights are no numbers any more" in run["diverged"]
    assert set(run["all"]) == {run["diverged"]}


def test_the_shard_that_a_process_holds_is_looked_at() -> None:
    import torch

    from llmray.train.engine import weights_are_lost

    layer = torch.nn.Linear(2, 2)
    engine = SimpleNamespace(module=layer)
    assert not weights_are_lost(engine)
    layer.bias.ds_tensor = torch.tensor([1.0, math.inf])
    assert weights_are_lost(engine)
    del layer.bias.ds_tensor
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    assert weights_are_lost(engine)
    layer.weight.requires_grad = False
    assert not weights_are_lost(engine)
