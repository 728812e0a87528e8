"""One stage of a model, and all of them, quantized."""
