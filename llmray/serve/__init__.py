"""Answering: an OpenAI-compatible gateway, engines that own the weights, and a canary that nobody notices.

A request enters `gateway` (routes) through `intake`, is read by `protocol`, planned by `planning`, opened by `core` and
becomes a `reply` of one `answer` or several, which leaves in one of the `shapes`. The gateway process holds no weights;
each model is a Serve application of its own behind an `engine`, so a rollout (`rollout`, pure; `control`, the shell)
only moves weights between applications. What is remembered goes through `ports`, off the request path.
"""
