"""How good is a model, and is it good enough to take over?

A task (`tasks.py`) turns a row into requests and their log-likelihoods into a value. `scoring.py` computes the
log-likelihoods with torch, `evaluate.py` spreads them over Ray and writes one value per item. `stats.py` is the
statistics, and `gate.py` decides: promote, or hold and say why. The gate compares two models item by item, never two
averages.
"""
