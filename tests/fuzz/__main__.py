"""The long run: mutated checkpoints, side files and recipes by the ten thousand.

    python -m tests.fuzz [--inputs 100000] [--quantized 2000] [--seed 0] [--minutes M] [--json fuzz.json] [--keep DIR]
    python -m tests.fuzz --only 17 --how open --keep DIR      # makes one input again, and tries it
    python -m tests.fuzz --reader gptq --minutes 20           # what one reader of checkpoints reads, and nothing else

Of `--inputs`, most are opened, planned, loaded and run, some are recipes and some are records; `--quantized` go
through the whole of `quantize`. The exit code is 1 if one fails: a signal, over 5 s or 1.5 GB, an exception that is not
ours, or raw text in a message. Each failure has a line with its index, by which it is made again.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

# Before torch and the tokenizers come: a process that is to be forked has one thread.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}

SHARES = {"open": 0.9, "plan": 0.08, "report": 0.02}
JUDGED = 0.02  # of those that are quantized


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=arguments.scratch) as root:
        return _run(arguments, Path(root))


def _run(arguments: argparse.Namespace, root: Path) -> int:
    from tests.fuzz.seeds import FLOAT, QUANTIZED, READERS, write_seeds

    (root / "seeds").mkdir()
    (root / "work").mkdir()
    context = get_context("spawn")
    names = ("bert", "distilbert", "llama", "bert-w8a8", "roberta-w4a16") if arguments.few else (*FLOAT, *QUANTIZED)
    names = READERS.get(arguments.reader, names)
    writer = context.Process(target=write_seeds, args=(root / "seeds", names))
    writer.start()
    writer.join()
    if writer.exitcode:
        return 2
    seeds = sorted((root / "seeds").iterdir())

    from tests.fuzz import warm
    from tests.fuzz.workers import Limits, Tried, make, try_all

    warm.warm(root / "seeds")
    seeds_of = {
        "plan": [seed for seed in seeds if seed.name.startswith("recipe-")],
        "report": [seed for seed in seeds if (seed / "record.json").exists()],
        "open": [seed for seed in seeds if (seed / "config.json").exists()],
        "quantize": [seed for seed in seeds if (seed / "config.json").exists() and not (seed / "record.json").exists()],
    }
    seeds_of["judge"] = seeds_of["quantize"]
    if arguments.reader:
        seeds_of["open"] = [root / "seeds" / name for name in names]
    if arguments.only is not None:
        plan = {arguments.how: [arguments.only]}
    elif arguments.reader:
        plan = {"open": list(range(arguments.first, arguments.first + arguments.inputs))}
    else:
        shares = {how: round(arguments.inputs * share) for how, share in SHARES.items()}
        plan = {how: list(range(arguments.first, arguments.first + n)) for how, n in shares.items()}
        judged = round(arguments.quantized * JUDGED)
        plan["quantize"] = list(range(arguments.first, arguments.first + arguments.quantized - judged))
        plan["judge"] = list(range(arguments.first, arguments.first + judged))
    begun, failures = time.monotonic(), []
    ended: Counter[str] = Counter()
    parsed: Counter[bool] = Counter()
    slowest, largest = 0.0, 0
    for how, indices in plan.items():
        limits = Limits(seconds=120.0) if how == "judge" else Limits()
        for tried in try_all(indices, how, seeds_of[how], root / "work", seed=arguments.seed, limits=limits):
            ended[f"{how}: {tried.ended}"] += 1
            parsed[bool(tried.changed) and all(tried.changed.values())] += 1
            slowest, largest = max(slowest, tried.seconds), max(largest, tried.peak)
            if tried.failure:
                failures.append(tried)
                _tell(tried)
                if arguments.keep:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    kept = arguments.keep / f"{how}-{tried.index}"
                    if not kept.exists():
                        make(tried.index, seeds_of[how], kept, arguments.seed, shutil.copy)
            if arguments.minutes and time.monotonic() - begun > 60 * arguments.minutes:
                break
    figures = {
        "inputs": sum(ended.values()), "parsed": parsed[True] / max(sum(parsed.values()), 1),
        "seconds": round(time.monotonic() - begun), "slowest_s": round(slowest, 2), "largest_bytes": largest,
        "ended": dict(sorted(ended.items())), "failures": dict(Counter(tried.failure for tried in failures)),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"failed": [asdict(tried) for tried in failures]}, indent=1))
    if arguments.only is not None and isinstance(tried, Tried):
        print(json.dumps(asdict(tried), indent=1))
    return 1 if failures else 0


def _tell(tried: object) -> None:
    fields = asdict(tried)  # type: ignore[call-overload]
    print(f"{fields['how']} {fields['index']} ({fields['seed']}, {', '.join(fields['changed'])}): {fields['failure']}",
          flush=True)  # fmt: skip


def _arguments() -> argparse.Namespace:
    from tests.fuzz.seeds import READERS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--quantized", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="index of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--few", action="store_true", help="begin with few models, which are written quickly")
    parser.add_argument("--minutes", type=float, help="of each kind, at most")
    parser.add_argument("--reader", choices=list(READERS), help="begin with the checkpoints of this one")
    parser.add_argument("--only", type=int, help="index of the only input")
    parser.add_argument("--how", default="open")
    parser.add_argument("--keep", type=Path, help="where inputs that fail are kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", default="/dev/shm" if os.path.isdir("/dev/shm") else None)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
