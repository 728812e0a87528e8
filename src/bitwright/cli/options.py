"""Options that several commands share, and what they mean together."""

import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from bitwright.cli.command import Choice, completes
from bitwright.cli.terminal import fraction
from bitwright.errors import InputError
from bitwright.families.tasks import TASKS

F = TypeVar("F", bound=Callable[..., Any])

# Copies of names that other layers own: importing those takes torch, and --help must not.
RANGE_NAMES = ("absmax", "min_max", "percentile", "entropy", "mse", "moving_average")
KIND_NAMES = ("similarity", "similarity matrix", "retrieval", "classification")
METHOD_NAMES = (
    "rtn", "rtn_mse", "imatrix", "gptq", "awq", "awq_gptq", "smoothquant", "smoothquant_gptq", "smoothquant_shift",
    "reproduce", "auto",
)  # fmt: skip
TARGET_NAMES = (
    "bitwright", "engine", "transformers", "sentence-transformers", "vllm", "onnx", "openvino", "gptq", "awq", "bitnet",
    "gguf",
)  # fmt: skip
SCHEME_STEMS = (
    "w8a8",
    "w8a16",
    "w4a16",
    "w4a8",
    "w3a16",
    "w3a8",
    "w2a16",
    "w2a8",
    "log4",
    "nf4",
    "kmeans4",
    "ternary",
    "ternary_a8",
    "binary",
)

CACHE_NAMES = ("int8", "int4", "bf16")

_TEXTS = ("data", "evaluation", "kind", "metric", "samples")  # the fields of `pipeline.Texts`
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")  # fields of `generate.Sampling`


def data_options(command: F) -> F:
    """--data, --eval, --kind, --metric, --samples: the texts and the metric that decide; and --seed.

    The command gets all but the seed as one argument `texts`, as the pipeline's functions take them.
    """

    @wraps(command)
    def with_texts(*args: Any, **options: Any) -> Any:
        texts = {name: options.pop(name) for name in _TEXTS}
        if texts["kind"] is not None and texts["evaluation"] is None:
            raise InputError(
                "--kind says what the file of --eval holds, and there is no --eval; add it, or leave out --kind"
            )
        return command(*args, texts=texts, **options)

    return _decorated(
        cast(F, with_texts),
        click.option(
            "--data", "data", multiple=True, metavar="FILE[:WEIGHT]",
            help="Use texts without labels: a .txt, .jsonl, .csv, .tsv or .parquet file, or a dataset of the "
            "Hugging Face hub. FILE#COLUMN names a column, FILE#FIRST,SECOND two for a model that reads pairs. "
            "Repeat it to mix. Default: built-in texts of many kinds; builtin#news is one of them.",
        ),
        click.option(
            "--eval", "evaluation", metavar="PATH",
            help="Measure the loss on labelled data: pairs with scores or labels, texts with labels, or a directory "
            "with corpus, queries and qrels; for a language model, plain text. Default: no labels; compare the outputs "
            "with those of the original.",
        ),
        click.option(
            "--kind", type=Choice(KIND_NAMES), metavar="KIND",
            help=f"Say what --eval holds, where its columns do not: {', '.join(KIND_NAMES)}.",
        ),
        click.option(
            "--metric", metavar="FILE.py:NAME",
            help="Score the model by your own function. It gets `encode`.",
        ),
        click.option(
            "--samples", type=click.IntRange(min=8), default=1000, show_default=True, metavar="N",
            help="Measure the loss on this many texts, where there are no labels. For a language model: windows of "
            "text, at most 64.",
        ),
        click.option("--seed", type=int, metavar="N", help="Start random choices from this number. Default: 0."),
    )  # fmt: skip


def model_options(command: F) -> F:
    """--task, --trust-remote-code: how the files of a model are read."""
    return _decorated(
        command,
        click.option(
            "--task", type=Choice(TASKS), metavar="TASK",
            help=f"Say what the model is for, where its files do not: {', '.join(TASKS)}.",
        ),
        click.option(
            "--trust-remote-code", is_flag=True, help="Run Python code that comes with the model."
        ),
    )  # fmt: skip


def sampling_options(command: F) -> F:
    """--max-tokens, --temperature, --top-k, --top-p, --min-p, --seed, --stop: how tokens are chosen, and when to end.

    The command gets those that were given as one argument `asked`, as `model.generate` takes them.
    """

    @wraps(command)
    def with_sampling(*args: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _SAMPLING}
        return command(
            *args, asked={name: value for name, value in given.items() if value not in (None, ())}, **options
        )

    return _decorated(
        cast(F, with_sampling),
        click.option(
            "--max-tokens", type=click.IntRange(min=1), metavar="N",
            help="End an answer after this many tokens. Default: what the model's files say, or 256 (1024 in a chat).",
        ),
        click.option(
            "--temperature", type=click.FloatRange(min=0), metavar="T",
            help="Draw each token at random: below 1 the likely ones more often, above 1 less. 0 always takes the "
            "likeliest. Default: what the model's files say, or 0.",
        ),
        click.option(
            "--top-k", type=click.IntRange(min=0), metavar="K",
            help="Draw among the K likeliest tokens; 0 for all. Default: 50 where tokens are drawn.",
        ),
        click.option(
            "--top-p", type=click.FloatRange(min=0, max=1, min_open=True), metavar="P",
            help="Draw among the likeliest tokens that have probability P together.",
        ),
        click.option(
            "--min-p", type=click.FloatRange(min=0, max=1), metavar="P",
            help="Draw among the tokens that are at least P times as likely as the likeliest.",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0, max=2**64 - 1), metavar="N",
            help="Draw the same tokens each time, those of this number. Default: others each time.",
        ),
        click.option(
            "--stop", multiple=True, metavar="TEXT", help="End an answer before this text. Repeat it for several.",
        ),
    )  # fmt: skip


def max_loss_option(command: F) -> F:
    """--max-loss: the budget."""
    return click.option(
        "--max-loss", type=fraction, metavar="PERCENT", help="Allow this loss against the original. Default: 1%."
    )(command)


def result_options(command: F) -> F:
    """--overwrite, --speed: how a result is written, and whether it is timed."""
    return _decorated(
        command,
        click.option("--overwrite", is_flag=True, help="Replace an earlier result in DIR."),
        click.option("--speed/--no-speed", default=True, help="Do not time the result."),
    )


def worker_options(workers: str, ray: str = "") -> Callable[[F], F]:
    """--workers, --ray: where work is done. workers: what so many of them do. ray: more of that option."""
    return lambda command: _decorated(
        command,
        click.option(
            "--workers", type=click.IntRange(min=1), metavar="N",
            help=f"{workers} Default: one for each processor.",
        ),
        click.option(
            "--ray", metavar="ADDRESS",
            help=f"Use the workers of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local.{ray}",
        ),
    )  # fmt: skip


def engine_options(command: F) -> F:
    """--threads, --kv-cache: how the engine runs a language model."""
    return _decorated(
        command,
        click.option(
            "--threads", type=click.IntRange(min=1), metavar="N",
            help="Use this many threads. Default: OMP_NUM_THREADS, or one for each processor.",
        ),
        cache_option,
    )  # fmt: skip


def cache_option(command: F) -> F:
    """--kv-cache: how the engine holds keys and values of a language model."""
    return click.option(
        "--kv-cache", type=Choice(CACHE_NAMES), metavar="FORM",
        help="Store the keys and values of earlier tokens as int8, int4 (half of that for long texts, less exact) "
        "or bf16. Default: int8.",
    )(command)  # fmt: skip


def quiet_option(command: F) -> F:
    """--quiet: no progress."""
    return click.option("--quiet", "-q", is_flag=True, help="Show no progress, only the result and warnings.")(command)


def json_option(what: str) -> Callable[[F], F]:
    """--json: `what` is printed as JSON."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def scheme_options(command: F) -> F:
    """--recipe, --scheme, --method, --symmetric, --static, --range, --embeddings, --attention, --polish, --target: how
    linears are represented, how attention is computed, whether scales are trained, and for which runtimes."""
    return _decorated(
        command,
        click.option(
            "--recipe", type=click.Path(path_type=Path, dir_okay=False), metavar="NAME|FILE",
            help="Take the settings of a recipe: a name that `bitwright recipes` lists, or a YAML file. Other options "
            "win over it.",
        ),
        click.option(
            "--scheme", metavar="NAME", shell_complete=completes(SCHEME_STEMS),
            help="Store weights in this form. Default: w8a8, 8-bit weights and activations. Others: "
            f"{', '.join(SCHEME_STEMS[1:])}. Below 8 bits, _g128, _g64, _g32 or _channel sets the group size and "
            "_asym adds zero points: w4a16_g64_asym.",
        ),
        click.option(
            "--method", metavar="NAME", shell_complete=completes(METHOD_NAMES),
            help="Round weights by this method. Default: rtn, to nearest. Others: "
            f"{', '.join(METHOD_NAMES[1:-1])}; or auto, which decides by tests.",
        ),
        click.option(
            "--symmetric", is_flag=True, help="Quantize activations without zero points."
        ),
        click.option(
            "--static", is_flag=True,
            help="Fix the scales of activations by calibration. Default: a scale for each token, at run time.",
        ),
        click.option(
            "--range", "range_", type=Choice(RANGE_NAMES), metavar="NAME",
            help=f"With --static, choose the range in this way: {', '.join(RANGE_NAMES)}. Default: min_max.",
        ),
        click.option(
            "--embeddings", type=Choice(("16bit", "int8")), metavar="FORM",
            help="Store embedding tables as 16bit or int8, which only Bitwright reads. Default: 16bit.",
        ),
        click.option(
            "--attention", type=Choice(("auto", "int8", "float")), metavar="FORM",
            help="Compute an encoder's attention in int8 or in float, on Bitwright's engine; other runtimes use float. "
            "Default: auto, which is int8 where that costs next to nothing.",
        ),
        click.option(
            "--polish/--no-polish", default=None,
            help="Train scales and norms after rounding, with the original as teacher. Codes, kernels and format stay "
            "as they are. Takes minutes.",
        ),
        click.option(
            "--target", "targets", multiple=True, type=Choice(TARGET_NAMES), metavar="NAME",
            help=f"Make a result for this runtime: {', '.join(TARGET_NAMES)}. Repeat it for several. "
            "Default: bitwright, and transformers if possible.",
        ),
    )  # fmt: skip


def _decorated(command: F, *options: Callable[[F], F]) -> F:
    """The command with these options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def this_command() -> str:
    """The command line as it was given."""
    return shlex.join(["bitwright", *sys.argv[1:]])


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
