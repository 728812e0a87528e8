"""What fits under a limit of memory: models at once, and requests at once of one model, by loading and running them.

    python benchmarks/memory_limit.py --float DIR --int8 DIR --w4 DIR [--limit-gb 1.5] [--tokens 2048] [--json FILE]

The directories hold one language model: as it was published, and as results of `bitwright quantize`.

models     They are loaded one after another in one process; each answers a prompt. The float model is computed in
           bf16 with a cache in bf16, the others as `bitwright.load` runs them.
requests   Of so many tokens each, prompt and answer, all under way at the same time. A first process measures a few,
           another one runs as many as should fit by that; if they take more than the limit, the next tries fewer.

What counts is the largest resident set of the process, interpreter and libraries included: what a container's limit
counts, except that it may take away pages of mapped files. No speed is measured.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# name -> (which directory, compute, kv_cache)
MODELS = {"bf16": ("float", "bf16", "bf16"), "int8": ("int8", "auto", "int8"), "w4": ("w4", "auto", "int8")}
REQUESTS = {
    "bf16, cache bf16": ("float", "bf16", "bf16"),
    "w4, cache bf16": ("w4", "auto", "bf16"),
    "w4, cache int8": ("w4", "auto", "int8"),
    "w4, cache int4": ("w4", "auto", "int4"),
}
PROMPT, ANSWER = 256, 16  # of each of several models
CHUNK = 512  # tokens of prompts in a step
FEW = 2  # requests of the first process


def models(folder: str, compute: str, cache: str, limit: int) -> dict[str, Any]:
    """How many fit, and the peak in bytes with so many."""
    import bitwright
    from bitwright.runtime.resident import peak_rss_mib

    held: list[Any] = []
    peak = 0
    while True:
        model: Any = bitwright.load(folder, compute=compute, context=PROMPT + ANSWER, kv_cache=cache)  # type: ignore[arg-type]
        model.generate([list(range(10, 10 + PROMPT))], max_tokens=ANSWER)
        now = int(peak_rss_mib() * 2**20)
        if now > limit:
            return {"count": len(held), "peak": peak}
        held.append(model)
        peak = now


def requests(folder: str, compute: str, cache: str, count: int, tokens: int) -> dict[str, Any]:
    """The peak in bytes with so many requests, and what the cache takes for one."""
    from bitwright.engine.decoders import DEFAULT, FLOAT
    from bitwright.files.opening import open_path
    from bitwright.runtime.decoder_model import DecoderModel
    from bitwright.runtime.resident import peak_rss_mib

    how = (FLOAT if compute == "bf16" else DEFAULT)._replace(cache=cache)  # type: ignore[arg-type]
    model = DecoderModel(open_path(Path(folder)), context=tokens, cache_tokens=count * tokens, arithmetic=how,
                         speculate=False)  # fmt: skip
    loaded = int(peak_rss_mib() * 2**20)
    # The first has to be at work until the last one's prompt is read.
    new = min(-(-tokens // CHUNK) * count + ANSWER, tokens // 2)
    prompts = [[100 + number, *range(200, 199 + tokens - new)] for number in range(count)]
    answers = model.generate(prompts, max_tokens=new, ignore_eos=True)
    written = [len(answer.ids) for answer in answers]
    assert written == [new] * count, f"answers of {written} tokens"
    layout = model.cache.layout
    each = -(-tokens // layout.tokens) * layout.block_bytes
    return {"count": count, "peak": int(peak_rss_mib() * 2**20), "loaded": loaded, "each": each}


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"models": models, "requests": requests}


def in_process(what: str, *arguments: object) -> dict[str, Any]:
    """What a function here gives in a process of its own."""
    command = [sys.executable, __file__, "--child", what, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def most_requests(folder: str, compute: str, cache: str, limit: int, tokens: int) -> dict[str, Any]:
    """How many requests fit: the largest count that was run within the limit."""
    few = in_process("requests", folder, compute, cache, FEW, tokens)
    count = FEW + (limit - few["peak"]) // few["each"]
    while count > FEW:
        found = in_process("requests", folder, compute, cache, count, tokens)
        if found["peak"] <= limit:
            return found
        count -= max(1, -(-(found["peak"] - limit) // few["each"]))
    return few


def table(rows: dict[str, dict[str, Any]], what: str) -> str:
    """Markdown: how many, how often that is as many as the first row's, and the peak."""
    first = next(iter(rows.values()))["count"]
    lines = [f"| | {what} at once | | peak |", "|---|---:|---:|---:|"]
    for name, row in rows.items():
        ratio = f"{row['count'] / first:.1f} ×" if first else ""
        lines.append(f"| {name} | {row['count']} | {ratio} | {row['peak'] / 1e6:,.0f} MB |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--child"]:
        what, folder, compute, cache, *numbers = given[1:]
        print(json.dumps(CHILDREN[what](folder, compute, cache, *map(int, numbers))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("float", "int8", "w4"):
        parser.add_argument(f"--{name}", required=True, metavar="DIR")
    parser.add_argument("--limit-gb", type=float, default=1.5)
    parser.add_argument("--tokens", type=int, default=2048, help="of a request, prompt and answer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = vars(parser.parse_args(given))
    limit = int(options["limit_gb"] * 1e9)
    found: dict[str, Any] = {"limit": limit, "tokens": options["tokens"], "models": {}, "requests": {}}
    for name, (which, *how) in MODELS.items():
        found["models"][name] = in_process("models", options[which], *how, limit)
    print(table(found["models"], "models"), flush=True)
    for name, (which, compute, cache) in REQUESTS.items():
        found["requests"][name] = most_requests(options[which], compute, cache, limit, options["tokens"])
        print(name, found["requests"][name], file=sys.stderr, flush=True)
    print("\n" + table(found["requests"], f"requests of {options['tokens']} tokens"))
    if options["json"]:
        options["json"].write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
