"""When a run has learned enough, and which of its checkpoints is the best: by the held-out losses during training.

Early stopping with patience (Prechelt 1998, "Early Stopping - But When?"): so many measurements in a row without a new
lowest loss end the run. What decides is a value that travels in the checkpoint, so that a resumed run ends at the same
step. Rejected: a least improvement (`min_delta`), since a lower loss on the same rows is lower, and patience is there
for those that are hardly so; and patience in steps, which means nothing between two measurements.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldoutWatch:
    """What a run knows of its held-out losses."""

    lowest: float = math.inf
    """In nats per trained token."""
    lowest_step: int = 0
    """Step after which it was measured; 0 before the first."""
    since: int = 0
    """Measured since then, and none was lower."""

    def saw(self, loss: float, *, step: int) -> "HeldoutWatch":
        """The watch after one more loss; one that is no number is not lower."""
        if loss < self.lowest:
            return HeldoutWatch(lowest=loss, lowest_step=step)
        return replace(self, since=self.since + 1)

    def out_of(self, patience: int) -> bool:
        """Whether the run is to end; never where patience is 0."""
        return 0 < patience <= self.since

    def is_beaten_by(self, loss: float) -> bool:
        """Whether the weights with that loss are the ones to export: there are none better."""
        return not self.lowest_step or loss <= self.lowest
