"""Quantized linear layers: NF4 as bitsandbytes has it, and int8 that is fast at every batch size on CPUs too.

NF4 (Dettmers et al. 2023, QLoRA) is bitsandbytes', to the bit; only its codes are found faster, and its packing for CPUs,
which bitsandbytes leaves to the first call, is done at once.

Int8 on CPUs is oneDNN's integer product: one scale for each row of weights, and each row of activations as two int8
parts, the second being what the first leaves, so that activations keep some 15 bits. Both parts share one pass over the
weights. So an outlier costs nothing, where LLM.int8() (Dettmers et al. 2022) takes its columns out; and a row's result
does not depend on the rows beside it. Rejected: bitsandbytes' int8 (two to four times slower on CPUs; taken on GPUs, and
on CPUs without VNNI, where integer products saturate), torch's weight-only `_weight_int8pack_mm` (as slow as NF4 from
8 rows on) and its dynamic quantization (one scale for a whole batch: neighbours change an answer).

bitsandbytes takes six seconds to import, most of it torch's compiler, so it is imported where its layers are made.
"""

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

Kind = Literal["nf4", "int8"]
BLOCK = 64
"""Neighbouring weights that share a scale in NF4."""
_LEAST_ROWS = 8
"""For fewer, oneDNN 3.12 takes its reference code for small layers, thirty times slower; zeros beside them cost nothing."""
_QUANTIZE_AT_ONCE = 1 << 18
"""Weights that are float32 at one time: as many as a core's cache holds."""


def quantized(
    weight_NK: torch.Tensor, bias_N: torch.Tensor | None, kind: Kind, dtype: torch.dtype, *, output: bool = False
) -> nn.Linear:
    """A layer with these weights quantized, on their device; computes in `dtype`.

    Args:
        output: whether it makes logits, which oneDNN then gives in float32: bfloat16 makes ties of near ones.

    Raises:
        ValueError: bitsandbytes cannot pack this shape.
    """
    bias_N = None if bias_N is None else nn.Parameter(bias_N.to(dtype), requires_grad=False)
    if kind == "nf4":
        layer: nn.Linear = _nf4_layer(weight_NK, dtype)
    elif integer_products(weight_NK.device):
        layer = Int8Linear(weight_NK, torch.float32 if output else None)
    else:
        import bitsandbytes as bnb

        rows, columns = weight_NK.shape
        layer = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
        half = weight_NK.to("cpu", torch.float16)
        layer.weight = bnb.nn.Int8Params(half, requires_grad=False, has_fp16_weights=False).to(weight_NK.device)
    layer.bias = bias_N
    return layer.eval()


def integer_products(device: torch.device) -> bool:
    """Whether int8 runs on oneDNN here: a CPU whose integer products do not saturate."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


class Int8Linear(nn.Linear):
    """Weights as int8 with a scale for each row, in oneDNN's layout."""

    def __init__(self, weight_NK: torch.Tensor, gives: torch.dtype | None = None) -> None:
        """Quantize.

        Args:
            gives: type of what comes out; that of what goes in by default.
        """
        rows, columns = weight_NK.shape
        super().__init__(columns, rows, bias=False, device="meta")
        self._gives = gives
        scale_N = weight_NK.abs().amax(1).float().clamp(min=1e-12) / 127
        codes_NK = torch.empty(rows, columns, dtype=torch.int8)
        at_once = max(1, _QUANTIZE_AT_ONCE // columns)
        for at in range(0, rows, at_once):
            part = slice(at, at + at_once)
            codes_NK[part] = (weight_NK[part] / scale_N[part, None]).round_()
        packed = torch.ops.onednn.qlinear_prepack(codes_NK, None)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scale_N", scale_N)
        self.register_buffer("zero_N", torch.zeros(rows, dtype=torch.int32))

    @property
    def nbytes(self) -> int:
        """Bytes of the weights; oneDNN does not show its own."""
        return self.in_features * self.out_features + 8 * self.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_MK = x.reshape(-1, x.shape[-1]).float()
        count = len(x_MK)
        step_M1 = x_MK.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        x_MK = x_MK / step_M1
        coarse_MK = x_MK.round()
        codes_RK = torch.zeros(max(2 * count, _LEAST_ROWS), self.in_features, dtype=torch.int8)
        codes_RK[:count] = coarse_MK
        codes_RK[count : 2 * count] = ((x_MK - coarse_MK) * 254).round_()
        y_RN = torch.ops.onednn.qlinear_pointwise(
            codes_RK, 1.0, 0, self.weight, self.scale_N, self.zero_N, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y_MN = torch.add(y_RN[:count], y_RN[count : 2 * count], alpha=1 / 254).mul_(step_M1)
        y = y_MN.to(self._gives or x.dtype).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def nf4_codes(weight_NK: torch.Tensor, dtype: torch.dtype) -> "tuple[torch.Tensor, QuantState]":
    """bitsandbytes' codes and scales. Counting the bounds below a weight is the same as its search, and far faster."""
    from bitsandbytes.functional import QuantState, get_4bit_type

    code = get_4bit_type("nf4", device="cpu")
    bounds = ((code[1:] + code[:-1]) / 2).tolist()
    flat = weight_NK.reshape(-1, BLOCK)
    codes = torch.empty(flat.shape[0], BLOCK // 2, dtype=torch.uint8)
    scales = torch.empty(flat.shape[0])
    at_once = _QUANTIZE_AT_ONCE // BLOCK
    for at in range(0, flat.shape[0], at_once):
        part = flat[at : at + at_once].float()
        scale = part.abs().amax(1)
        part = part * (1.0 / scale.clamp(min=1e-38))[:, None]
        index = torch.zeros(part.shape, dtype=torch.uint8)
        for bound in bounds:
            index += part > bound
        codes[at : at + at_once] = (index[:, ::2] << 4) | index[:, 1::2]
        scales[at : at + at_once] = scale
    state = QuantState(absmax=scales, shape=weight_NK.shape, code=code, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
    return codes.view(-1, 1), state


def _nf4_layer(weight_NK: torch.Tensor, dtype: torch.dtype) -> nn.Linear:
    import bitsandbytes as bnb

    rows, columns = weight_NK.shape
    layer = bnb.nn.Linear4bit(
        columns, rows, bias=False, compute_dtype=dtype, compress_statistics=False, quant_type="nf4", device="meta"
    )
    options = {"requires_grad": False, "quant_type": "nf4", "compress_statistics": False, "blocksize": BLOCK}
    if weight_NK.device.type != "cpu":
        layer.weight = bnb.nn.Params4bit(weight_NK.to(dtype), module=layer, **options).to(weight_NK.device)
        return layer
    if layer.support_avx512bf16_for_cpu and (rows % 32 or columns % BLOCK):
        raise ValueError(f"a layer of {rows} x {columns} does not fit NF4: a multiple of 32 x {BLOCK} does")
    codes, state = nf4_codes(weight_NK, dtype)
    layer.weight = bnb.nn.Params4bit(codes, quant_state=state, bnb_quantized=True, module=layer, **options)
    layer.eval()(torch.zeros(1, columns, dtype=dtype))  # packs it
    return layer
