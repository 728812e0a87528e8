"""bitwright encode: files of texts to files of vectors."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.command import Choice, Command
from bitwright.cli.options import json_option, model_options, quiet_option, worker_options
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import out, print_json
from bitwright.families.tasks import TaskName

FORMAT_NAMES = ("parquet", "npy")  # a copy of bulk.vectors.FORMATS


@click.command("encode", cls=Command)
@click.argument("model", type=click.Path())
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    metavar="PATH",
    help="Read the texts here: a .parquet, .jsonl, .csv, .tsv or .txt file, or a folder. Repeat it for several.",
)
@click.option(
    "--column",
    metavar="NAME",
    help="Take the texts from this column; PATH#NAME names it for one path. Default: the first that is called text, "
    "sentence, content or the like.",
)
@click.option(
    "--id", "id_column", metavar="NAME", help="Copy the ids in this column. Default: number the texts from 0."
)
@click.option(
    "--out",
    "out_dir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Write the vectors here. If a stopped run has left some here, go on with the others.",
)
@click.option(
    "--format",
    "file_format",
    type=Choice(FORMAT_NAMES),
    default="parquet",
    show_default=True,
    metavar="FORM",
    help="Write parquet files with columns id and vector, or npy arrays.",
)
@click.option("--prompt-name", metavar="NAME", help="Put this prompt of the model's files before each text.")
@click.option("--normalize", is_flag=True, help="Scale vectors to length 1.")
@click.option(
    "--truncate-dim", type=click.IntRange(min=1), metavar="N", help="Keep only the first N values of each vector."
)
@click.option(
    "--dtype",
    type=Choice(("float32", "float16")),
    default="float32",
    show_default=True,
    metavar="TYPE",
    help="Store values as float32 or float16.",
)
@click.option(
    "--file-rows",
    "rows",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    metavar="N",
    help="Put so many vectors into each file.",
)
@worker_options("Use so many processes, each on its share of the processors.")
@model_options
@json_option("the manifest")
@quiet_option
def command(
    model: str, data: tuple[str, ...], column: str | None, id_column: str | None, out_dir: Path, file_format: str,
    prompt_name: str | None, normalize: bool, truncate_dim: int | None, dtype: str, rows: int, workers: int | None,
    ray: str | None, task: TaskName | None, trust_remote_code: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Turn every text of files into a vector.

    \b
      bitwright encode DIR --data corpus.parquet --out vectors

    The vectors are the same bytes whatever the number of workers. A command that
    was stopped goes on where it stopped when it is run again.
    """
    with shown_progress(quiet=quiet) as progress:
        from bitwright.bulk.corpus import Texts
        from bitwright.bulk.encode import How, Where, encode_files

        found = encode_files(
            model, Texts(data, column, id_column), out_dir,
            How(prompt_name, normalize, truncate_dim, dtype, file_format, rows), Where(workers, ray),
            task=task, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(found.manifest)
        return
    files: dict[str, Any] = found.manifest["files"]
    total = sum(facts["rows"] for facts in files.values())
    size = sum(facts["bytes"] for facts in files.values())
    out.print(f"{found.path}: {total} vectors in {len(files)} files, {size / 1e6:.1f} MB", markup=False)
    if found.files < len(files):
        out.print(f"{len(files) - found.files} of the files were there already.", markup=False)
    if found.rows:
        rate = found.rows / found.seconds
        out.print(f"{found.rows} texts in {found.seconds:.0f} s, {rate:.0f} per second", markup=False)
