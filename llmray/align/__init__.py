"""Alignment: people's preferences in, a model that writes more of what they prefer out.

`pairs` turns feedback into preference records (pure); a snapshot keeps them; `dpo` trains on it on Ray Train. `loop` is
TRL's DPO under DeepSpeed on one process of many, `trainable` says which rows can teach something, `spec` what is asked.
"""
