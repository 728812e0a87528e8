"""What is done with a stranger's directory: it is opened, planned, loaded and run; or quantized; or a part is read."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from bitwright.errors import BitwrightError, NumericsError, printable
from tests.nested import FOLDER

_LONGEST_MESSAGE = 4000  # characters: a message that nobody can read shows a structure
_IDS = [[2, 5, 6, 7, 3], [2, 9, 3], [2, 4, 4, 4, 4, 4, 3]]
_TEXTS = ["A stranger's file.", "", "Ünïcödé 日本語 \u202e\x00 \U0001f4a5 12345"]


def attempt(how: str, directory: Path, rng: Random) -> str:
    """How one input ended: "result", or the name of our error.

    how: a key of `ATTEMPTS`.

    Raises:
        Whatever is not ours; AssertionError: an error whose message a terminal would obey, or nobody would read.
    """
    try:
        ATTEMPTS[how](directory, rng)
    except BitwrightError as error:
        message = str(error)
        assert message == printable(message), f"raw text in {message!r:.300}"
        told = how != "open" or type(error) is not NumericsError
        assert told, f"no file is named in {message!r:.300}"
        assert 0 < len(message) < _LONGEST_MESSAGE, f"a message of {len(message)} characters: {message!r:.300}"
        return type(error).__name__
    return "result"


@cache
def open_seed(directory: Path) -> Any:
    """A good float model, opened once for all recipes."""
    from bitwright.pipeline.opened import open_model

    return open_model(directory)


def _open(directory: Path, rng: Random) -> None:
    from bitwright import load
    from bitwright.files.directory import license_of
    from bitwright.pipeline.opened import open_model
    from bitwright.recipe import Recipe

    if file := next(directory.glob("*.gguf"), None):
        model: Any = load(file, threads=1)
        model.encode(_IDS, batch_size=1)
        if b"tokenizer.ggml.tokens" in file.read_bytes():
            model.encode([text for text in _TEXTS if text], batch_size=2)
        return
    configs = [file for file in (directory / "config.json", directory / FOLDER / "config.json") if file.exists()]
    if configs and b"quantization_config" not in configs[0].read_bytes() and rng.random() < 0.6:
        opened = open_model(directory)
        opened.resolve(Recipe())
        model = opened.runnable()
    else:
        model = load(directory, compute=rng.choice(("auto", "auto", "auto", "float32")), threads=1)
    license_of(directory)
    model.encode(_IDS, batch_size=1)
    model.encode(_TEXTS, batch_size=2)
    if model.task != "text-generation":
        model.encode([(_TEXTS[0], _TEXTS[2])])


def _plan(directory: Path, rng: Random) -> None:
    from bitwright.recipe import read_recipe, recipe_yaml

    recipe = read_recipe(directory / "recipe.yaml")
    recipe_yaml(recipe)
    for name in ("bert", "llama"):
        open_seed(directory.parents[1] / "seeds" / name).resolve(recipe)


def _report(directory: Path, rng: Random) -> None:
    from bitwright.record import read_record
    from bitwright.report import render_report

    render_report(read_record(directory))


def _quantize(directory: Path, rng: Random, *, judged: bool = False) -> None:
    from bitwright import load, quantize
    from bitwright.pipeline import job
    from bitwright.pipeline.reference import Reference

    if rng.random() < _WITHOUT_LIBRARY:  # which takes seconds to be imported in each worker
        job.ask_library = lambda *args, **options: Reference(None)  # the worker ends with this
    out, recipe = directory.with_name(f"{directory.name}-out"), directory / "recipe.yaml"
    quantize(
        directory, out=out, recipe=recipe if recipe.exists() and rng.random() < 0.5 else None,
        judged=judged, samples=40, sensitivity=False, speed=False, overwrite=True,
    )  # fmt: skip
    load(out, threads=1).encode(_IDS, batch_size=1)


_WITHOUT_LIBRARY = 0.95  # of the runs

ATTEMPTS: dict[str, Callable[[Path, Random], None]] = {
    "open": _open, "plan": _plan, "report": _report, "quantize": _quantize, "judge": partial(_quantize, judged=True)
}  # fmt: skip
