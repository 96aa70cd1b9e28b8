"""Training: one spec in; a model, its checkpoints, its metrics and its cost out.

`base_model` makes a small model from nothing, `trainer` runs the loop on Ray Train, in the `frame` that every kind of
training shares. `loop` is the whole of training on `deepspeed.initialize`, and needs no Ray; around it stand pure pieces:
`template` (which tokens are trained), `packing` (rows into blocks), `cursor` (which block comes when), `schedule`
(learning rate), `meter` (what it cost), `divergence` (whether it went astray); `culprits` finds the row that it came from.
"""
