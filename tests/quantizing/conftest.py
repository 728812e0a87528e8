"""What the tests of stages share with those of the pipeline."""

from tests.stages import batches, inputs_of, opened, prose, tiny_decoder

__all__ = ["batches", "inputs_of", "opened", "prose", "tiny_decoder"]
