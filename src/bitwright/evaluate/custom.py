"""Loads the user's own metric from a file: `--metric path/to/file.py:function`."""

import runpy
from pathlib import Path

from bitwright.errors import BitwrightError, DataError
from bitwright.evaluate.kinds import Custom
from bitwright.evaluate.tasks import Task


def load_custom(spec: str) -> Task:
    """The task of "file.py:function".

    The function receives `encode`, which turns a list of texts into an array of outputs (texts, values), and returns

        one number           the score of the model; no interval can be given for it
        one number per       an array, in the same order for every model; their mean is the score, and the examples are
        example              what the bootstrap resamples and what a split divides

    It is called once for each variant of the model. Higher is better, unless the file sets
    `function.higher_is_better = False`. The file is executed as Python code, with its own directory not on the path.

    Raises:
        DataError: no such file or function, or the file raises when it is executed.
    """
    file, _, name = spec.rpartition(":")
    if not Path(file).is_file():
        raise DataError(f"{spec}: there is no such file; give a metric as path/to/file.py:function")
    try:
        names = runpy.run_path(file)
    except BitwrightError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise DataError(f"{file}: running this file raised {type(error).__name__}: {error}") from error
    function = names.get(name)
    if not callable(function):
        functions = [key for key, value in names.items() if callable(value) and not key.startswith("_")]
        raise DataError(f"{file}: there is no function {name!r}; the file defines {', '.join(functions) or 'none'}")
    better = bool(getattr(function, "higher_is_better", True))
    return Task(name, (), Custom(function, spec, better))
