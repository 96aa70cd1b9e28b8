"""Is the traffic still what the model was made for?

`features.py` turns a message into a vector and its strangeness into one number; `detector.py` turns a sequence of such
numbers into quiet or alarm, with a stated rate of false alarms; `reference.py` says what usual traffic is. `replica.py`
is all of it behind Serve, off the request path.
"""
