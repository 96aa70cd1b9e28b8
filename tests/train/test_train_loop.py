"""The loop on one process without Ray: what it learns, and that documents in one block do not see one another."""

import json
from pathlib import Path
from typing import Any

import pytest
from apart import run_apart
from tiny_training import base, snapshot

from llmray.artifact import Artifact
from llmray.train.named_templates import NAMED
from llmray.train.template import load_tokenizer

VALIDATION = [21, 22, 23, 24]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    odd = [{"question": "What is Ω?", "answer": "A letter."}]
    return snapshot(tmp_path_factory.mktemp("data"), more=odd, validation=VALIDATION)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(data: Artifact, folder: Path) -> dict[str, Any]:
    options = ["-W", "error::UserWarning:llmray.train.loop"]
    result: dict[str, Any] = run_apart("alone.py", data.uri, str(folder), options=options)
    return result


def step_losses(run: dict[str, Any]) -> list[float]:
    return [line["loss"] for line in run["lines"]]


def test_packed_documents_have_the_loss_that_they_have_alone(runs: dict[str, Any]) -> None:
    losses = runs["losses"]
    assert losses["blocks"] < losses["rows"] == 21
    assert losses["packed"] / losses["targets"] == pytest.approx(losses["apart"] / losses["targets"], abs=1e-5)
    assert abs(losses["running_on"] - losses["apart"]) / losses["targets"] > 1e-3


def test_the_loss_falls_also_on_rows_that_were_not_trained_on(runs: dict[str, Any]) -> None:
    run = runs["plain"]
    losses = step_losses(run)
    assert losses[-1] < losses[0] / 1.5
    [halfway] = [line["heldout_loss"] for line in run["lines"] if "heldout_loss" in line]
    assert run["lines"][3]["heldout_loss"] == halfway
    assert run["outcome"]["heldout_loss"] < halfway < losses[0]


def test_every_step_is_a_line_and_checkpoints_come_when_asked_and_at_the_end(runs: dict[str, Any]) -> None:
    run = runs["plain"]
    assert [line["step"] for line in run["lines"]] == list(range(1, 9))
    assert run["reports"] == [[3, True], [4, False], [6, True], [8, True]]
    progress = run["outcome"]["progress"]
    assert (progress["step"], progress["next_index"]) == (8, 32)
    assert progress["train_loss"] == step_losses(run)[-1]
    assert progress["meter"]["tokens"] == run["lines"][-1]["tokens"]
    assert 0 < progress["meter"]["targets"] < progress["meter"]["tokens"]
    assert progress["meter"]["seconds"] == 8  # the clock ticks once a step
    assert not run["outcome"]["stopped_early"]


def test_memory_is_told_and_a_run_that_does_not_fit_is_refused_with_what_would(runs: dict[str, Any]) -> None:
    memory = runs["plain"]["outcome"]["memory"]
    assert 0 < memory["foreseen"] < memory["peak"]
    refused = runs["too_large"]["refused"]
    assert refused.startswith("train needs ")
    assert "What fits: train.micro_batch " in refused


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(runs: dict[str, Any]) -> None:
    assert "embeddings, its model has only" in runs["narrow"]["refused"]
    assert "the tokenizer that the model was trained with" in runs["narrow"]["refused"]


def test_a_model_trained_on_a_named_template_speaks_it_and_stops_at_its_stop_token(
    runs: dict[str, Any], folder: Path
) -> None:
    assert runs["chatml"]["outcome"]["progress"]["step"] == 1
    words = load_tokenizer(str(folder / "chatml"))
    assert words.eos_token == "<|im_end|>"
    assert words.chat_template == NAMED["chatml"].jinja
    before = load_tokenizer(str(folder / "chatml_model")).eos_token_id
    told = json.loads((folder / "chatml" / "generation_config.json").read_text())
    assert told["eos_token_id"] == [words.eos_token_id, before]


def test_accumulating_over_small_batches_is_one_large_batch(runs: dict[str, Any]) -> None:
    """A token weighs the same however full its micro-batch is."""
    assert step_losses(runs["accumulated"]) == pytest.approx(step_losses(runs["plain"]), abs=1e-5)


def test_the_deadline_ends_a_run_with_a_checkpoint_of_where_it_came(runs: dict[str, Any]) -> None:
    run = runs["early"]
    done = len(run["lines"])
    assert 0 < done < 8
    assert run["outcome"]["stopped_early"]
    assert run["outcome"]["progress"]["step"] == done
    assert run["reports"][-1] == [done, True]
    assert step_losses(run) == step_losses(runs["plain"])[:done]


def test_a_loss_that_is_no_number_names_the_row_that_it_came_from(runs: dict[str, Any]) -> None:
    run = runs["diverging"]
    assert 26 in runs["bad_rows"]
    assert set(runs["bad_rows"]) < set(runs["rows"])
    assert "it comes from row 26. " in run["diverged"]
    assert "lower train.lr" in run["diverged"]
    assert run["steps"] == 0


def test_the_base_model_is_the_same_in_every_process(runs: dict[str, Any], data: Artifact, tmp_path: Path) -> None:
    assert base(tmp_path, data).digest == runs["base"]
