"""Our attention on one core, in bf16 and in integers, against torch's in bf16.

    python benchmarks/attention.py [--json FILE] [--rounds N] [--variant NAME ...] [--tokens T ...] [--size D ...]

One sequence, twelve heads, queries, keys and values side by side in one buffer, as the linear before leaves them. GOP/s
of one core: a multiply or an add is one operation, 4 · T² · D of them for each head, the softmax not counted. Against
scaled_dot_product_attention on the same buffer, on one thread.

Contestants run turn by turn in short blocks (A B C A B C), so that all see the same noise; a ratio is the median over
rounds of the ratio inside a round, a speed the median over rounds.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

from bitwright.kernels import dispatch, native

TOKENS, SIZES, HEADS = (16, 128, 512), (32, 64), 12
BLOCK_SECONDS = 0.02
OPERATORS = ("attention", "attention_int8")
Run = Callable[[], object]


def main() -> None:
    """Measure every shape, print one table, write the numbers."""
    variants = [f"{op} {row.name}" for op in OPERATORS for row in dispatch.variants(op) if row.supported]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write every number there")
    parser.add_argument("--rounds", type=int, default=15, help="blocks per contestant and shape")
    parser.add_argument(
        "--variant", nargs="+", default=[name for name in variants if "scalar" not in name], choices=variants
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--size", nargs="+", type=int, default=list(SIZES), help="of a head")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(t, d, options.variant, options.rounds) for d in options.size for t in options.tokens]
    Console(width=100).print(table_of(rows, options.variant))
    if options.json:
        facts = {"threads": 1, "torch": torch.__version__, "heads": HEADS}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def measure(tokens: int, size: int, variants: list[str], rounds: int) -> dict[str, object]:
    """GOP/s of every contestant in every round: {"T", "D", "rounds": {contestant: [GOP/s, ...]}}."""
    qkv = torch.randn(tokens, 3 * HEADS * size, generator=torch.Generator().manual_seed(0)).bfloat16()
    contestants = {"torch": torchs(qkv, size), **{name: ours(name, qkv, size) for name in variants}}
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            found[name].append(4e-9 * HEADS * tokens**2 * size / seconds_per_call(run))
    return {"T": tokens, "D": size, "rounds": found}


def seconds_per_call(run: Run) -> float:
    """CPU time of the fastest call of one block: what else runs on the machine can only slow a call down."""
    fastest, stop = float("inf"), time.perf_counter() + BLOCK_SECONDS
    while time.perf_counter() < stop:
        start = time.thread_time()
        run()
        fastest = min(fastest, time.thread_time() - start)
    return fastest


def ours(variant: str, qkv: torch.Tensor, size: int) -> Run:
    """One call for all heads, on preallocated memory. variant: of an operator, "attention avx2"."""
    module, tokens, width = native.load(), len(qkv), HEADS * size
    operator, _, name = variant.partition(" ")
    run = getattr(module, operator)
    out = torch.empty(tokens, width, dtype=torch.bfloat16)
    scratch = torch.empty(getattr(module, f"{operator}_scratch_bytes")(tokens, size) + 64, dtype=torch.uint8)
    aligned = -(-scratch.data_ptr() // 64) * 64
    op = module.Attention(
        q=qkv.data_ptr(),
        k=qkv.data_ptr() + 2 * width,
        v=qkv.data_ptr() + 4 * width,
        stride=qkv.stride(0),
        out=out.data_ptr(),
        out_stride=width,
        tokens=tokens,
        head_size=size,
        scale=size**-0.5,
        bias=0,
        bias_stride=0,
        bias_query_step=0,
        window=module.NO_WINDOW,
    )
    keep = (qkv, out, scratch)  # alive as long as the closure
    return lambda: (run(name, op, 0, HEADS, 0, tokens, aligned), keep)


def torchs(qkv: torch.Tensor, size: int) -> Run:
    """torch's attention, on views of the buffer."""
    q, k, v = (part.view(1, len(qkv), HEADS, size).transpose(1, 2) for part in qkv.chunk(3, dim=1))

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return scaled_dot_product_attention(q, k, v)

    return run


def table_of(rows: list[dict[str, object]], variants: list[str]) -> Table:
    """A line for each shape and contestant: its speed, and the ratio to torch's."""
    title = "attention, one core, GOP/s; x = ours / torch's"
    table = Table(title=title, box=None, header_style="bold", pad_edge=False)
    for column in ("T", "D", "", "GOP/s", "x"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        found: dict[str, list[float]] = row["rounds"]  # type: ignore[assignment]
        for name in ("torch", *variants):
            ratio = median(a / b for a, b in zip(found[name], found["torch"], strict=True))
            shape = [str(row["T"]), str(row["D"])] if name == "torch" else ["", ""]
            table.add_row(*shape, name, f"{median(found[name]):.0f}", f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    main()
