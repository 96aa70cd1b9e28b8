"""A model's counts, from its config alone."""

import pytest
import torch
from shapes import config
from transformers import AutoModelForCausalLM

from llmray.train.shape import shape_of
from llmray.train.spec import TrainSpec


@pytest.mark.parametrize("name", ["tied", "grouped", "Qwen3", "GPTNeoX", "GPT2", "Gemma2", "OPT", "Mixtral"])
def test_it_counts_what_a_real_model_has(name: str) -> None:
    made = config(name)
    shape, model = shape_of(made), AutoModelForCausalLM.from_config(made)
    assert shape.total == sum(weight.numel() for weight in model.parameters())
    assert shape.tied == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)
    embeddings = sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Embedding))
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim > 1) - embeddings
    head = model.get_output_embeddings().weight.numel() if shape.tied else 0
    if name == "Mixtral":  # two experts of four
        matrices -= sum(weight.numel() for weight in model.parameters() if weight.ndim == 3) // 2
        assert shape.inner == 2 * 384
    assert shape.multiplied == matrices + head


def test_widths_are_told_apart() -> None:
    grouped, queries = shape_of(config("grouped")), shape_of(config("Qwen3"))
    assert (grouped.hidden, grouped.inner, grouped.attention, grouped.heads, grouped.layers) == (128, 384, 128, 4, 4)
    assert grouped.gated
    assert grouped.float_norms
    assert grouped.norms == 2 * 128
    assert (queries.attention, queries.norms) == (4 * 64, 2 * 128 + (4 + 2) * 64)
    old = shape_of(config("GPT2"))
    assert not old.gated
    assert not old.float_norms
    assert old.attention_dropout
    assert old.inner == 384
    assert shape_of(config("GPT2").__class__()).inner == 4 * 768


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["tied", "Qwen3", "GPTNeoX", "GPT2"])
@pytest.mark.parametrize("rank", [1, 8])
def test_it_counts_the_adapters_that_peft_adds(name: str, rank: int) -> None:
    from peft import LoraConfig, get_peft_model

    made = config(name)
    spec = TrainSpec(method="lora", lora_rank=rank)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_config(made),
        LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=name == "GPT2"),
    )
    shape = shape_of(made)
    assert shape.adapters(spec) == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert shape.trainable(spec) == shape.adapters(spec)
    assert (shape.adapters(TrainSpec()), shape.trainable(TrainSpec())) == (0, shape.total)


def test_no_weights_are_made() -> None:
    shape = shape_of(config("grouped", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80))
    assert shape.total > 60e9
