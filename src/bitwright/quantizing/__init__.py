"""Quantizes one stage of a model, or all of them."""
