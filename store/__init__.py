"""The cache of models: from whatever a user calls a model to a file, and its removal."""
