"""The loop: steps with a cache, lineage, spend and resume around the engines, and the lifecycle made of them.

Start with `step.py` (one engine call, wrapped once), then `stages/` (the steps llmray brings), then `lifecycle.py` (an
ordinary Python function that calls them in order).
"""
