"""From a model directory to a proven result."""

from bitwright.pipeline.request import Texts, TrainingAsked
from bitwright.pipeline.run import Result, quantize
from bitwright.pipeline.study import analyze, bench, preview

__all__ = ["Result", "Texts", "TrainingAsked", "analyze", "bench", "preview", "quantize"]
