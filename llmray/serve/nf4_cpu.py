"""Linear layers in NF4 on CPUs with bfloat16 instructions: bitsandbytes' kernel for few tokens, a plain product for many.

bitsandbytes 0.50 reads such weights with a kernel made for a token or two, which takes as long for each further token:
for 256 tokens and 2816 x 1024 weights it takes 21 ms, where unpacking the weights to bfloat16 and multiplying takes 4.3.
So prompts are read by unpacking, and decoding calls the kernel straight away, without the six Python calls in between.
The weights stay in bitsandbytes' packed form alone. Rejected: keeping the unpacked order beside it (as much memory again).
"""

import ctypes
from typing import Any

import torch
from bitsandbytes.cextension import lib
from bitsandbytes.functional import _convert_weight_packed_for_cpu, has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch.nn.functional import linear

FEW_TOKENS = 32
"""Up to so many the kernel is faster than unpacking."""

_ROWS = 32
"""Rows that bitsandbytes packs together: the first half of them in low bits, the others in high bits."""


class CpuNf4Linear(Linear4bit):
    """What a `Linear4bit` becomes, by `speed_up`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.weight.quant_state
        rows, columns = state.shape
        given = x.dtype
        x_TI = x.to(torch.bfloat16).reshape(-1, columns)
        if len(x_TI) > FEW_TOKENS:
            out_TO = linear(_paired(x_TI, state.blocksize), self.unpacked())
        else:
            x_TI = x_TI.contiguous()
            out_TO = torch.empty((len(x_TI), rows), dtype=torch.bfloat16)
            _few(
                len(x_TI),
                rows,
                columns,
                x_TI.data_ptr(),
                self.weight.data_ptr(),
                state.absmax.data_ptr(),
                out_TO.data_ptr(),
                state.blocksize,
                columns,
                rows,
            )
        if self.bias is not None:
            out_TO += self.bias
        return out_TO.view(*x.shape[:-1], rows).to(given)

    def unpacked(self) -> torch.Tensor:
        """The weights (rows, columns) in bfloat16, columns in the order of `_paired`.

        A packed byte has codes of two rows, and the kernel wants two columns of one row in it. Any two of a scale's block will
        do: those half a block apart stand alike in two long stretches, which trade halves of their bytes at once.
        """
        state = self.weight.quant_state
        rows, columns = state.shape
        half = state.blocksize // 4
        packed = self.weight.data.view(torch.int16).view(rows // _ROWS, -1, 2, half, _ROWS // 2)
        first, second = packed.unbind(2)
        trade = (second >> 4).bitwise_xor_(first).bitwise_and_(0x0F0F)
        codes = torch.empty((2, *first.shape), dtype=torch.int16)
        torch.bitwise_xor(first, trade, out=codes[1])
        torch.bitwise_xor(second, trade.bitwise_left_shift_(4), out=codes[0])
        codes = codes.permute(1, 0, 4, 2, 3).contiguous()
        scales = state.absmax.t().float().contiguous()
        out = torch.empty((rows, columns), dtype=torch.bfloat16)
        _unpack(codes.data_ptr(), scales.data_ptr(), out.data_ptr(), state.blocksize, rows, columns)
        return out


def _paired(x_TI: torch.Tensor, block: int) -> torch.Tensor:
    """Columns in pairs that are half a block apart."""
    return x_TI.view(len(x_TI), -1, 2, block // 2).transpose(2, 3).reshape(len(x_TI), -1)


def speed_up(model: Any) -> None:
    """Replace the NF4 layers of a model on a CPU, where bitsandbytes has its kernel; elsewhere nothing changes."""
    if not has_avx512bf16():
        return
    for module in model.modules():
        if type(module) is not Linear4bit:
            continue
        state = module.weight.quant_state
        if state.quant_type == "nf4" and state.shape[0] % _ROWS == 0 and state.shape[1] % state.blocksize == 0:
            if not getattr(state, "packing_format_for_cpu", False):
                module.weight.data, module.weight.quant_state = _convert_weight_packed_for_cpu(
                    module.weight.data, state
                )
            if module.bias is not None:
                module.bias.data = module.bias.data.to(torch.bfloat16)
            module.__class__ = CpuNf4Linear


def _kernel(name: str, *types: Any) -> Any:
    function = getattr(lib, name, None)  # a build without the kernel never gets here: `speed_up` does nothing
    if function is not None:
        function.argtypes = types
        function.restype = None
    return function


_int, _at = ctypes.c_int64, ctypes.c_void_p
_few = _kernel("gemv_4bit_inference_cpu_nf4_bf16", _int, _int, _int, _at, _at, _at, _at, _int, _int, _int)
_unpack = _kernel("cdequantize_blockwise_cpu_nf4_bf16", _at, _at, _at, _int, _int, _int)
