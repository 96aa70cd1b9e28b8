"""Alignment: people's preferences in, a model that writes more of what they prefer out.

`pairs` turns feedback into preference records (pure); a snapshot keeps them; `dpo` trains on it on Ray Train. `loop` is
TRL's DPO under DeepSpeed on one process of many, watched by `recorder`; `traced` knows which pair a step came from,
`trainable` which rows can teach something, `spec` what is asked.
"""
