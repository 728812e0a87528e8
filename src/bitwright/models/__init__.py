"""Loads and checks models with transformers, and finds their linears."""
