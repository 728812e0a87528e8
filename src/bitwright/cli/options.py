"""Options that several commands share, and what they mean together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bitwright.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

# Copies of names that other layers own: importing those takes torch, and --help must not.
RANGE_NAMES = ("absmax", "min_max", "percentile", "entropy", "mse", "moving_average")
KIND_NAMES = ("similarity", "similarity matrix", "retrieval", "classification")


def data_options(command: F) -> F:
    """--data, --eval, --kind, --metric, --samples, --seed: the texts and the metric that decide."""
    for option in reversed(
        (
            click.option(
                "--data", "data", multiple=True, metavar="SOURCE[:WEIGHT]",
                help="Texts: .txt, .jsonl, .csv, .parquet or a datasets name. Repeat it to mix. "
                "Default: built-in English prose.",
            ),
            click.option(
                "--eval", "evaluation", metavar="PATH",
                help="Labelled data: pairs with scores, texts with labels, or a corpus/queries/qrels directory. "
                "Default: agreement with the float model, without labels.",
            ),
            click.option(
                "--kind", type=click.Choice(KIND_NAMES), metavar="KIND",
                help=f"What --eval holds, if its columns do not say: {', '.join(KIND_NAMES)}.",
            ),
            click.option(
                "--metric", metavar="FILE.py:FUNCTION", help="Your own metric: a function that receives `encode`."
            ),
            click.option(
                "--samples", type=click.IntRange(min=8), default=1000, show_default=True, metavar="N",
                help="Texts for the label-free metric.",
            ),
            click.option(
                "--seed", type=int, metavar="N", help="Seed of every random choice. Default: the recipe's, or 0."
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def scheme_options(command: F) -> F:
    """--recipe, --symmetric, --static, --range, --embeddings: how linears are represented."""
    for option in reversed(
        (
            click.option(
                "--recipe", type=click.Path(path_type=Path, dir_okay=False),
                help="A recipe in YAML. Options given beside it win.",
            ),
            click.option("--symmetric", is_flag=True, help="Symmetric activation codes. Default: asymmetric."),
            click.option(
                "--static", is_flag=True,
                help="One calibrated activation scale per linear. Default: one per token, computed at run time.",
            ),
            click.option(
                "--range", "range_", type=click.Choice(RANGE_NAMES), metavar="NAME",
                help=f"How a static range is chosen: {', '.join(RANGE_NAMES)}. Default: the recipe's, or min_max.",
            ),
            click.option(
                "--embeddings", type=click.Choice(["16bit", "int8"]),
                help="How embedding tables are stored. Only Bitwright reads int8. Default: the recipe's, or 16bit.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def texts_given(evaluation: str | None, kind: str | None, **others: Any) -> Any:
    """`pipeline.Texts` of the data options.

    Raises:
        InputError: --kind without --eval.
    """
    from bitwright.pipeline import Texts

    if kind is not None and evaluation is None:
        raise InputError("--kind says what --eval holds, and there is no --eval")
    return Texts(evaluation=evaluation, kind=kind, **others)


def build_recipe(
    recipe: Path | None, symmetric: bool, static: bool, range_: str | None, embeddings: str | None, seed: int | None,
    **budget: Any,
) -> Any:  # fmt: skip
    """The recipe of the file, if any, with the options laid over it.

    Raises:
        RecipeError: the file cannot be used.
        InputError: a range, and no static scheme that would use it.
    """
    from bitwright.recipe import Recipe, make_recipe, read_recipe

    base = (read_recipe(recipe) if recipe else Recipe()).model_dump()
    scheme = base["scheme"]
    if static or symmetric:
        static, symmetric = static or "_static" in scheme, symmetric or "_symmetric" in scheme
        base["scheme"] = "w8a8" + "_static" * static + "_symmetric" * symmetric
    if range_ and not any("_static" in part["scheme"] for part in (base, *base["rules"])):
        raise InputError("--range chooses static activation scales, and there are none; add --static")
    if embeddings == "int8" and not recipe:
        base["targets"] = [target for target in base["targets"] if target != "transformers"]
    given = {"range": range_, "embeddings": embeddings, "seed": seed}
    base |= {key: value for key, value in given.items() if value is not None}
    base["budget"] |= {key: value for key, value in budget.items() if value is not None}
    return make_recipe(base, where=f"{recipe} with the options given" if recipe else "the options given")
