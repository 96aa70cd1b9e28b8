"""The embedding engine with a small model of the shape that people serve."""

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmray.errors import ConfigError
from llmray.sentences import SentenceEncoder
from llmray.serve.embedder import Embedded, open_embedder
from llmray.serve.engine import RequestRefusedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one small layer with random weights and mean pooling, which reads 8 tokens."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("sentence")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "bank", "stone"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def test_texts_become_the_models_vectors_at_length_one(folder: Path) -> None:
    engine = open_embedder(str(folder))
    texts = ["river bank", "Stone", ""]

    async def twice() -> tuple[Embedded, Embedded]:
        return await asyncio.gather(engine.embed(texts), engine.embed(texts))

    found, again = asyncio.run(twice())
    wanted_ND = SentenceEncoder(folder)(texts)
    wanted_ND /= np.linalg.norm(wanted_ND, axis=1, keepdims=True)
    assert found.vectors_ND == pytest.approx(wanted_ND, abs=1e-6)
    assert (found.vectors_ND.dtype, found.tokens) == (np.float32, 4 + 3 + 2)
    assert found.vectors_ND.tobytes() == again.vectors_ND.tobytes()


def test_who_leaves_in_the_middle_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, steps = open_embedder(str(folder)), list[str]()
    began, go = threading.Event(), threading.Event()

    def embed(texts: Sequence[str]) -> None:
        steps.append(f"{texts[0]} begins")
        if texts[0] == "first":
            began.set()
            go.wait()
        steps.append(f"{texts[0]} ends")

    monkeypatch.setattr(engine, "_embed", embed)

    async def leave() -> None:
        first = asyncio.create_task(engine.embed(["first"]))
        await asyncio.to_thread(began.wait)
        first.cancel()
        second = asyncio.create_task(engine.embed(["second"]))
        for _ in range(3):  # long enough for it to begin, if it could
            await asyncio.to_thread(str)
        go.set()
        await second

    asyncio.run(leave())
    assert steps == ["first begins", "first ends", "second begins", "second ends"]


def test_a_text_that_is_too_long_is_refused_by_its_number(folder: Path) -> None:
    engine = open_embedder(str(folder))
    with pytest.raises(RequestRefusedError, match="text 1 has 12 tokens and the model reads 8") as refused:
        asyncio.run(engine.embed(["river", "bank " * 10]))
    assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")
    with pytest.raises(ConfigError, match=r"modules\.json is missing"):
        open_embedder(str(folder / "1_Pooling"))
