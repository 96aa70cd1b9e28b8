"""A run that goes on with other workers or another ZeRO stage takes the same blocks to the same losses."""

from pathlib import Path
from typing import Any

import pytest
from apart import run_apart
from tiny_training import snapshot

pytestmark = pytest.mark.slow

CHAINS = ["full0", "full2", "full3", "lora3"]
STAGES = [(2, 3), (3, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = snapshot(tmp_path_factory.mktemp("data"), validation=[21, 22, 23, 24])
    result: dict[str, Any] = run_apart("resuming_alone.py", data.uri, str(folder))
    return result


def losses(run: dict[str, Any]) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in run["lines"]}


def position(run: dict[str, Any]) -> tuple[int, int]:
    progress = run["outcome"]["progress"]
    return progress["step"], progress["next_index"]


@pytest.mark.parametrize("name", CHAINS)
def test_on_one_worker_and_on_two_again_the_losses_are_those_of_an_undisturbed_run(
    runs: dict[str, Any], name: str
) -> None:
    straight = losses(runs[name])
    alone, again = losses(runs[f"{name}_alone"]), losses(runs[f"{name}_again"])
    assert (list(straight), list(alone), list(again)) == ([1, 2, 3, 4, 5, 6], [3, 4], [5, 6])
    assert {**alone, **again} == pytest.approx({step: straight[step] for step in range(3, 7)}, rel=1e-5)
    assert len(set(straight.values())) == 6, "they tell steps apart"
    assert position(runs[name]) == position(runs[f"{name}_again"]) == (6, 36)


@pytest.mark.parametrize("name", CHAINS)
def test_told_to_stop_it_writes_a_checkpoint_and_no_model(runs: dict[str, Any], folder: Path, name: str) -> None:
    stopped = runs[f"{name}_alone"]
    assert stopped["saved"] == [4]
    assert (stopped["outcome"]["resumes_at"], stopped["outcome"]["stopped_early"]) == (4, True)
    assert position(stopped) == (4, 24)
    assert sorted(path.name for path in (folder / f"{name}_alone").iterdir()) == ["checkpoints"]
    finished = runs[f"{name}_again"]["outcome"]
    assert (finished["resumes_at"], finished["stopped_early"]) == (None, False)
    assert (folder / f"{name}_again" / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize(("before", "now"), STAGES)
def test_three_workers_go_on_from_two_under_another_stage(
    runs: dict[str, Any], folder: Path, before: int, now: int
) -> None:
    straight, moved = runs[f"full{before}"], runs[f"from{before}_three{now}"]
    assert losses(moved) == pytest.approx({step: losses(straight)[step] for step in range(3, 7)}, rel=1e-5)
    assert position(moved) == position(straight)
    assert not (folder / f"from{before}_three{now}" / "resharding").exists()


def test_on_as_many_workers_it_is_the_same_run_to_the_bit(runs: dict[str, Any]) -> None:
    straight = losses(runs["full3"])
    assert losses(runs["same"]) == {5: straight[5], 6: straight[6]}


def test_steps_are_taken_while_a_checkpoint_is_written_and_it_counts_once_all_ranks_have(runs: dict[str, Any]) -> None:
    slow = runs["slow"]
    assert [line["saved"] for line in slow["lines"]][:5] == [[], [], [], [], [2]]
    assert slow["saved"] == [2, 4, 6]
    assert losses(slow) == losses(runs["full2"])
    assert slow["outcome"]["seconds"]["checkpoints"] > 0


def test_a_full_disk_of_one_rank_ends_the_run_on_all(runs: dict[str, Any]) -> None:
    full = runs["full"]
    assert full["saved"] == [2]
    assert [line["step"] for line in full["lines"]][:4] == [1, 2, 3, 4]
    assert len(set(full["all"])) == 1
    assert "checkpoints/4: the disk is full" in full["unavailable"]


def test_before_a_machine_is_taken_away_a_checkpoint_is_written(runs: dict[str, Any]) -> None:
    assert runs["leaving"]["saved"] == [4, 6]


def test_without_room_for_the_copy_the_same_files_are_written_at_once(runs: dict[str, Any], folder: Path) -> None:
    assert losses(runs["leaving"]) == losses(runs["full2"])
    ours, theirs = (folder / name / "checkpoints" / "4" / "deepspeed" for name in ("leaving", "full2"))
    files = sorted(file.name for file in theirs.iterdir())
    assert len(files) == 3
    assert [(ours / name).read_bytes() == (theirs / name).read_bytes() for name in files] == [True] * 3


@pytest.mark.parametrize("name", CHAINS)
def test_the_part_of_rank_0_is_as_large_as_foreseen(runs: dict[str, Any], folder: Path, name: str) -> None:
    files = (folder / name / "checkpoints" / "2" / "deepspeed").iterdir()
    written = sum(file.stat().st_size for file in files if "pp_rank_1_" not in file.name)
    assert written == pytest.approx(runs["foreseen"][name], rel=0.1, abs=20_000), "and names, a few KB"


def heldout(run: dict[str, Any]) -> dict[int, float]:
    return {line["step"]: line["heldout_loss"] for line in run["lines"] if "heldout_loss" in line}


def exported(folder: Path, name: str) -> bytes:
    return (folder / name / "export" / "model.safetensors").read_bytes()


def test_out_of_patience_it_ends_with_the_weights_of_the_lowest_heldout_loss(
    runs: dict[str, Any], folder: Path
) -> None:
    run = runs["best"]
    seen = heldout(run)
    assert list(seen) == [2, 4, 6, 8]
    assert seen[4] == min(seen.values())
    assert run["saved"] == [2, 4, 8]
    outcome = run["outcome"]
    assert (outcome["progress"]["step"], outcome["exported_step"], outcome["stopped_early"]) == (8, 4, False)
    assert outcome["heldout_loss"] == seen[4]
    assert outcome["counts"]["heldout_rows"] == 4


def test_resumed_it_ends_at_the_same_step_with_the_same_weights(runs: dict[str, Any], folder: Path) -> None:
    again, alone = runs["best_again"], runs["best_alone"]
    assert heldout(again) == {step: loss for step, loss in heldout(runs["best"]).items() if step > 2}
    assert again["outcome"]["progress"]["heldout"] == runs["best"]["outcome"]["progress"]["heldout"]
    assert (alone["lines"], alone["outcome"]["exported_step"]) == ([], 4)
    assert exported(folder, "best") == exported(folder, "best_again") == exported(folder, "best_alone")
