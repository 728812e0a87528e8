"""Options that several commands share, and what they mean together."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from bitwright.errors import InputError
from bitwright.families.tasks import TASKS

F = TypeVar("F", bound=Callable[..., Any])

# Copies of names that other layers own: importing those takes torch, and --help must not.
RANGE_NAMES = ("absmax", "min_max", "percentile", "entropy", "mse", "moving_average")
KIND_NAMES = ("similarity", "similarity matrix", "retrieval", "classification")
METHOD_NAMES = (
    "rtn", "rtn_mse", "imatrix", "gptq", "awq", "awq_gptq", "smoothquant", "smoothquant_gptq", "smoothquant_shift",
    "auto",
)  # fmt: skip
TARGET_NAMES = ("bitwright", "transformers", "sentence-transformers", "vllm")
SCHEME_STEMS = ("w8a8", "w8a16", "w4a16", "w4a8", "w3a16", "w2a16", "log4", "nf4", "kmeans4", "ternary", "binary")

_TEXTS = ("data", "evaluation", "kind", "metric", "samples")  # the fields of `pipeline.Texts`


def data_options(command: F) -> F:
    """--data, --eval, --kind, --metric, --samples: the texts and the metric that decide; and --seed.

    The command gets all but the seed as one argument `texts`, as the pipeline's functions take them.
    """

    @wraps(command)
    def with_texts(*args: Any, **options: Any) -> Any:
        texts = {name: options.pop(name) for name in _TEXTS}
        if texts["kind"] is not None and texts["evaluation"] is None:
            raise InputError("--kind says what --eval holds, and there is no --eval")
        return command(*args, texts=texts, **options)

    decorated = cast(F, with_texts)
    for option in reversed(
        (
            click.option(
                "--data", "data", multiple=True, metavar="SOURCE[:WEIGHT]",
                help="Texts: .txt, .jsonl, .csv, .tsv, .parquet or a datasets name; of language models, running text; "
                "of a model that reads pairs, a table with two columns of texts. Repeat it to mix. Name columns as "
                "FILE#COLUMN or FILE#FIRST,SECOND. Default: built-in texts of many kinds; builtin#news is one of them.",
            ),
            click.option(
                "--eval", "evaluation", metavar="PATH",
                help="Labelled data: pairs with scores or labels, texts with labels, or a corpus/queries/qrels "
                "directory; columns of pairs may be named as for --data; for "
                "a language model, plain text, whose perplexity decides. Default: agreement with the float model, "
                "without labels; perplexity on --data.",
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
                help="Texts for the label-free metric; of a language model, windows, 64 at most.",
            ),
            click.option(
                "--seed", type=int, metavar="N", help="Seed of every random choice. Default: the recipe's, or 0."
            ),
        )
    ):  # fmt: skip
        decorated = option(decorated)
    return decorated


def task_option(command: F) -> F:
    """--task: what the model is for, if its files leave it open."""
    return click.option(
        "--task", type=click.Choice(TASKS), metavar="TASK",
        help=f"What the model is for, where its files do not tell or contradict each other: {', '.join(TASKS)}.",
    )(command)  # fmt: skip


def scheme_options(command: F) -> F:
    """--recipe, --scheme, --method, --symmetric, --static, --range, --embeddings, --target: how linears are
    represented, and for which runtimes."""
    for option in reversed(
        (
            click.option(
                "--recipe", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE|NAME",
                help="A recipe in YAML, or one that `bitwright recipes` lists. Options given beside it win.",
            ),
            click.option(
                "--scheme", metavar="NAME",
                help=f"How linears are stored: {', '.join(SCHEME_STEMS)}. Below 8 bits with _g128, _g64, _g32 or "
                "_channel, else a group size that fits, and with _asym for zero points. "
                "Default: the recipe's, or w8a8.",
            ),
            click.option(
                "--method", metavar="NAME",
                help=f"How codes are chosen: {', '.join(METHOD_NAMES)} (decided by measuring the model). "
                "Default: the recipe's, or rtn.",
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
            click.option(
                "--target", "targets", multiple=True, type=click.Choice(TARGET_NAMES), metavar="NAME",
                help=f"A runtime that must load the result: {', '.join(TARGET_NAMES)}. Repeat it for several. "
                "Default: the recipe's, or bitwright, and transformers if it can.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def build_recipe(
    recipe: Path | None, scheme: str | None, symmetric: bool, static: bool, range_: str | None, **fields: Any
) -> Any:
    """The recipe of the file, if any, with the options laid over it.

    Args:
        fields: of a recipe (method, embeddings, targets, seed) or of its budget; None and () where nothing is given.

    Raises:
        RecipeError: the file cannot be used.
        InputError: a range, and no static scheme that would use it; options that contradict one another.
    """
    from bitwright.recipe import Budget, Recipe, make_recipe, read_recipe

    # What nobody set stays so: a goal chooses the scheme where none is named.
    read: Recipe = read_recipe(recipe) if recipe else Recipe()
    base = {"budget": {}} | read.model_dump(exclude_unset=True)
    if static or symmetric:
        asked = scheme or read.scheme
        if scheme is not None or not asked.startswith(("w8a8", "16bit")):
            meant = "w8a8" + "_static" * static + "_symmetric" * symmetric
            raise InputError(
                f"--static and --symmetric choose among the w8a8 schemes, and {asked} is asked for; leave them out, or "
                f"give --scheme {meant}"
            )
        static, symmetric = static or "_static" in read.scheme, symmetric or "_symmetric" in read.scheme
        scheme = "w8a8" + "_static" * static + "_symmetric" * symmetric
    given = {"scheme": scheme, "range": range_} | fields
    for key in [key for key, value in given.items() if value not in (None, ())]:
        (base["budget"] if key in Budget.model_fields else base)[key] = given[key]
    made = make_recipe(base, where=f"{recipe} with the options given" if recipe else "the options given")
    schemes = [made.scheme, *(rule.scheme for rule in made.rules)]
    if range_ and not any("_static" in (scheme or "") for scheme in schemes):
        raise InputError("--range chooses static activation scales, and there are none; add --static")
    return made
