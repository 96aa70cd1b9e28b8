"""Packed documents have the loss and the gradients that they have alone, in every shape of model; else it is refused."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from shapes import config

from llmray.errors import InputError
from llmray.train.forward import check_walls, token_losses
from llmray.train.packing import IGNORED, Block, Example, documents, pack

SHAPES = ["Llama", "grouped", "Qwen3", "GPTNeoX"]
LENGTH = 48


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on cores that others use take tenfold for models so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(name, num_hidden_layers=2))


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    dice = np.random.default_rng(0)
    examples = [
        Example(input_ids=dice.integers(1, 1000, size).tolist(), trained=dice.integers(0, 2, size).tolist(), row=row)
        for row, size in enumerate(dice.integers(2, LENGTH, size=12).tolist())
    ]
    return pack(examples, max_length=LENGTH, pad_id=0)


def seen(model: Any, blocks: Sequence[Block]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of the tokens of each block, and the gradient of their sum by weight."""
    model.zero_grad()
    losses = [token_losses(model, [block], "cpu")[0] for block in blocks]
    torch.stack([loss.sum() for loss in losses]).sum().backward()
    return losses, {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", SHAPES)
def test_packed_every_token_has_its_loss_and_every_weight_its_gradient(name: str, blocks: list[Block]) -> None:
    model = model_of(name)
    packed, gradients = seen(model, blocks)
    apart = [document for block in blocks for document in documents(block)]
    alone, expected = seen(model, apart)
    said = torch.cat([loss[: block.num_tokens] for loss, block in zip(packed, blocks, strict=True)])
    wanted = torch.cat(alone)
    labels = torch.from_numpy(np.concatenate([document.labels for document in apart]))
    assert (wanted[labels != IGNORED] > 1).all()
    assert (wanted[labels == IGNORED] == 0).all()
    assert torch.allclose(said, wanted, rtol=1e-5, atol=0)
    for weight, gradient in gradients.items():
        assert (gradient - expected[weight]).norm() <= 1e-5 * expected[weight].norm(), weight


@pytest.mark.parametrize("name", [*SHAPES, "GPT2", "Mixtral"])
def test_walls_are_tried_and_a_cache_that_takes_them_down_is_refused(name: str) -> None:
    model = model_of(name)
    check_walls(model, model=name, vocabulary=1000, device="cpu")
    with pytest.raises(InputError, match=f"{name} lets documents .* see one another.*'sdpa' or 'eager' and no cache"):
        check_walls(Caching(model), model=name, vocabulary=1000, device="cpu")


class Caching:
    """A model that keeps a cache whatever it is told."""

    def __init__(self, model: Any) -> None:
        self.eval, self._model = model.eval, model

    def __call__(self, **options: Any) -> Any:
        return self._model(**{**options, "use_cache": True})
