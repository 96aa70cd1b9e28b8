"""Load a Hugging Face folder with its weights quantized: kept once on disk, made small on the way into memory.

The checkpoint is mapped, not read: each linear layer is quantized from its pages, which the system may then drop, so that a
full-precision copy never stands in memory. Embeddings and norms keep the type that they compute in. The output head, a
third of an NF4 step if left alone, is quantized to int8, whose error is a tenth of NF4's. A head that is tied to the
embedding becomes a quantized copy of it. Rejected: writing a quantized copy of each model (a second artifact whose digest
nobody evaluated), and transformers' own way to bitsandbytes (it leaves the head, and an NF4 load holds twice as much).
"""

import logging
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from llmray.errors import ConfigError, InputError
from llmray.serve.engine import EngineInfo
from llmray.serve.linear import Int8Linear, Kind, integer_products, quantized
from llmray.serve.quantizations import parse

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    model: Any
    tokenizer: Any
    info: EngineInfo


def load(folder: Path, quantization: str, *, device: str | None = None) -> LoadedModel:
    """Read weights and tokenizer.

    Args:
        folder: Hugging Face folder.
        quantization: `nf4`, `int8`, `bf16` or `none`; `nf4-bf16` for another output head than the default.
        device: `cpu`, `cuda`, …; the GPU if there is one by default.

    Raises:
        ConfigError: an unknown quantization, or one that does not fit the model's shape.
        InputError: no model in the folder.
    """
    blocks, head = parse(quantization)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    transformers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no model that transformers can load: {error}") from error
    read_s = time.perf_counter() - began
    dtype = _compute_dtype(blocks, head, place)
    try:
        _quantize(model, blocks, head, place, dtype)
    except ValueError as error:
        raise ConfigError(f"quantization ({quantization}) does not fit {folder}: {error}; try int8") from error
    _place_the_rest(model, place, dtype)
    info = EngineInfo(
        engine="hf",
        quantization=quantization,
        context_tokens=int(model.config.max_position_embeddings),
        load_s=time.perf_counter() - began,
        weight_bytes=weight_bytes(model),
        device=str(place),
    )
    logger.info(
        "%s: read in %.1f s, quantized to %s with the head in %s in %.1f s; %.1f MB of weights, at most %.0f MB resident",
        folder.name,
        read_s,
        blocks,
        head,
        info.load_s - read_s,
        info.weight_bytes / 1e6,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    )
    return LoadedModel(model=model, tokenizer=tokenizer, info=info)


def weight_bytes(model: Any) -> int:
    """Bytes that the weights take, quantization constants included; tied weights count once."""
    total, seen = 0, set()
    for module in model.modules():
        if isinstance(module, Int8Linear):
            total += module.nbytes
            continue
        for tensor in _tensors(module):
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                total += tensor.nbytes
    return total


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for parameter in module.parameters(recurse=False):
        yield parameter
        if state := getattr(parameter, "quant_state", None):
            yield state.absmax
            yield state.code
        for extra in (getattr(parameter, "CB", None), getattr(parameter, "SCB", None)):
            if isinstance(extra, torch.Tensor):
                yield extra


def _compute_dtype(blocks: str, head: str, place: torch.device) -> torch.dtype | None:
    """What unquantized weights are kept and computed in; None for as stored."""
    if blocks == "none":
        return None
    by_bitsandbytes = "int8" in (blocks, head) and not integer_products(place)
    return torch.float16 if by_bitsandbytes and blocks == "int8" else torch.bfloat16


def _quantize(model: Any, blocks: str, head: str, place: torch.device, dtype: torch.dtype | None) -> None:
    output = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear and not isinstance(module, Conv1D):
            continue
        kind = head if module is output else blocks
        if kind not in ("nf4", "int8"):
            continue
        assert dtype is not None
        weight_NK = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
        bias_N = None if module.bias is None else module.bias.data.to(place)
        layer = quantized(weight_NK.to(place), bias_N, _kind(kind), dtype, output=module is output)
        model.set_submodule(name, layer)


def _kind(name: str) -> Kind:
    return "nf4" if name == "nf4" else "int8"


def _place_the_rest(model: Any, place: torch.device, dtype: torch.dtype | None) -> None:
    """What is not quantized goes to its device and type; buffers, such as rotary frequencies, keep theirs."""
    for module in model.modules():
        if isinstance(module, Int8Linear):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(place, dtype)
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(place), persistent=name not in module._non_persistent_buffers_set)
