"""Reaching llmray from outside: what OpenAI's client lacks (`http`), and jobs on a running cluster (`jobs`)."""
