"""A Llama of random weights for benchmarks of speed, with a byte-level BPE of its own and a chat template.

What it says means nothing; how long it takes to say it is what a trained model of its shape takes. The tokenizer is
trained on the source of Python's standard library, which every machine here has, and splits as GPT-2's does, so that
llama.cpp knows how to read it. Made once for each shape, in a cache folder.
"""

import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmray.digest import digest_of

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    vocab_size: int = 32_000
    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False


TINY = Shape(
    vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512,
)  # fmt: skip


def random_llama(cache: Path, shape: Shape) -> Path:
    """Its folder, made if it is not there."""
    folder = cache / f"llama-{digest_of(asdict(shape))[:12]}"
    if not folder.exists():
        half = cache / f"{folder.name}.part"
        shutil.rmtree(half, ignore_errors=True)
        _write(half, shape)
        half.rename(folder)
    return folder


def _write(folder: Path, shape: Shape) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(shape.vocab_size)
    torch.manual_seed(0)
    config = LlamaConfig(
        **asdict(shape) | {"vocab_size": len(tokenizer)},
        bos_token_id=None, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"), pad_token_id=0, dtype="bfloat16",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=CHAT_TEMPLATE
    )


def _texts() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and "test" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")
