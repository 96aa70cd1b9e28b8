"""A base model whose linear layers are held in four bits while adapters on them are trained (QLoRA).

NF4 in blocks of 64 weights, the scales of the blocks quantized once more (Dettmers et al. 2023, "QLoRA", sections 3.1 and
3.2), by bitsandbytes. What was trained against is what the exported model must hold, so the adapters are merged into the
weights as the layers saw them. Rejected: merging into the weights that were quantized, which the adapters never saw.
"""

from typing import Any

import torch

from llmray.train.model_run import ModelRun


def quantization(spec: ModelRun) -> Any:
    """What `from_pretrained` is to quantize; None where nothing is."""
    if spec.method != "qlora":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
    )


def keep_packing(model: Any) -> None:
    """Have 4-bit layers compute the same in training and in evaluation.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 packs their weights in another order in the first forward pass in
    evaluation, with scales in bfloat16: every later pass is off, and under ZeRO-3, which gathers the old order, no number
    is right any more.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert all(hasattr(layer, "support_avx512bf16_for_cpu") for layer in layers), "bitsandbytes calls it otherwise now"
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def as_computed_with(weight: torch.Tensor) -> torch.Tensor:
    """A weight on the CPU, whole: a 4-bit one as its layer multiplies with it."""
    if (state := getattr(weight, "quant_state", None)) is None:
        return weight.detach().cpu().clone()
    from bitsandbytes.functional import dequantize_4bit

    whole: torch.Tensor = dequantize_4bit(weight.detach(), state)
    return whole.cpu()
