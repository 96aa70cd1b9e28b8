"""Load a Hugging Face folder with its weights quantized: kept once on disk, made small on the way into memory.

bitsandbytes quantizes the linear layers of the blocks (NF4: Dettmers et al. 2023, QLoRA; int8: Dettmers et al. 2022,
LLM.int8()); embeddings, norms and the output head keep the type that they compute in. It runs on CPUs as well as GPUs.
Rejected: writing a quantized copy of each model (a second artifact whose digest nobody evaluated).
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from llmray.errors import ConfigError, InputError
from llmray.serve.engine import EngineInfo

Quantization = Literal["nf4", "int8", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    model: Any
    tokenizer: Any
    info: EngineInfo


def load(folder: Path, quantization: str, *, device: str | None = None, dtype: str = "auto") -> LoadedModel:
    """Read weights and tokenizer.

    Args:
        folder: Hugging Face folder.
        quantization: `nf4`, `int8` or `none`.
        device: `cpu`, `cuda`, …; the GPU if there is one by default.
        dtype: what unquantized weights are kept and computed in: `auto` keeps the checkpoint's own without
            quantization, and takes bfloat16 with nf4 and float16 with int8, which bitsandbytes computes in.

    Raises:
        ConfigError: an unknown quantization.
        InputError: no model in the folder.
    """
    if quantization not in get_args(Quantization):
        raise ConfigError(f"quantization ({quantization}) must be one of {', '.join(get_args(Quantization))}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of its cast to float16 at every step
    transformers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    options: dict[str, Any] = {"device_map": {"": device}, "dtype": _dtype(dtype, quantization, device)}
    if quantization != "none":
        options["quantization_config"] = _bitsandbytes(quantization, options["dtype"])
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no model that transformers can load: {error}") from error
    info = EngineInfo(
        engine="hf",
        quantization=quantization,
        context_tokens=int(model.config.max_position_embeddings),
        load_s=time.perf_counter() - began,
        weight_bytes=weight_bytes(model),
        device=device,
    )
    return LoadedModel(model=model, tokenizer=tokenizer, info=info)


def weight_bytes(model: Any) -> int:
    """Bytes that the weights take, quantization constants included; tied weights count once."""
    total, seen = 0, set()
    for parameter in model.parameters():
        tensors = [parameter]
        if state := getattr(parameter, "quant_state", None):
            tensors += [tensor for tensor in state.as_dict(packed=False).values() if isinstance(tensor, torch.Tensor)]
        for extra in (getattr(parameter, "CB", None), getattr(parameter, "SCB", None)):
            if isinstance(extra, torch.Tensor):
                tensors.append(extra)
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
    return total


def _dtype(dtype: str, quantization: str, device: str) -> Any:
    if dtype != "auto":
        return getattr(torch, dtype)
    if quantization == "none":
        return "auto"
    return torch.float16 if quantization == "int8" and device.startswith("cuda") else torch.bfloat16


def _bitsandbytes(quantization: str, dtype: Any) -> BitsAndBytesConfig:
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
