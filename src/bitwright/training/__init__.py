"""Training with the float model as teacher: what rounding alone leaves is taken back by gradients."""
