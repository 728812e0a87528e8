"""Reads the files of a model directory without torch. The engine and the quantizer both use it."""
