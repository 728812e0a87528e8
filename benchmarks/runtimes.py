"""docs/runtimes.md: which runtimes gave the right outputs for which format and scheme, from the records of results.

    python benchmarks/runtimes.py            write the page from benchmarks/runtimes.json
    python benchmarks/runtimes.py DIR …      take these results into that file first
    python benchmarks/runtimes.py --small    make small results of random models, and take those: minutes

A row says what a result's record says under `verify`. Beside it stand the runtimes that run Bitwright's linears or
engine inside another library; they are checked here, in a process of their own.

One file although a little long: the cases, what is checked of each, and the page that shows it are read together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

RECORDS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "runtimes.md"


class Small(NamedTuple):
    """A small model to quantize. targets: by default those of a recipe that names none."""

    family: str
    task: str
    scheme: str
    method: str = "rtn"
    targets: tuple[str, ...] | None = None


# Models that have every kind of linear.
SMALL = tuple(Small(*case) for case in (
    ("bert", "embedding", "w8a8", "rtn"),
    ("bert", "embedding", "w8a8_symmetric", "rtn"),
    ("bert", "embedding", "w8a8", "smoothquant"),
    ("bert", "embedding", "w4a16_g32", "rtn"),
    ("bert", "embedding", "nf4_g32", "rtn"),
    ("bert", "sequence-classification", "w8a8", "rtn"),
    ("modernbert", "embedding", "w8a8", "rtn"),
    ("qwen3", "embedding", "w4a16_g32", "rtn"),
    ("llama", "text-generation", "w8a8", "rtn"),
    ("llama", "text-generation", "w4a16_g32", "rtn"),
    ("qwen3", "text-generation", "w4a16_g32_asym", "rtn"),
    ("mixtral", "text-generation", "w4a16_g32", "rtn"),
    ("bert", "embedding", "w8a8_static", "rtn", ("bitwright", "onnx", "openvino")),
    ("bert", "embedding", "w8a16", "rtn", ("bitwright", "onnx")),
    ("roberta", "sequence-classification", "w8a8_static", "rtn", ("bitwright", "onnx", "openvino")),
))  # fmt: skip
# What is converted, and into which formats: all that hold its scheme.
CONVERTED = tuple((Small(*case), formats) for case, formats in (
    (("llama", "text-generation", "w4a16_g32"), ("gptq", "awq", "gguf")),
    (("qwen3", "text-generation", "w4a16_channel"), ("gptq", "awq")),  # in GGUF the engine would round inputs by 32
    (("qwen3", "text-generation", "w4a16_g32"), ("gguf",)),
    (("llama", "text-generation", "w4a16_g32_asym"), ("gptq", "awq")),
    (("bert", "embedding", "w3a16_g32"), ("gptq",)),
))  # fmt: skip
_WIDE = {"hidden_size": 64, "intermediate_size": 96}

# Runtime -> how the page heads its column, and what is compared.
RUNTIMES = {
    "bitwright": ("Bitwright", "`bitwright.load`; integer kernels are counted"),
    "transformers": ("transformers", "alone; unpacks the weights while it loads"),
    "transformers, enabled": ("with `enable()`", "transformers after `bitwright.integrations.transformers.enable()`"),
    "sentence-transformers": ("sentence-transformers", "alone; as transformers"),
    "sentence-transformers, ours": ("with `load()`", "`bitwright.integrations.sentence_transformers.load`"),
    "onnx": ("ONNX Runtime", "the graph of `bitwright export`; integer kernels are counted"),
    "openvino": ("OpenVINO", "the same graph"),
    "verify": (
        "`bitwright verify`",
        "transformers with what the gguf package unpacks; of GPTQ and AutoAWQ with what gptqmodel unpacks, or the "
        "format's formula where that is not installed",
    ),
    "llama.cpp": ("llama.cpp", 'logits beside those of `bitwright.load(compute="bf16")`'),
}
_INSIDE = {"transformers, enabled": "transformers", "sentence-transformers, ours": "sentence-transformers"}
_PACKAGES = {"onnx": "onnxruntime", "llama.cpp": "llama_cpp_python"}  # where a runtime is called otherwise
_LLAMA_CPP = 0.1  # of the spread of the logits: it rounds inputs of codes to 8 bits, and others to 16
_ALLOWED = 1e-4  # of the largest output: the same kernels around other float sums, as `runtime.tolerances.FLOAT_SUMS`
TEXTS = ["Slicing a list makes a new one.", "how do I copy a list?", "The sky is blue today, and the sea is not."]


class Row(NamedTuple):
    """What one runtime did with one result. ok: None if it was not tried. detail: why."""

    format: str
    scheme: str
    model: str
    runtime: str
    ok: bool | None
    detail: str
    release: str


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="directories that `bitwright quantize` wrote")
    parser.add_argument("--small", action="store_true", help="make small results, and start the records anew")
    parser.add_argument("--inside", metavar="RUNTIME", choices=_INSIDE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(_inside(options.inside, options.results[0])))
        return
    rows = [] if options.small else saved_rows()
    with tempfile.TemporaryDirectory() as folder:
        for directory in [*options.results, *(small_results(Path(folder)) if options.small else ())]:
            found = list(rows_of(directory))
            places = {row[:4] for row in found}
            rows = [row for row in rows if row[:4] not in places] + found
            told(found)
        for found in converted_rows(Path(folder)) if options.small else ():
            rows += found
            told(found)
    RECORDS.write_text(json.dumps([row._asdict() for row in sorted(rows)], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")


def told(rows: Iterable[Row]) -> None:
    """Say what was found."""
    print(*(f"{row.model} {row.scheme} {row.runtime}: {row.ok} ({row.detail})" for row in rows), sep="\n")


def saved_rows() -> list[Row]:
    """The rows of the file."""
    return [Row(**row) for row in json.loads(RECORDS.read_text(encoding="utf-8"))]


def small_results(folder: Path, small: Iterable[Small] = SMALL) -> Iterator[Path]:
    """A result of each of these models."""
    for i, case in enumerate(small):
        yield _result(folder / f"{i}-{case.family}", case)


def _result(folder: Path, case: Small, *, gguf_tokens: bool = False, judged: bool = True) -> Path:
    from bitwright.pipeline import quantize
    from bitwright.recipe import make_recipe

    sys.path.insert(0, str(PAGE.parents[1]))
    from tests.families import DECODERS, write_model
    from tests.gguf_files import give_tokens

    # Of GGUF files transformers reads no Qwen3 whose heads have another size than all published ones.
    head = 128 if (case.family, gguf_tokens) == ("qwen3", True) else 16
    wide = _WIDE | {"head_dim": head, "moe_intermediate_size": 32} if case.family in DECODERS else _WIDE
    write_model(folder / "source", case.family, case.task, TEXTS, **wide)
    if gguf_tokens:
        give_tokens(folder / "source", TEXTS)
    asked = {"scheme": case.scheme, "method": case.method, "budget": {"max_loss": 0.9}}
    recipe = make_recipe(asked | ({} if case.targets is None else {"targets": list(case.targets)}))
    quantize(folder / "source", out=folder / "result", recipe=recipe, samples=60, speed=False, judged=judged)
    return folder / "result"


def converted_rows(folder: Path) -> Iterator[list[Row]]:
    """What runtimes do with results in other formats, beside what `bitwright.load` does with the result."""
    from bitwright.checkpoints.convert import convert
    from bitwright.checkpoints.gguf_write import write_gguf
    from bitwright.files.directory import ModelDirectory

    for i, (case, formats) in enumerate(CONVERTED):
        result = _result(folder / f"c{i}", case, gguf_tokens="gguf" in formats, judged=False)
        for to in formats:
            out = folder / f"c{i}" / (f"{to}.gguf" if to == "gguf" else to)
            write_gguf(ModelDirectory(result), out) if to == "gguf" else convert(ModelDirectory(result), to, out)
            model = f"{case.family}, {case.task}"
            found: dict[str, tuple[bool | None, str]] = {"bitwright": _as_the_result(out, result)}
            found["verify"] = _verified(out, to, result)
            if to == "gguf":
                found["llama.cpp"] = _in_llama_cpp(out)
            yield [Row(to, case.scheme, model, name, *row, _release(name)) for name, row in found.items()]


def _as_the_result(converted: Path, result: Path) -> tuple[bool, str]:
    import numpy as np

    import bitwright

    texts = bitwright.load(result).tokenize(TEXTS)
    one, other = (list(bitwright.load(path, threads=1).run([_tokens(texts)])) for path in (result, converted))
    same = all(
        np.array_equal(a, b) for ours, theirs in zip(one, other, strict=True) for a, b in zip(ours, theirs, strict=True)
    )
    return same, "the same bits as the result" if same else "other outputs than the result"


def _verified(converted: Path, to: str, result: Path) -> tuple[bool | None, str]:
    """As `bitwright verify RESULT --target TO --export CONVERTED`."""
    from bitwright.files.directory import ModelDirectory
    from bitwright.runtime.expected import expect
    from bitwright.runtime.verify_library import Given, check_library, missing

    if why := missing(to):
        return None, why
    expected = expect(ModelDirectory(result))
    found = check_library(converted, to, Given(expected.ids_BT, expected.plain_BV, expected.engine_BV))
    return found.ok, found.detail


def _tokens(texts: list[list[int]]) -> Any:
    from bitwright.runtime.items import Tokens

    return Tokens(texts)


def _in_llama_cpp(file: Path) -> tuple[bool | None, str]:
    import numpy as np
    import torch

    import bitwright

    if find_spec("llama_cpp") is None:
        return None, "not tried: llama_cpp is not installed"
    import llama_cpp

    theirs = llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    ours: Any = bitwright.load(file, compute="bf16", kv_cache="bf16", threads=1)
    (ids,) = ours.tokenize(TEXTS[:1])
    if theirs.tokenize(TEXTS[0].encode(), add_bos=True) != ids:
        return False, "other tokens"
    theirs.eval(ids)
    want, found = np.array(theirs.scores[: len(ids)]), ours.logits(torch.tensor([ids]))[0].numpy()
    spread = np.linalg.norm(want - want.mean(axis=1, keepdims=True), axis=1)
    apart = float((np.linalg.norm(found - want, axis=1) / spread).max())
    return apart < _LLAMA_CPP, f"the same tokens; logits differ by {apart:.1g} of their spread"


def rows_of(directory: Path) -> Iterator[Row]:
    """What the record of a result says, and what the libraries with Bitwright inside do."""
    from bitwright.files.directory import ModelDirectory
    from bitwright.files.task import find_task
    from bitwright.record import read_record

    record, opened = read_record(directory), ModelDirectory(directory)
    said = opened.config["quantization_config"]
    kinds = {group.get("format", said["format"]) for group in said["config_groups"].values()}
    schemes = Counter(str(row.scheme) for row in record.layers if row.scheme != "16bit")
    names = [scheme for scheme, _ in schemes.most_common()]
    task = find_task(opened)
    where = f"{said['quant_method']}, {' and '.join(sorted(kinds))}", " and ".join(names)
    model = f"{opened.config['model_type']}, {task}"
    found = {row.target: (row.ok, row.detail) for row in record.verify or ()}
    for runtime, library in _INSIDE.items():
        if library == "transformers" or task in ("embedding", "sequence-classification"):
            found[runtime] = _in_a_process(runtime, directory)
    for runtime, (ok, detail) in found.items():
        yield Row(*where, model, runtime, ok, detail, _release(_INSIDE.get(runtime, runtime)))


def _release(runtime: str) -> str:
    package = _PACKAGES.get(runtime, runtime)
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _in_a_process(runtime: str, directory: Path) -> tuple[bool | None, str]:
    command = [sys.executable, __file__, "--inside", runtime, str(directory)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]
    ok, detail = json.loads(done.stdout.strip().splitlines()[-1])
    return ok, detail


def _inside(runtime: str, directory: Path) -> tuple[bool, str]:
    """Whether a library with Bitwright inside gives the outputs that Bitwright gives."""
    import numpy as np

    import bitwright

    model: Any = bitwright.load(directory, compute="float32" if runtime == "transformers, enabled" else "auto")
    ids = model.tokenize(TEXTS)
    if runtime == "transformers, enabled":
        found, wanted, kernels = _of_transformers(directory, model, ids)
        told = f"; {kernels} linears of ours in it"
    else:
        from bitwright.integrations.sentence_transformers import load

        inside = load(directory)
        pairs = [(TEXTS[0], text) for text in TEXTS]
        ours = model.encode(TEXTS) if model.task == "embedding" else model.predict(pairs)
        theirs = inside.encode(TEXTS) if model.task == "embedding" else inside.predict(pairs)
        found, wanted, told = [theirs], [ours], f"; {model.backend}"
    apart = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, wanted, strict=True))
    return bool(apart <= _ALLOWED), f"its outputs differ by {apart:.1g} from those of bitwright.load{told}"


def _of_transformers(directory: Path, model: Any, ids: list[list[int]]) -> tuple[list[Any], list[Any], int]:
    """Outputs of transformers for each sequence, those of our generic path, and the number of our linears."""
    import torch
    import transformers

    from bitwright.integrations.transformers import enable
    from bitwright.kernels.linear import HalfLinear, QuantLinear
    from bitwright.runtime.swap import swap_one

    if not enable():
        raise SystemExit("this release of transformers is not known")
    name = transformers.AutoConfig.from_pretrained(directory).architectures[0]
    loaded: Any = getattr(transformers, name).from_pretrained(directory)
    kernels = sum(isinstance(module, QuantLinear) for module in loaded.modules())
    if kernels == 0:
        raise SystemExit("transformers loaded it without Bitwright's linears")

    ours = model.generic.hf
    for name, half in [(n, module) for n, module in ours.named_modules() if isinstance(module, HalfLinear)]:
        linear = torch.nn.Linear(half.in_features, half.out_features)  # as transformers computes it: in float32
        linear.weight = torch.nn.Parameter(half.weight.float())
        linear.register_parameter("bias", None if half.bias is None else torch.nn.Parameter(half.bias.float()))
        swap_one(ours, name, linear)

    def outputs(hf: Any) -> list[Any]:
        with torch.inference_mode():
            return [hf(input_ids=torch.tensor([row]))[0].numpy() for row in ids]

    return outputs(loaded), outputs(ours), kernels


HEAD = """# Runtimes

You get a table of results, and of the runtimes that gave the right outputs for them.

Small models with random weights were quantized, and each result was run in each runtime.
*yes* means that the outputs are right: those of the model in memory from which the files were written, within the
rounding of float sums. *no* comes with the reason, below the table. A dash means that it was not tried: the runtime has
no words for the format, no class for the task, or was not asked for.
Rows of `gptq`, `awq` and `gguf` are results that `bitwright convert` wrote in that format.

A result of yours is checked in the same way at the end of each run, and its report says what was found:

```sh
bitwright quantize MODEL --out DIR
```

The columns with `enable()` and `load()` are those libraries
with [Bitwright's kernels and engine inside](#inside-other-libraries).
"""

TAIL = """
## Inside other libraries

Alone, transformers unpacks the weights while it loads a result, and then computes in float. After `enable()` its models
get Bitwright's linears instead. It then loads `quant_method: bitwright`, too:

```python
from transformers import AutoModel

from bitwright.integrations.transformers import disable, enable

enable()
model = AutoModel.from_pretrained("DIR")
disable()
```

Everything else stays in the hands of transformers: `generate`, heads, dtypes, `save_pretrained`. The model runs on the
CPU, and cannot be trained. What Bitwright does not read is loaded as before, with a warning.

sentence-transformers can have the whole engine behind its own classes:

```python
from bitwright.integrations.sentence_transformers import load

embedder = load("DIR")
vectors = embedder.encode(["A text.", "Another one."])
print(embedder.similarity(vectors, vectors))
```

A reranker or a classifier becomes a `CrossEncoder`. Prompts, `truncate_dim`, evaluators and pools of processes work as
always. Such a model is not saved: copy the directory.

For LangChain there is `bitwright.integrations.langchain.BitwrightEmbeddings`. The folder `examples` of the repository
has a short program for each of these, and for LlamaIndex and Haystack.
"""


def page(rows: Iterable[Row]) -> str:
    """docs/runtimes.md."""
    rows = sorted(rows, key=lambda row: (row.format, row.scheme, row.model, row.runtime))
    results = list(dict.fromkeys(row[:3] for row in rows))
    found = {row[:4]: row for row in rows}
    notes: list[str] = []

    def cell(row: Row | None) -> str:
        if row is None or row.ok is None:
            return "–"
        if row.ok:
            return "yes"
        notes.append(f"{row.model}, `{row.scheme}`, {row.runtime}: {row.detail}")
        return f"no ({len(notes)})"

    lines = [f"| format | scheme | model | {' | '.join(head for head, _ in RUNTIMES.values())} |"]
    lines.append("|---" * (3 + len(RUNTIMES)) + "|")
    for format_, scheme, model in results:
        cells = [cell(found.get((format_, scheme, model, runtime))) for runtime in RUNTIMES]
        lines.append(f"| {format_} | `{scheme}` | {model} | {' | '.join(cells)} |")
    noted = [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    releases = sorted({row.release for row in rows if " " in row.release and row.ok is not None})
    what = [f"- **{head}**: {what}." for head, what in RUNTIMES.values()]
    parts = [HEAD, "\n".join(lines), *(["\n".join(noted)] if noted else []), "\n".join(what)]
    return "\n\n".join([*(part.strip() for part in parts), f"Checked with {', '.join(releases)}.", TAIL.strip()]) + "\n"


if __name__ == "__main__":
    main()
