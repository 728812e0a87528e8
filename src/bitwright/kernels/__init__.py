"""Operators: their definition in torch, the native CPU kernels, and the modules that call them."""
