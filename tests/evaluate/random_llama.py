"""A random Llama with a word-piece-free byte tokenizer, and a snapshot of a few rows: real files, no download."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmray import artifact
from llmray.artifact import Artifact
from llmray.digest import digest_of

MARKED = (
    "{{- bos_token -}}{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}{{- 'A:' -}}"
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- 'Q:' + message['content'] + '\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'A:' -}}{%- endif -%}"
)
UNMARKED = MARKED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("shape", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("group", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
    ]
)


def write_llama(folder: Path, *, seed: int, template: str = MARKED, hidden: int = 32) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Which module defines `join`? os.path"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=template
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def model_artifact(root: Path, *, seed: int) -> Artifact:
    with artifact.draft("model", root_uri=str(root)) as draft:
        write_llama(draft.folder, seed=seed)
        return draft.seal()


def snapshot(root: Path, rows: list[dict[str, object]]) -> Artifact:
    empty = dict.fromkeys(SCHEMA.names)
    full = [
        {**empty, "id": digest_of(row), "split": "heldout", "source": "test", "row": index, **row}
        for index, row in enumerate(rows)
    ]
    with artifact.draft("dataset", root_uri=str(root)) as draft:
        (draft.folder / "kept").mkdir()
        pq.write_table(pa.Table.from_pylist(full, schema=SCHEMA), draft.folder / "kept" / "part-00000.parquet")
        return draft.seal()


def conversation(question: str, answer: str, **more: object) -> dict[str, object]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"shape": "messages", "messages": turns, **more}
