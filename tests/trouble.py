"""Things that go wrong inside a model: hooks for a small Llama, real enough for what must notice them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(kw_only=True)
class Trouble:
    """Installed on a model before DeepSpeed takes it."""

    nan_gradient_of: int | None = None
    """A token whose hidden state gets NaN for a gradient, while its loss is fine."""
    scale: dict[int, float] = field(default_factory=dict)
    """Factors of the last hidden states, by forward pass in training, counted from 1."""
    passes: int = 0
    """Forward passes in training so far."""

    def install(self, model: Any) -> Any:
        if self.nan_gradient_of is None and not self.scale:
            return model
        inner = model.model
        if self.nan_gradient_of is not None:
            inner.embed_tokens.register_forward_pre_hook(self._look)
            inner.layers[0].register_forward_hook(self._poison)
        if self.scale:
            inner.norm.register_forward_hook(self._scale)
        return model

    def around(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """A function that loads a model, now one with this trouble."""
        return lambda *args, **options: self.install(load(*args, **options))

    def _look(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._ids_BT = inputs[0]

    def _poison(self, _module: Any, _inputs: Any, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return _NanGradient.apply(hidden_BTH, (self._ids_BT == self.nan_gradient_of)[..., None])

    def _scale(self, module: Any, _inputs: Any, hidden_BTH: torch.Tensor) -> torch.Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return hidden_BTH
        self.passes += 1
        return hidden_BTH * self.scale.get(self.passes, 1.0)


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(where)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        [where] = ctx.saved_tensors
        return gradient.masked_fill(where, torch.nan), None
