"""A model directory as files: read without torch, for the engine and for the quantizer alike."""
