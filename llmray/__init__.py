"""llmray: the whole life of a language model on Ray."""
