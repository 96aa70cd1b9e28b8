"""Draw the next tokens of a batch, each as its request asks, from a generator of its own.

A request's logits go through logit bias, penalties and the grammar, then temperature, top-k and top-p, in the order
of transformers' logits warpers; greedy is the plain argmax, so that answers equal `generate`'s. What others ask
at the same time changes nothing: each row is worked on alone wherever rounding could tell, and each request draws one
uniform number a token, which picks the token by the inverse of the cumulative probabilities. Reported
log-probabilities are the model's own, before all of that, as vLLM reports them.

Top-p needs the probabilities in order and not the tokens: on a CPU NumPy's vectorized sort of 32,000 values takes a
twentieth of torch's, which carries indices along. Rejected: Gumbel noise (a random number for each token of the
vocabulary, where one is enough), and sorting the rows of a batch at once (no faster, and rows that do not ask pay).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmray.serve.engine import Sampling


@dataclass(frozen=True, slots=True)
class Drawn:
    """The next token of one request, and log-probabilities where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """Token ids with their log-probabilities, likeliest first."""


class Sampler:
    """What one request asks, and what it was given so far."""

    def __init__(self, sampling: Sampling, mask: Callable[[], torch.Tensor] | None = None) -> None:
        """`mask` gives the tokens (V,) that a grammar allows next."""
        self.sampling = sampling
        self.greedy = sampling.temperature == 0.0 or sampling.top_k == 1
        self._random = random.Random(None if sampling.seed is None else sampling.seed % 2**64)
        self._mask = mask
        self._counts: dict[int, int] = {}
        self._penalized = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self.shapes_logits = bool(self._penalized or sampling.logit_bias or mask)
        """Whether logits are changed before anything else."""
        self.masks = mask is not None
        """Whether tokens may be forbidden."""

    def shape(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Logits with bias, penalties and grammar; a new tensor."""
        logits_V = logits_V.clone()
        if self.sampling.logit_bias:
            ids, biases = zip(*self.sampling.logit_bias, strict=True)
            _add(logits_V, ids, biases)
        if self._penalized and self._counts:
            presence, frequency = self.sampling.presence_penalty, self.sampling.frequency_penalty
            _add(logits_V, tuple(self._counts), [-presence - frequency * count for count in self._counts.values()])
        if self._mask is not None:
            logits_V.masked_fill_(~self._mask().to(logits_V.device), -torch.inf)
        return logits_V

    def uniform(self) -> float:
        """One number of [0, 1)."""
        return self._random.random()

    def count(self, token: int) -> None:
        """A token was generated."""
        if self._penalized:
            self._counts[token] = self._counts.get(token, 0) + 1


def draw(logits_RV: torch.Tensor, samplers: Sequence[Sampler]) -> list[Drawn | Exception]:
    """The next token of each row, from logits of any precision; an error where one row could not be drawn."""
    logits_RV = logits_RV.float()
    drawn: list[Drawn | Exception] = []
    plain = logits_RV.argmax(-1).tolist() if any(one.greedy and not one.shapes_logits for one in samplers) else []
    for row, (one, logits_V) in enumerate(zip(samplers, logits_RV, strict=True)):
        try:
            token = plain[row] if one.greedy and not one.shapes_logits else _one_token(one, logits_V)
            one.count(token)
            wanted = one.sampling.logprobs
            drawn.append(Drawn(token) if wanted is None else report(logits_V, [token], wanted)[0])
        except Exception as error:
            drawn.append(error)
    return drawn


def _one_token(sampler: Sampler, logits_V: torch.Tensor) -> int:
    if sampler.shapes_logits:
        logits_V = sampler.shape(logits_V)
    if not sampler.greedy:
        return pick_token(logits_V, sampler.sampling, sampler.uniform())
    token = int(logits_V.argmax())
    if sampler.masks and not float(logits_V[token]) > -torch.inf:
        raise ArithmeticError("no token is left to choose from: all are forbidden, or their logits are not numbers")
    return token


def report(logits_NV: torch.Tensor, tokens: Sequence[int], num_top: int) -> list[Drawn]:
    """Log-probabilities of known tokens and of the likeliest in each one's place."""
    logprobs_NV = logits_NV.float().view(len(tokens), -1).log_softmax(-1)
    chosen = logprobs_NV.gather(1, torch.tensor(tokens, device=logprobs_NV.device)[:, None])[:, 0].tolist()
    top = logprobs_NV.topk(min(num_top, logprobs_NV.shape[1]))
    return [
        Drawn(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, ids, values in zip(tokens, chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def pick_token(logits_V: torch.Tensor, sampling: Sampling, uniform: float) -> int:
    """The token on which `uniform`, of [0, 1), falls after temperature, top-k and top-p."""
    scores_V = logits_V / max(sampling.temperature, 1e-5)
    if 0 < sampling.top_k < len(scores_V):
        candidates = scores_V.topk(sampling.top_k)
        weights_C = _nucleus(candidates.values.softmax(-1), sampling.top_p)
        return int(candidates.indices[_place(weights_C, uniform)])
    return int(_place(_nucleus(scores_V.softmax(-1), sampling.top_p), uniform))


def _nucleus(weights_C: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities with those set to zero that are not of the likeliest that hold `top_p` together."""
    if top_p >= 1.0:
        return weights_C
    ordered_C = weights_C.sort().values if weights_C.is_cuda else torch.from_numpy(np.sort(weights_C.numpy()))
    outside = int(torch.searchsorted(ordered_C.cumsum(-1, dtype=torch.float64), 1.0 - top_p, right=True))
    least = ordered_C[min(outside, len(ordered_C) - 1)]
    return weights_C.masked_fill(weights_C < least, 0.0)


def _place(weights_C: torch.Tensor, uniform: float) -> torch.Tensor:
    """Where `uniform` of the whole falls; never on what has no chance."""
    cumulative_C = weights_C.cumsum(-1, dtype=torch.float64)
    if not float(cumulative_C[-1]) > 0.0:
        raise ArithmeticError("the model gives no token a chance: its logits are not numbers")
    last = torch.searchsorted(cumulative_C, cumulative_C[-1:])
    return torch.minimum(torch.searchsorted(cumulative_C, uniform * cumulative_C[-1:], right=True), last)[0]


def _add(logits_V: torch.Tensor, ids: Sequence[int], values: Sequence[float]) -> None:
    device = logits_V.device
    logits_V.index_add_(0, torch.tensor(ids, device=device), torch.tensor(values, device=device))
