"""The card of a model says what is known of it, in the form that the hub reads."""

from typing import Any

from huggingface_hub import ModelCard

from llmray.train.card import render
from llmray.train.spec import TrainSpec

REPORT: dict[str, Any] = {
    "steps": 8,
    "exported_step": 4,
    "train_loss": 1.25,
    "heldout_loss": 2.5,
    "tokens": 12_345,
    "memory_bytes": {"foreseen": 1, "peak": 3 << 30, "peaks": [3 << 30, 1 << 30]},
    "core_seconds": 7200.0,
    "gpu_seconds": 0.0,
    "money": 0.1,
    "currency": "EUR",
    "seconds": {"startup": 1.5, "steps": 60.0},
    "data": {"rows": 21, "truncated": 2, "packing_efficiency": 0.9123, "heldout_rows": 4},
}


def card(**change: Any) -> str:
    return render(
        **{
            "option": "train",
            "settings": TrainSpec(method="lora").identity(),
            "parents": {"base": "b" * 64, "data": "d" * 64},
            "report": REPORT,
            "hub_id": None,
            "rows": {"in": 30, "kept": 25},
            **change,
        }
    )


def test_it_says_what_is_known() -> None:
    text = card()
    assert "in 8 steps, with the weights after step 4, whose held-out loss was the lowest. Held-out loss 2.5000" in text
    assert "over 4 rows. It cost 7,200 core-seconds and 0 GPU-seconds, 0.1000 EUR." in text
    for line in (
        f"| trained on | `{'d' * 64}` |",
        "| tokens | 12,345 |",
        "| truncated | 2 |",
        "| packing efficiency | 0.9123 |",
        "| of the snapshot: rows kept | 25 |",
        "| 1 | 1.00 |",
        "| steps | 60.0000 |",
        "| `train.lora_rank` | `16` |",
    ):
        assert line in text.splitlines()
    assert "| torch | " in text


def test_the_hub_can_read_its_front_matter() -> None:
    front = ModelCard(card(hub_id="someone/small", parents={"data": "d" * 64})).data.to_dict()
    assert front == {
        "base_model": "someone/small",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llmray", "train", "sft", "lora"],
    }
    assert "base_model" not in card()


def test_what_is_not_known_is_left_out() -> None:
    plain = {key: REPORT[key] for key in ("steps", "core_seconds", "gpu_seconds", "seconds", "data")}
    text = card(report=plain, rows={})
    assert "in 8 steps. It cost 7,200 core-seconds and 0 GPU-seconds." in text
    assert "Peak memory" not in text
    assert "snapshot" not in text
