"""What a process imports and builds once before it forks its workers."""

import threading
from pathlib import Path

import torch

from tests.fuzz.attempts import open_seed


def warm(seeds: Path) -> None:
    """Have every module in memory that an input may need; no thread but this one."""
    import bitwright.pipeline
    import bitwright.report
    import bitwright.runtime.engine_model
    import bitwright.runtime.generic  # noqa: F401

    torch.set_num_threads(1)
    for name in ("bert", "llama", "wide", "mpnet", "mixtral"):  # one at least is of each run
        if (seeds / name).is_dir():
            open_seed(seeds / name)
    assert threading.active_count() == 1
