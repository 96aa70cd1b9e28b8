"""Quantized layers against bitsandbytes' own and against the weights that they came from."""

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM

from llmray.errors import ConfigError
from llmray.serve.linear import Int8Linear, integer_products, nf4_codes, quantized
from llmray.serve.nf4_cpu import FEW_TOKENS, CpuNf4Linear, speed_up
from llmray.serve.quantizations import parse
from llmray.serve.quantize import load

CPU = torch.device("cpu")


@pytest.fixture
def weight_NK() -> torch.Tensor:
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(0)) * 0.02


def rows(number: int, *, outlier: float = 1.0) -> torch.Tensor:
    x = torch.randn(number, 128, generator=torch.Generator().manual_seed(1))
    x[:, 3] *= outlier
    return x.to(torch.bfloat16)


def distance(y: torch.Tensor, truth: torch.Tensor) -> float:
    return float((y.double() - truth.double()).norm() / truth.double().norm())


@torch.inference_mode()
def test_nf4_is_bitsandbytes_to_the_bit(weight_NK: torch.Tensor) -> None:
    before = weight_NK.clone()
    truth, state = bnb.functional.quantize_4bit(weight_NK, blocksize=64, quant_type="nf4", compress_statistics=False)
    codes, found = nf4_codes(weight_NK, torch.bfloat16)
    assert torch.equal(codes, truth)
    assert torch.equal(found.absmax, state.absmax)
    assert torch.equal(weight_NK, before)
    layer = quantized(weight_NK, torch.ones(96), "nf4", torch.bfloat16)
    x = rows(8)
    assert distance(layer(x) - 1, linear(x.float(), bnb.functional.dequantize_4bit(truth, state))) < 0.01


@torch.inference_mode()
@pytest.mark.skipif(
    not has_avx512bf16(), reason="this CPU has no bfloat16 instructions: bitsandbytes' own layer is used on it"
)
def test_nf4_on_cpus_multiplies_few_tokens_and_many_with_the_same_weights(weight_NK: torch.Tensor) -> None:
    codes, state = nf4_codes(weight_NK, torch.bfloat16)
    state.absmax = state.absmax.bfloat16().float()  # as bitsandbytes packs it for such CPUs
    truth_NK = bnb.functional.dequantize_4bit(codes, state)
    model = torch.nn.Sequential(quantized(weight_NK, torch.ones(96), "nf4", torch.bfloat16))
    speed_up(model)
    [layer] = model
    assert isinstance(layer, CpuNf4Linear)
    x = rows(2 * FEW_TOKENS)
    few, many = layer(x[:FEW_TOKENS]), layer(x)
    assert distance(few - 1, linear(x[:FEW_TOKENS].float(), truth_NK.float())) < 0.01
    assert distance(many - 1, linear(x.float(), truth_NK.float())) < 0.01
    columns = torch.arange(128).view(2, 2, 32).transpose(1, 2).flatten()
    assert torch.equal(layer.unpacked(), truth_NK[:, columns])


@torch.inference_mode()
@pytest.mark.skipif(not integer_products(CPU), reason="this CPU has no VNNI: bitsandbytes' int8 is used on it")
def test_int8_keeps_activations_with_outliers_and_knows_no_neighbours(weight_NK: torch.Tensor) -> None:
    bias_N = torch.arange(96.0)
    layer = quantized(weight_NK, bias_N, "int8", torch.bfloat16)
    assert isinstance(layer, Int8Linear)
    for outlier in (1.0, 100.0):
        x = rows(8, outlier=outlier).float()
        assert distance(layer(x) - bias_N, linear(x, weight_NK)) < 0.01
    together = layer(rows(40))
    assert all(torch.equal(together[row], layer(rows(40)[row : row + 1])[0]) for row in (0, 17, 39))
    assert layer(torch.zeros(1, 128)).equal(bias_N[None])


@torch.inference_mode()
def test_a_head_in_int8_costs_little_beside_nf4(tiny_model: Path) -> None:
    exact = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.arange(3, 60)[None]
    truth = exact(ids).logits.float().log_softmax(-1)

    def divergence(quantization: str) -> float:
        found = load(tiny_model, quantization, device="cpu").model(ids).logits.float().log_softmax(-1)
        return float((truth.exp() * (truth - found)).sum(-1).mean())

    assert abs(divergence("nf4") - divergence("nf4-bf16")) < 0.1 * divergence("nf4-bf16")
    assert divergence("int8") < 0.1 * divergence("nf4")


def test_a_tied_head_becomes_a_quantized_copy(tiny_model: Path, tmp_path: Path) -> None:
    untied = load(tiny_model, "nf4", device="cpu")
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    untied.tokenizer.save_pretrained(tmp_path)
    tied = load(tmp_path, "nf4", device="cpu")
    assert tied.info.weight_bytes == untied.info.weight_bytes
    assert tied.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert (
        load(tmp_path, "bf16", device="cpu").info.weight_bytes
        < load(tiny_model, "bf16", device="cpu").info.weight_bytes
    )


def test_quantizations_are_told_by_name() -> None:
    assert [parse(name) for name in ("nf4", "nf4-bf16", "bf16", "none")] == [
        ("nf4", "int8"),
        ("nf4", "bf16"),
        ("bf16", "bf16"),
        ("none", "none"),
    ]
    for wrong in ("int3", "nf4-none", "none-int8"):
        with pytest.raises(ConfigError, match="nf4-bf16"):
            parse(wrong)
