"""A model from nothing: a byte-level BPE tokenizer learned from a snapshot, and a small Llama with random weights.

With it the whole loop runs where there is no network, no licence to accept and no GPU. Widths are multiples of 64, so
that 4-bit blocks (64 weights) fit in a row. Rejected: shipping a checkpoint in the repository, whose origin nobody
could check, and a character tokenizer, which makes texts four times as long.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmray import artifact
from llmray.artifact import Artifact
from llmray.errors import ConfigError, InputError, NotFoundError
from llmray.train.blocks import read_rows
from llmray.train.named_templates import NAMED
from llmray.train.template import check_template

logger = logging.getLogger(__name__)

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModelSpec:
    """The size of a small Llama."""

    vocab_size: int = 4096
    """Tokens in the vocabulary; fewer where the text has not that many."""
    hidden_size: int = 192
    """Width of the residual stream."""
    intermediate_size: int = 512
    """Width inside the feed-forward blocks."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 3
    """Attention heads."""
    max_positions: int = 1024
    """Longest sequence that the model accepts, in tokens."""
    seed: int = 0
    """Seed of the random weights."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size"):
            width = getattr(self, name)
            if width <= 0 or width % 64:
                near = max(64, round(width / 64) * 64)
                raise ConfigError(f"base.{name} ({width}) must be a multiple of 64: try {near}")
        if self.num_heads <= 0 or self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"base.num_heads ({self.num_heads}) must divide base.hidden_size ({self.hidden_size}) "
                f"into even parts: try {self.hidden_size // 64}"
            )
        if self.vocab_size < 300:
            raise ConfigError(f"base.vocab_size ({self.vocab_size}) must hold 256 bytes and some merges: try 4096")
        if self.num_layers <= 0 or self.max_positions <= 0:
            raise ConfigError("base.num_layers and base.max_positions must be above zero")


def make_base(data_uri: str, shape: BaseModelSpec, root_uri: str | None = None) -> Artifact:
    """Learn a tokenizer from the train split of a snapshot, and write a random Llama with it as a model artifact.

    Raises:
        InputError: the snapshot has no train rows of plain text.
    """
    from transformers import PreTrainedTokenizerFast

    rows = [text for _, text in read_rows(data_uri, shape="text", split="train")]
    if not rows:
        raise InputError(f"{data_uri} has no train rows of shape 'text' to learn a tokenizer from")
    for _, messages in read_rows(data_uri, shape="messages", split="train"):
        rows.append("\n".join(message["content"] for message in messages))
    core = learn_tokenizer(rows, vocab_size=shape.vocab_size)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=shape.max_positions
    )
    tokenizer.chat_template = NAMED["plain"].jinja
    check_template(tokenizer)
    with artifact.draft("model", root_uri=root_uri) as draft:
        tokenizer.save_pretrained(draft.folder)
        parameters = _write_model(draft.folder, shape, tokenizer)
        characters = sum(map(len, rows))
        tokens = sum(len(encoding.ids) for encoding in core.encode_batch(rows[:500]))
        logger.info("base: %.1f M parameters, %d tokens in the vocabulary", parameters / 1e6, len(tokenizer))
        return draft.seal(
            parents=_parents(data_uri),
            config={"base": shape},
            report={
                "parameters": parameters,
                "vocabulary": len(tokenizer),
                "characters": characters,
                "characters_per_token": round(sum(map(len, rows[:500])) / max(1, tokens), 3),
            },
        )


def learn_tokenizer(rows: list[str], *, vocab_size: int) -> Any:
    """Byte-level BPE (Radford et al. 2019): any text encodes, and decodes to itself. The same rows give the same one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(rows, trainer)
    return core


def _write_model(folder: Path, shape: BaseModelSpec, tokenizer: Any) -> int:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _parents(uri: str) -> dict[str, str]:
    try:
        return {"data": artifact.load(uri).digest}
    except NotFoundError:
        return {}
