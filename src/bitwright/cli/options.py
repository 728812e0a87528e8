"""Options that several commands share, and what they mean together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def data_options(command: F) -> F:
    """--data, --eval, --kind, --metric: the texts and the metric that decide."""
    for option in reversed(
        (
            click.option(
                "--data", "data", multiple=True, metavar="SOURCE[:WEIGHT]",
                help="Texts: .txt, .jsonl, .csv, .parquet or a datasets name. Repeat it to mix. Default: built-in English prose.",
            ),
            click.option(
                "--eval", "evaluation", metavar="PATH",
                help="Labelled data: pairs with scores, texts with labels, or a corpus/queries/qrels directory. "
                "Default: agreement with the float model, without labels.",
            ),
            click.option("--kind", help="What --eval holds, if its columns do not say: similarity, retrieval, classification …"),
            click.option("--metric", metavar="FILE.py:FUNCTION", help="Your own metric: a function that receives `encode`."),
            click.option("--samples", type=click.IntRange(min=8), default=1000, show_default=True,
                         help="Texts for the label-free metric."),
            click.option("--seed", type=int, default=None, help="Seed of every random choice. Default: the recipe's, or 0."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def scheme_options(command: F) -> F:
    """--recipe, --scheme, --symmetric, --static, --embeddings: how linears are represented."""
    for option in reversed(
        (
            click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False), help="A recipe in YAML."),
            click.option("--symmetric", is_flag=True, help="Symmetric activation codes instead of asymmetric."),
            click.option("--static", is_flag=True, help="One calibrated activation scale per linear instead of one per token."),
            click.option("--range", "range_", help="How a static range is chosen: absmax, min_max, percentile, entropy, mse …"),
            click.option("--embeddings", type=click.Choice(["16bit", "int8"]), help="Embedding tables. int8 only runs here."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def build_recipe(
    recipe: Path | None, symmetric: bool, static: bool, range_: str | None, embeddings: str | None, seed: int | None,
    **budget: Any,
) -> Any:  # fmt: skip
    """The recipe of the file, if any, with the options laid over it."""
    from bitwright.recipe import Recipe, make_recipe, read_recipe

    base = (read_recipe(recipe) if recipe else Recipe()).model_dump()
    if symmetric or static:
        base["scheme"] = "w8a8" + "_static" * static + "_symmetric" * symmetric
    if embeddings == "int8":
        base["targets"] = (
            [target for target in base["targets"] if target != "transformers"] if not recipe else base["targets"]
        )
    for key, value in {"range": range_, "embeddings": embeddings, "seed": seed}.items():
        if value is not None:
            base[key] = value
    base["budget"] |= {key: value for key, value in budget.items() if value is not None}
    return make_recipe(base, where="recipe with the options given")
