"""Trial functions for the search's tests: plain ones and one that trains on workers of its own."""

import itertools
import json
from pathlib import Path
from typing import Any


def parabola(config: dict[str, Any], *, trial_dir: str, deadline_s: float, callbacks: list[Any]) -> dict[str, Any]:
    """Best at x = 3; counts its starts in its folder."""
    starts = Path(trial_dir) / "starts"
    starts.write_text(str(int(starts.read_text()) + 1 if starts.exists() else 1))
    assert deadline_s > 0
    loss = (config["x"] - 3) ** 2
    for step in range(1, 4):
        callbacks[0]({"loss": loss + 1 / step})
    return {"heldout_loss": loss, "steps": 3, "object": object()}


def broken(config: dict[str, Any], *, trial_dir: str, deadline_s: float, callbacks: list[Any]) -> dict[str, Any]:
    """Fails where x is above 2, dies without a word above 3."""
    if config["x"] > 3:
        import os

        os._exit(9)
    if config["x"] > 2:
        raise ValueError("x is too large")
    return {"heldout_loss": float(config["x"])}


def nested(config: dict[str, Any], *, trial_dir: str, deadline_s: float, callbacks: list[Any]) -> dict[str, Any]:
    """Trains on one worker of Ray Train; a large x is worse, and goes on until it is stopped."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    out = Path(trial_dir) / "loss.json"
    trainer = DataParallelTrainer(
        _train_loop,
        train_loop_config={"x": config["x"], "out": str(out)},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="train", storage_path=trial_dir, callbacks=callbacks),
    )
    trainer.fit()
    return dict(json.loads(out.read_text()))


def _train_loop(config: dict[str, Any]) -> None:
    import ray.train

    loss = float(config["x"])
    for step in range(1, 7) if config["x"] <= 2 else itertools.count(1):
        ray.train.report({"loss": loss + 1 / step, "step": step})
    Path(config["out"]).write_text(json.dumps({"heldout_loss": loss, "steps": 6}))
