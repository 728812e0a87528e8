"""Training: from the linears that a method rounded to better ones.

With a Trainer of your own: `prepare`, one callback (`delayed`), `convert`, `write_trained`. `bitwright train` does all
of it.
"""

from bitwright.training.callback import delayed
from bitwright.training.prepare import convert, prepare
from bitwright.training.write import write_trained

__all__ = ["convert", "delayed", "prepare", "write_trained"]
