"""Model FLOPs, the peak of a device, and the share of it that a run uses (MFU).

Model FLOPs are those that the model asks for, whatever an implementation does: recomputed activations do not count
(Chowdhery et al. 2022, "PaLM", appendix B). A weight costs a multiplication and an addition in the forward pass, two of
each in the backward pass (Kaplan et al. 2020; Hoffmann et al. 2022, "Chinchilla", appendix F), so 6 FLOPs a token; a
frozen one has no gradient of its own, so 4. Attention adds 12 · layers · width · length, with no discount for causality
or for walls between packed documents, as PaLM counts it. Tokens that are padding are no use: hand over the others.
"""

from llmray.train.model_run import ModelRun
from llmray.train.shape import Shape

# Dense FLOP/s in bfloat16 with float32 accumulation (float16 where a card has no bfloat16), by what CUDA calls the card.
# From NVIDIA's data sheets; where those give the figure with sparsity, half of it. The longest name that occurs wins.
_PEAK_TFLOPS = {
    "B200": 2250.0,  # HGX B200 data sheet: 36 PFLOPS sparse for eight
    "GH200": 989.5,  # GH200 data sheet: 1,979 sparse
    "H200": 989.5,  # H200 SXM data sheet: 1,979 sparse
    "H200 NVL": 835.5,  # H200 NVL data sheet: 1,671 sparse
    "H100": 989.5,  # H100 SXM5 data sheet: 1,979 sparse; CUDA says "H100 80GB HBM3"
    "H100 NVL": 835.5,  # H100 NVL data sheet: 1,671 sparse
    "H100 PCIe": 756.5,  # H100 PCIe data sheet: 1,513 sparse
    "A100": 312.0,  # A100 data sheet, SXM and PCIe alike
    "A40": 149.7,  # A40 data sheet
    "A30": 165.0,  # A30 data sheet
    "A10": 125.0,  # A10 data sheet
    "A10G": 70.0,  # A10G data sheet (AWS)
    "L40S": 362.05,  # L40S data sheet
    "L40": 181.05,  # L40 data sheet
    "L4": 121.0,  # L4 data sheet: 242 sparse
    "T4": 65.0,  # T4 data sheet, float16
    "V100": 125.0,  # V100 data sheet, SXM2, float16
    "V100 PCIe": 112.0,  # V100 data sheet, float16
    "RTX A6000": 154.8,  # GA102 white paper, table of professional cards: 309.7 sparse
    "RTX 3090": 71.0,  # GA102 white paper, with float32 accumulation
    "RTX 4090": 165.2,  # Ada white paper, with float32 accumulation
    "RTX 5090": 209.5,  # RTX Blackwell white paper, with float32 accumulation
}
_OTHER = {"LAPTOP", "MIG", "D"}
"""Words that make it another card than the one it is named after, or a part of it."""


def flops_per_token(shape: Shape, spec: ModelRun) -> float:
    """Model FLOPs of one token's forward and backward pass in a block of `spec.max_length` tokens."""
    attention = 12.0 * shape.layers * shape.attention * spec.max_length
    if spec.method == "full":
        return 6.0 * shape.multiplied + attention
    return 4.0 * shape.multiplied + 6.0 * shape.adapters(spec) + attention


def peak_flops_per_s(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device as `torch.cuda.get_device_name` calls it; None for a CPU or an unknown card."""
    words = device_name.upper().replace("-", " ").split()
    known = [name for name in _PEAK_TFLOPS if _occurs(name.upper().split(), words) and _OTHER.isdisjoint(words)]
    return 1e12 * _PEAK_TFLOPS[max(known, key=len)] if known else None


def mfu(tokens_per_s: float, flops_per_token: float, peak_flops_per_s: float) -> float:
    """Share of a device's peak that goes into model FLOPs.

    Args:
        tokens_per_s: non-padding tokens that the device trains on a second.
    """
    return tokens_per_s * flops_per_token / peak_flops_per_s


def _occurs(name: list[str], words: list[str]) -> bool:
    """Whether the words of a name stand in a device's name, in a row: A10 does not occur in A100."""
    return any(words[at : at + len(name)] == name for at in range(len(words)))
