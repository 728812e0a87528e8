"""From a model directory to a proven result."""

from bitwright.pipeline.job import Texts
from bitwright.pipeline.run import Result, analyze, bench, preview, quantize

__all__ = ["Result", "Texts", "analyze", "bench", "preview", "quantize"]
