"""Draw the next token as a request asks: temperature, then top-k, then top-p, from a generator of its own.

The order is that of transformers' logits warpers, and greedy is the plain argmax, so that answers equal `generate`'s.
Each request owns its seeded generator: what others ask at the same time changes nothing.
"""

import torch

from llmray.serve.engine import Sampling


class Sampler:
    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is not None:
            self._generator.manual_seed(sampling.seed)
        else:
            self._generator.seed()

    def draw(self, logits_V: torch.Tensor) -> int:
        """One token id from the logits of the last position, float of any precision."""
        if self._sampling.temperature == 0.0 or self._sampling.top_k == 1:
            return int(logits_V.argmax())
        probabilities_V = filtered(logits_V.float().cpu(), self._sampling)
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator))


def filtered(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities (V,) after temperature, top-k and top-p; at least one token keeps a chance."""
    scores_V = logits_V / max(sampling.temperature, 1e-5)
    scores_V = scores_V - scores_V.max()
    if 0 < sampling.top_k < scores_V.shape[-1]:
        smallest = scores_V.topk(sampling.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < smallest, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = scores_V.sort(descending=False)
        outside = ordered.softmax(-1).cumsum(-1) <= 1.0 - sampling.top_p
        outside[-1] = False
        scores_V = scores_V.masked_fill(outside.scatter(0, order, outside), -torch.inf)
    return scores_V.softmax(-1)
