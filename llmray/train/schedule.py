"""Learning rate as a function of the step alone, so that a resumed run has nothing to restore.

Rejected: PyTorch's scheduler objects: their state must be saved, and chained ones drift from the closed form.
"""

import math

from llmray.train.spec import Schedule


def learning_rate(
    step: int, *, peak: float, max_steps: int, warmup_fraction: float, schedule: Schedule, decay_fraction: float = 0.1
) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    It rises linearly to `peak` over the warmup, then falls: by half a cosine to a tenth of the peak, or in a line to
    zero; or stays; or (`wsd`: Hu et al. 2024, "MiniCPM", section 4) stays, and falls to zero over the last
    `decay_fraction` of the steps, by 1 - sqrt (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond
    Fixed Training Durations", section 3).
    """
    warmup = math.ceil(warmup_fraction * max_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    match schedule:
        case "cosine":
            return peak * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * progress)))
        case "linear":
            return peak * (1.0 - progress)
        case "constant":
            return peak
        case "wsd":
            falls_from = max(warmup, max_steps - math.ceil(decay_fraction * max_steps))
            fallen = min(1.0, max(0, step - falls_from) / max(1, max_steps - falls_from))
            return peak * (1.0 - math.sqrt(fallen))
