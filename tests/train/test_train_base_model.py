"""A base model from nothing, and the blocks that a snapshot gives."""

from pathlib import Path
from typing import Any

import pytest
from tiny_training import SHAPE, WORDS, base, conversations, snapshot, tokenizer

from llmray.artifact import Artifact
from llmray.data.snapshot import write_snapshot
from llmray.errors import ConfigError, InputError
from llmray.train.base_model import BaseModelSpec, make_base
from llmray.train.blocks import heldout_blocks, read_rows, train_blocks
from llmray.train.packing import IGNORED
from llmray.train.spec import TrainSpec


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def data(root: Path) -> Artifact:
    return snapshot(root)


@pytest.fixture(scope="module")
def model(root: Path, data: Artifact) -> Artifact:
    return base(root, data)


def test_the_same_data_and_shape_give_the_same_bytes(model: Artifact, data: Artifact, tmp_path: Path) -> None:
    assert base(tmp_path, data).digest == model.digest


def test_another_seed_is_another_model_with_the_same_tokenizer(model: Artifact, data: Artifact, tmp_path: Path) -> None:
    shape = BaseModelSpec(**{name: getattr(SHAPE, name) for name in SHAPE.__slots__} | {"seed": 1})
    other = make_base(data.uri, shape, root_uri=str(tmp_path))
    assert other.digest != model.digest
    assert (other.local() / "tokenizer.json").read_bytes() == (model.local() / "tokenizer.json").read_bytes()


def test_making_a_model_leaves_the_callers_dice_alone(data: Artifact, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_base(data.uri, SHAPE, root_uri=str(tmp_path))
    assert torch.equal(torch.rand(3), expected)


def test_the_model_loads_in_transformers_and_says_where_it_comes_from(model: Artifact, data: Artifact) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model.uri)
    words = AutoTokenizer.from_pretrained(model.uri)
    assert model.parents == {"data": data.digest}
    assert loaded.config.vocab_size % 64 == 0
    assert loaded.config.vocab_size >= len(words) == model.report["vocabulary"]
    assert model.report["parameters"] == sum(weights.numel() for weights in loaded.parameters())
    text = "¿naïve? 東京 \t\n join"
    assert words.decode(words(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 100}, r"base\.hidden_size \(100\) must be a multiple of 64: try 128"),
        ({"hidden_size": 0}, r"base\.hidden_size \(0\).*try 64"),
        ({"intermediate_size": 500}, r"base\.intermediate_size \(500\).*try 512"),
        ({"num_heads": 5}, r"base\.num_heads \(5\) must divide base\.hidden_size \(192\) into even parts: try 3"),
        ({"num_heads": 0}, r"base\.num_heads \(0\)"),
        ({"vocab_size": 256}, r"base\.vocab_size \(256\).*try 4096"),
        ({"num_layers": 0}, r"base\.num_layers"),
        ({"max_positions": 0}, r"base\.max_positions"),
    ],
    ids=str,
)
def test_an_impossible_shape_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BaseModelSpec(**options)


def test_a_tokenizer_needs_text_to_learn_from(tmp_path: Path) -> None:
    data = write_snapshot(conversations(3), source="test", root_uri=str(tmp_path))
    with pytest.raises(InputError, match="no train rows of shape 'text'"):
        make_base(data.uri, SHAPE)


def spec(data: Artifact, **more: Any) -> TrainSpec:
    return TrainSpec(data=data.uri, max_length=48, **more)


def test_rows_come_by_shape_and_split_in_the_order_of_their_ids(data: Artifact) -> None:
    rows = read_rows(data.uri, shape="messages", split="train")
    assert sorted(number for number, _ in rows) == list(range(1, 25))
    assert read_rows(data.uri, shape="messages", split="train", limit=2) == rows[:2]
    assert [text for _, text in read_rows(data.uri, shape="text", split="train")] == [" ".join(WORDS)]
    assert read_rows(data.uri, shape="text", split="heldout") == []


def test_rows_of_several_sources_are_named_after_them(data: Artifact, tmp_path: Path) -> None:
    both = write_snapshot([{"text": "Another."}], source="notes", root_uri=str(tmp_path), onto=data.uri)
    assert read_rows(both.uri, shape="messages", split="train") == read_rows(data.uri, shape="messages", split="train")
    assert {row for row, _ in read_rows(both.uri, shape="text", split="train")} == {"test:25", "notes:1"}


def test_blocks_hold_every_row_once_and_are_counted(data: Artifact) -> None:
    made = train_blocks(spec(data), tokenizer())
    rows = sorted(row for block in made.blocks for row in block.rows)
    assert rows == list(range(1, 25))
    assert made.counts["rows"] == 24
    assert made.counts["blocks"] == len(made.blocks)
    tokens = sum(block.num_tokens for block in made.blocks)
    assert made.counts["packing_efficiency"] == pytest.approx(tokens / (48 * len(made.blocks)), abs=1e-4)
    assert not heldout_blocks(spec(data), tokenizer())


def test_a_mix_adds_blocks_of_the_other_shape(tmp_path: Path) -> None:
    data = snapshot(tmp_path, more=[{"text": f"{number} {' '.join(WORDS)}"} for number in range(20)])
    plain, words = train_blocks(spec(data), tokenizer()), tokenizer()
    mixed = train_blocks(spec(data, mix=0.25), words)
    assert mixed.counts["mixed_blocks"] == round(len(plain.blocks) / 3)
    assert len(mixed.blocks) == len(plain.blocks) + mixed.counts["mixed_blocks"]
    again = train_blocks(spec(data, mix=0.25), words)
    assert [block.rows for block in again.blocks] == [block.rows for block in mixed.blocks]
    assert [block.rows for block in train_blocks(spec(data, mix=0.25, seed=1), words).blocks] != [
        block.rows for block in mixed.blocks
    ]


def test_pre_training_reads_texts_and_trains_all_of_them(data: Artifact) -> None:
    [block, *rest] = train_blocks(spec(data, objective="pretrain"), tokenizer()).blocks
    assert {row for each in (block, *rest) for row in each.rows} == {25}
    assert (block.labels[: block.num_tokens - 1] != IGNORED).all()


def test_data_of_another_shape_or_kind_is_refused(model: Artifact, tmp_path: Path) -> None:
    texts_only = write_snapshot([{"text": "alone"}], source="test", root_uri=str(tmp_path))
    with pytest.raises(InputError, match=r"no train rows of shape 'messages'.*'sft'"):
        train_blocks(spec(texts_only), tokenizer())
    with pytest.raises(InputError, match="no dataset snapshot"):
        train_blocks(spec(model), tokenizer())


def test_data_of_which_nothing_is_left_to_train_is_refused_with_what_would_help(data: Artifact) -> None:
    with pytest.raises(InputError, match=r"none of the 24 train rows.*train\.max_length \(4\): raise that, choose"):
        train_blocks(TrainSpec(data=data.uri, max_length=4), tokenizer())
