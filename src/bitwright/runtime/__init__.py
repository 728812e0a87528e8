"""Runs models: `load()` gives a model with `encode()` and the Hugging Face forward; `bench` measures its speed."""
