"""The steps that llmray brings, one file a stage, so that each one's cache key covers its own code and no other's."""
