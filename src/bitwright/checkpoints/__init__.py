"""Checkpoints on disk: quantized model directories, written all or nothing and checked before they are believed."""
