"""What a model weighs and how wide it is, counted from its config on the meta device: no weights are loaded.

`memory.py` and `flops.py` reckon with it. The counts come from the modules that transformers builds, since configs name
the same width in many ways; only what modules do not show (heads, the width inside the feed-forward) is read from the
config. Decoders of one kind of layer are meant. Of a mixture of experts, a token is taken to see `num_experts_per_tok` of
them. Rejected: a table of formulas by architecture, which is wrong for the next one without saying so.
"""

from dataclasses import dataclass
from typing import Any

from llmray.train.model_run import ModelRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder without adapters; what of it is trained depends on the spec."""

    total: int
    """Weights, tied ones counted once."""
    largest_layer: int
    """Weights of the largest single module, as ZeRO-3 gathers it."""
    multiplied: int
    """Weights that each token is multiplied with: linear layers and the output head, but no embedding or norm."""
    linear: int
    """Weights of the linear layers that adapters go to, all but the output head: qlora holds them in four bits."""
    linear_layers: int
    """How many these are."""
    linear_ends: int
    """Their inputs and outputs, added up: adapters of rank r have r times as many weights."""
    hidden: int
    """Width of the residual stream."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Query heads of a block."""
    attention: int
    """Width of a block's query heads together."""
    fused: bool
    """Whether one matrix makes queries, keys and values: the values then keep all three alive."""
    inner: int
    """Width inside the feed-forward that a token sees."""
    gated: bool
    """Whether the feed-forward multiplies two branches (SwiGLU)."""
    norms: int
    """Width of a block's norms together, with those of queries and keys."""
    float_norms: bool
    """Whether norms are transformers' RMSNorm, which computes in float32 and keeps what it computed."""
    attention_dropout: bool
    """Whether attention weights are dropped out, for which PyTorch on CPU keeps whole attention matrices."""
    vocabulary: int
    """Rows of the output head."""
    tied: bool
    """Whether the output head is the embedding."""

    def adapters(self, spec: ModelRun) -> int:
        """Weights of the adapters that the spec adds; 0 where all weights are trained."""
        return 0 if spec.method == "full" else spec.lora_rank * self.linear_ends

    def trainable(self, spec: ModelRun) -> int:
        """Weights that have gradients and optimizer state."""
        return self.adapters(spec) or self.total


def shape_of(config: Any) -> Shape:
    """Count a model that transformers can make from its config.

    Args:
        config: a `PretrainedConfig`, as `AutoConfig.from_pretrained(folder)` reads it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = model.get_output_embeddings().weight
    named = dict(model.named_modules())
    linear = [
        module.weight
        for module in named.values()
        if type(module).__name__ in {"Linear", "Conv1D"} and module.weight is not head
    ]
    seen = getattr(text, "num_experts_per_tok", None) or 1
    looked_up = [module.weight for module in named.values() if isinstance(module, torch.nn.Embedding)]
    unmultiplied = {id(weight) for weight in looked_up} - {id(head)}
    layers = text.num_hidden_layers
    [*_, blocks] = [
        module for module in named.values() if isinstance(module, torch.nn.ModuleList) and len(module) == layers
    ]
    norms = [(name, module) for name, module in blocks[-1].named_modules() if type(module).__name__.endswith("Norm")]
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    repeats = {"q_norm": heads, "k_norm": getattr(text, "num_key_value_heads", None) or heads}
    return Shape(
        total=sum(weight.numel() for weight in model.parameters()),
        largest_layer=max(sum(own.numel() for own in module.parameters(recurse=False)) for module in named.values()),
        multiplied=sum(
            weight.numel() * seen // len(weight) if weight.ndim == 3 else weight.numel()  # stacked by expert, or one
            for weight in model.parameters()
            if weight.ndim > 1 and id(weight) not in unmultiplied
        ),
        linear=sum(weight.numel() for weight in linear),
        linear_layers=len(linear),
        linear_ends=sum(sum(weight.shape) for weight in linear),
        hidden=text.hidden_size,
        layers=layers,
        heads=heads,
        attention=heads * head_width,
        fused=any("qkv" in name or "query_key_value" in name for name, _ in blocks[-1].named_modules()),
        inner=_inner(text) * seen,
        gated=any("gate" in name for name, _ in blocks[-1].named_parameters()),
        norms=sum(
            module.weight.numel() * (repeats.get(name.split(".")[-1], 1) if len(module.weight) == head_width else 1)
            for name, module in norms
        ),
        float_norms=any("RMS" in type(module).__name__ and type(module) is not torch.nn.RMSNorm for _, module in norms),
        attention_dropout=any(getattr(text, name, 0) for name in ("attention_dropout", "attn_pdrop")),
        vocabulary=len(head),
        tied=head is model.get_input_embeddings().weight,
    )


def _inner(config: Any) -> int:
    for name in ("moe_intermediate_size", "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"):
        if width := getattr(config, name, None):
            return int(width)
    return 4 * int(config.hidden_size)
