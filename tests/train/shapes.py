"""Configs of small models of several architectures."""

from typing import Any

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def config(name: str, **changes: Any) -> Any:
    """A config by the name of its class, or of a variant: `tied` and `grouped` are Llamas."""
    import transformers

    sizes = {**SIZES, **changes}
    match name:
        case "tied":
            return transformers.LlamaConfig(**sizes, tie_word_embeddings=True)
        case "grouped":
            return transformers.LlamaConfig(**sizes, num_key_value_heads=2)
        case "Qwen3":
            return transformers.Qwen3Config(**sizes, num_key_value_heads=2, head_dim=64)
        case "GPT2":
            return transformers.GPT2Config(
                vocab_size=1000, n_embd=128, n_layer=4, n_head=4, n_inner=384, bos_token_id=0, eos_token_id=0,
                activation_function="gelu",
            )  # fmt: skip
        case "Mixtral":
            return transformers.MixtralConfig(**sizes, num_local_experts=4, num_key_value_heads=2)
    return getattr(transformers, f"{name}Config")(**sizes)
