"""TRL's DPO trainer, able to say which pair made a step's loss or gradient no number.

Pairs carry their place in the data through the collator, and the micro-batches of the step at hand are kept. Rejected:
finding a pair again by its tokens, which fails where a prompt has two pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from llmray.align.trainable import up_to_stop
from llmray.train.culprits import blame, embedded, rows_of_batch
from llmray.train.divergence import Blame, Diverged
from llmray.train.packing import Row

PAIR = "pair"
"""Column with a pair's place in the data."""


@dataclass
class Collator(DataCollatorForPreference):
    """TRL's batches, with answers that end at their stop token, and which pairs they hold."""

    stop_token_id: int = 0

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        ended = [
            {
                **example,
                **{name: up_to_stop(example[name], self.stop_token_id) for name in ("chosen_ids", "rejected_ids")},
            }
            for example in examples
        ]
        return {**super().torch_call(ended), PAIR: torch.tensor([example[PAIR] for example in examples])}


class TracedTrainer(DPOTrainer):
    """Remembers the micro-batches of the last step: their pairs, their tensors and their losses."""

    rows: Sequence[Row] = ()
    """The rows that pairs come from, by their place in the data."""
    _step = -1
    _taken: Sequence[tuple[list[int], Mapping[str, torch.Tensor], torch.Tensor]] = ()

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        pairs = inputs.pop(PAIR).tolist()
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self._step != self.state.global_step:
            self._step, self._taken = self.state.global_step, []
        self._taken = [*self._taken, (pairs, inputs, loss)]
        return loss

    def blame(self, verdict: Diverged) -> Blame:
        """Where in the last step it came from; every rank must call it."""
        if verdict.of not in ("loss", "gradient"):
            return rows_of_batch(self._rows_everywhere())
        bad = [
            (pairs, inputs)
            for pairs, inputs, loss in self._taken
            if verdict.of == "gradient" or not math.isfinite(loss)
        ]
        suspects = [(self.rows[pair], _alone(inputs, at)) for pairs, inputs in bad for at, pair in enumerate(pairs)]
        spare = _alone(self._taken[0][1], 0)
        found = blame(suspects, self._are_sound, at_once=1, spare=spare, knows_sound=len(bad) < len(self._taken))
        return found if found.found else rows_of_batch(self._rows_everywhere())

    def _are_sound(self, alone: Sequence[Mapping[str, torch.Tensor]]) -> list[bool]:
        return [self._is_sound(inputs) for inputs in alone]

    def _is_sound(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        self.model.eval()
        with embedded(self.model) as seen:
            loss = self.compute_loss(self.model, self._prepare_inputs(dict(inputs)))
        [gradient] = torch.autograd.grad(loss, seen[:1])
        return bool(loss.isfinite() & gradient.isfinite().all())

    def _rows_everywhere(self) -> list[Row]:
        everywhere: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(
            everywhere, [self.rows[pair] for pairs, _, _ in self._taken for pair in pairs]
        )
        return [row for rows in everywhere for row in rows]


def _alone(inputs: Mapping[str, torch.Tensor], at: int) -> dict[str, torch.Tensor]:
    """One pair of a micro-batch, whose first half are the chosen answers and whose second the rejected ones."""
    half = len(inputs["input_ids"]) // 2
    return {name: values[[at, half + at]] for name, values in inputs.items()}
