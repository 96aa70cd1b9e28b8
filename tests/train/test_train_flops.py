"""Model FLOPs against a count of what PyTorch does, and the peaks of cards."""

from typing import Any

import pytest
import torch
from shapes import config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from llmray.train.flops import flops_per_token, mfu, peak_flops_per_s
from llmray.train.shape import shape_of
from llmray.train.spec import TrainSpec

LENGTH = 64


@pytest.mark.parametrize("name", ["tied", "grouped", "Qwen3", "GPTNeoX", "GPT2"])
def test_full_training_does_what_is_counted(name: str) -> None:
    made = config(name)
    counted = flops_per_token(shape_of(made), TrainSpec(max_length=LENGTH))
    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    assert counted * LENGTH == pytest.approx(done(model), rel=1e-3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["tied", "GPTNeoX"])
def test_adapters_save_the_gradients_of_frozen_weights(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    made = config(name, num_hidden_layers=12)
    spec = TrainSpec(method="lora", lora_rank=4, max_length=LENGTH)
    model = get_peft_model(
        AutoModelForCausalLM.from_config(made, attn_implementation="eager"),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    # The first block's first matrices need no gradient of their input, which the convention does not mention.
    assert flops_per_token(shape_of(made), spec) * LENGTH == pytest.approx(done(model), rel=0.03)


def test_llama_2_7b() -> None:
    sizes: dict[str, Any] = {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11008}
    made = config("Llama", **sizes, num_hidden_layers=32, num_attention_heads=32, tie_word_embeddings=False)
    counted = flops_per_token(shape_of(made), TrainSpec(max_length=4096))
    assert counted == 6 * (6_738_415_616 - 32_000 * 4096 - 65 * 4096) + 12 * 32 * 4096 * 4096


def done(model: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, LENGTH, dtype=torch.long), use_cache=False).logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("device_name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("Tesla T4", 65.0),
        ("Tesla V100-PCIE-32GB", 112.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_cards_are_known_by_what_cuda_calls_them(device_name: str, tflops: float) -> None:
    assert peak_flops_per_s(device_name) == tflops * 1e12


@pytest.mark.parametrize(
    "device_name",
    [
        "cpu",
        "",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A1000",
        "AMD Instinct",
    ],
)
def test_no_peak_is_made_up(device_name: str) -> None:
    assert peak_flops_per_s(device_name) is None


def test_mfu_is_a_share_of_the_peak() -> None:
    assert mfu(50_000.0, 6e9, 300e12) == pytest.approx(1.0)
    assert mfu(12_500.0, 6e9, 300e12) == pytest.approx(0.25)
