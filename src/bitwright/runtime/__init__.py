"""Running models: `load()` for a model with the Hugging Face forward and `encode()`, and measuring how fast it is."""
