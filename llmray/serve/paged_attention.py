"""One forward pass over tokens of many requests: each attends to its own paged keys and values and to nothing else.

The tokens of a step lie one after another in a batch of one row, so that every linear layer runs once over all of them.
Attention is the only place where requests must be told apart; it is registered with transformers under a name of its
own and finds the step among the keyword arguments that models hand down. Shapes of the cache are learnt from one
token's pass through the model, so that nothing is assumed of the architecture but that interface.

On a CPU each request reads its blocks on its own: no padding, and a handful of kernels a layer. On an accelerator the
requests that decode are padded to the longest and read in three kernels. A group of query heads that shares a key is
treated as so many queries of one key head, which spares repeating the keys.

Rejected: transformers' own paged attention, which on a CPU multiplies every query with the keys of every request and
masks the rest away (batch 8: 66-73 tokens/s, where padded `generate` makes 89), and a padded `DynamicCache` (it moves
the keys of all requests whenever one comes or goes).

Legend: T tokens of the step, H query heads, G query heads a key head, K key heads, D head size, L tokens attended to, R requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from llmray.errors import ConfigError

ATTENTION = "llmray_paged"
ROUND_TOKENS = 16
"""Steps of more tokens than these are filled up to a multiple of them on a CPU."""


@dataclass(slots=True)
class Span:
    """The tokens of one request in a step."""

    begin: int
    """Where its tokens begin in the row."""
    count: int
    past: int
    """Tokens before them, whose keys are in the cache."""
    slots_L: torch.Tensor
    """Where the keys of all its tokens are, those of this step included."""
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)
    """By sliding window; the layers share them."""


@dataclass(frozen=True, slots=True)
class Step:
    """What attention must know of a step."""

    cache: "PagedCache"
    write_T: torch.Tensor
    """Slots for the keys of the step's tokens."""
    spans: Sequence[Span]


class PagedCache:
    """Keys and values of all layers, by slot: block b holds the slots from b * block_tokens on."""

    def __init__(self, model: Any, *, budget_bytes: int, block_tokens: int, context_tokens: int) -> None:
        """Make `model` attend through this module, and take memory for `budget_bytes`, and at least one context.

        Raises:
            ConfigError: the model's attention cannot be replaced.
        """
        self._model = model
        self._device = model.device
        shapes = _probe(model)
        slot_bytes = sum((key.numel() + value.numel()) * key.element_size() for key, value in shapes)
        wanted = max(budget_bytes // slot_bytes, context_tokens)
        self.num_blocks = -(-wanted // block_tokens)
        self.block_tokens = block_tokens
        self._nowhere = self.num_blocks * block_tokens
        """A slot more than blocks have, for tokens that only fill a step up."""
        self._layers = [
            tuple(torch.zeros((self._nowhere + 1, *one.shape), dtype=one.dtype, device=one.device) for one in shape)
            for shape in shapes
        ]

    def slots(self, blocks: Sequence[int]) -> torch.Tensor:
        """Slots (L,) of the tokens that these blocks can hold."""
        begins = torch.tensor(blocks).unsqueeze(1) * self.block_tokens
        return (begins + torch.arange(self.block_tokens)).flatten().to(self._device)

    def forward(self, ids: Sequence[int], chunks: Sequence[tuple[int, torch.Tensor]], rows: Sequence[int]) -> Any:
        """Logits (rows, V) of some of the step's tokens, at least one; the keys of all of them are in the cache afterwards.

        Args:
            ids: the step's tokens, one request after another.
            chunks: for each request, tokens in this step, and slots of all its tokens, those included.
            rows: places in `ids` whose logits are wanted.
        """
        spans, begin = [], 0
        for count, slots_L in chunks:
            spans.append(Span(begin, count, len(slots_L) - count, slots_L))
            begin += count
        write_T = torch.cat([span.slots_L[span.past :] for span in spans])
        positions = [place for span in spans for place in range(span.past, span.past + span.count)]
        if fill := _fill(len(ids), self._device):
            write_T = torch.cat([write_T, torch.full((fill,), self._nowhere)])
        return self._model(
            input_ids=torch.tensor([[*ids, *[0] * fill]], device=self._device),
            position_ids=torch.tensor([[*positions, *[0] * fill]], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(rows or [0], device=self._device),
            step=Step(self, write_T, spans),
        ).logits[0]

    def attend(self, layer: int, query_THD: Any, key_TKD: Any, value_TKD: Any, step: Step, **how: Any) -> Any:
        """Keep the keys and values, and attend."""
        keys, values = self._layers[layer]
        keys[step.write_T] = key_TKD
        values[step.write_T] = value_TKD
        heads, groups = query_THD.shape[1], query_THD.shape[1] // key_TKD.shape[1]
        out_THD = query_THD.new_zeros((len(query_THD), heads, value_TKD.shape[-1]))
        alone = list(step.spans)
        if query_THD.is_cuda and len(decoding := [span for span in alone if span.count == 1]) > 1:
            alone = [span for span in alone if span.count > 1]
            places = torch.tensor([span.begin for span in decoding], device=query_THD.device)
            out_THD[places] = _decode_padded(query_THD[places], keys, values, decoding, groups, **how)
        for span in alone:
            out_THD[span.begin : span.begin + span.count] = _attend_alone(query_THD, keys, values, span, groups, **how)
        return out_THD


def _fill(num_tokens: int, device: torch.device) -> int:
    """Tokens to add so that a step has a round number of them: on a CPU oneDNN compiles, and keeps, a kernel for each."""
    return 0 if device.type != "cpu" or num_tokens <= ROUND_TOKENS else -num_tokens % ROUND_TOKENS


def _attend_alone(
    query_THD: Any, keys: Any, values: Any, span: Span, groups: int, *, scale: float | None, window: int | None
) -> Any:
    """Attention (count, H, D) of one request."""
    count = span.count
    slots_L = span.slots_L
    if count == 1:
        if window is not None:
            slots_L = slots_L[-window:]
        key_KLD = keys.index_select(0, slots_L).transpose(0, 1)
        value_KLD = values.index_select(0, slots_L).transpose(0, 1)
        query_KGD = query_THD[span.begin].view(len(key_KLD), groups, -1)
        out_KGD = scaled_dot_product_attention(query_KGD[None], key_KLD[None], value_KLD[None], scale=scale)[0]
        return out_KGD.reshape(1, query_THD.shape[1], -1)
    if window not in span.masks:
        span.masks[window] = _mask(span, window)
    mask = span.masks[window]
    key_HLD = keys.index_select(0, slots_L).transpose(0, 1).repeat_interleave(groups, 0)
    value_HLD = values.index_select(0, slots_L).transpose(0, 1).repeat_interleave(groups, 0)
    query_HTD = query_THD[span.begin : span.begin + count].transpose(0, 1)
    return scaled_dot_product_attention(
        query_HTD[None], key_HLD[None], value_HLD[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )[0].transpose(0, 1)


def _mask(span: Span, window: int | None) -> torch.Tensor | None:
    """What each of several tokens may see (count, L); None for the plain triangle."""
    length = len(span.slots_L)
    if span.past == 0 and (window is None or length <= window):
        return None
    places = torch.arange(length, device=span.slots_L.device)
    back = places[span.past :, None] - places[None, :]
    return (back >= 0) & (back < (window or length))


def _decode_padded(
    query_RHD: Any,
    keys: Any,
    values: Any,
    spans: Sequence[Span],
    groups: int,
    *,
    scale: float | None,
    window: int | None,
) -> Any:
    """Attention (R, H, D) of requests with one token each, padded to the longest with the slot that is nobody's.

    What stands there must be numbers: those of another request may not be, and NaN survives a weight of zero.
    """
    slots = [span.slots_L if window is None else span.slots_L[-window:] for span in spans]
    slots_RL = torch.nn.utils.rnn.pad_sequence(slots, batch_first=True, padding_value=len(keys) - 1)
    lengths_R = torch.tensor([len(one) for one in slots], device=slots_RL.device)
    mask_RL = torch.arange(slots_RL.shape[1], device=slots_RL.device) < lengths_R[:, None]
    key_RKLD = keys[slots_RL].transpose(1, 2)
    value_RKLD = values[slots_RL].transpose(1, 2)
    query_RKGD = query_RHD.view(len(spans), key_RKLD.shape[1], groups, -1)
    out = scaled_dot_product_attention(query_RKGD, key_RKLD, value_RKLD, attn_mask=mask_RL[:, None, None], scale=scale)
    return out.reshape(len(spans), query_RHD.shape[1], -1)


class _Probe:
    """Stands for a step in a pass that only looks: shapes of each layer's keys and values, one token each."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


@torch.inference_mode()
def _probe(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    name = type(model).__name__
    probe = _Probe()
    try:
        model.set_attn_implementation(ATTENTION)
        model(
            input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device),
            position_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device),
            use_cache=False,
            logits_to_keep=torch.zeros(1, dtype=torch.long, device=model.device),
            step=probe,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the engine hf cannot batch {name}: {error}: serve it with the engine external") from error
    layers = model.config.get_text_config().num_hidden_layers
    if sorted(probe.shapes) != list(range(layers)):
        raise ConfigError(
            f"the engine hf cannot batch {name}: {len(probe.shapes)} of its {layers} layers attend in the usual way: "
            f"serve it with the engine external"
        )
    return [probe.shapes[layer] for layer in range(layers)]


def _attention(  # noqa: PLR0917 - transformers' signature
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    sliding_window: int | None = None,
    step: Step | _Probe | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer, with tensors (1, heads, T, D)."""
    for name in ("softcap", "s_aux", "position_bias"):
        if more.get(name) is not None:
            raise ValueError(f"its attention uses {name}")
    if step is None:
        raise ValueError(f"{ATTENTION} attention needs a step")
    if isinstance(step, _Probe):
        step.shapes[module.layer_idx] = (key[0, :, 0], value[0, :, 0])
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[-1])), None
    out_THD = step.cache.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        step,
        scale=scaling,
        window=sliding_window,
    )
    return out_THD.unsqueeze(0), None


AttentionInterface.register(ATTENTION, _attention)
