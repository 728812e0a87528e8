"""Calibration: the texts, and what a model's linears see of them."""
