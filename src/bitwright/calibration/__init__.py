"""Calibration: reads texts, and collects statistics of what enters a model's linears."""
