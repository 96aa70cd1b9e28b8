"""Limits learned from the rows themselves: median ± k·MAD of log length (Leys et al. 2013).

Rejected: mean ± k·sd, which the outliers themselves push outwards.
"""

import numpy as np
from numpy.typing import NDArray


def robust_limits(lengths: NDArray[np.int64], mads: float) -> tuple[float, float]:
    """Smallest and largest usual length, in characters: median ± `mads` scaled MADs of the logarithm.

    With a MAD of zero, where more than half of the rows have one length, nothing can be called unusual.
    """
    logs = np.log1p(lengths[lengths > 0])
    if not len(logs):
        return -np.inf, np.inf
    middle = float(np.median(logs))
    # 1.4826 makes the MAD of a normal sample estimate its standard deviation.
    scale = 1.4826 * float(np.median(np.abs(logs - middle)))
    if scale == 0:
        return -np.inf, np.inf
    return float(np.expm1(middle - mads * scale)), float(np.expm1(middle + mads * scale))
