"""Find good settings without spending more than was set aside.

`space.py` says what may vary, `ledger.py` holds spent + reserved <= budget on disk, and `search.py` has Ray Tune run
the trials. A trial is anything callable; what is trained in it is somebody else's business.
"""
