"""GGUF, llama.cpp's format of a model in one file: its header, names, config, tokenizer and tensors. No torch."""
