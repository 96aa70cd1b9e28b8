"""Names of what a model's weights are kept in: the blocks, and after a hyphen the output head. No torch is needed to check one."""

from llmray.errors import ConfigError

HEADS: dict[str, tuple[str, ...]] = {
    "nf4": ("int8", "nf4", "bf16"),
    "int8": ("int8", "nf4", "bf16"),
    "bf16": ("bf16", "int8", "nf4"),
    "none": ("none",),
}
"""How blocks can be kept, and with each of them the output head, the default first. `none` is as stored."""


def parse(quantization: str) -> tuple[str, str]:
    """What blocks and head are kept in.

    Raises:
        ConfigError: no such quantization.
    """
    blocks, _, head = quantization.partition("-")
    if blocks not in HEADS or (head and head not in HEADS[blocks]):
        with_head = [f"{name}-{other}" for name, heads in HEADS.items() for other in heads[1:]]
        raise ConfigError(f"quantization ({quantization}) must be one of {', '.join([*HEADS, *with_head])}")
    return blocks, head or HEADS[blocks][0]
