"""A soak of generation: requests that join, leave and are cancelled at random; no wrong token, no leak.

    python benchmarks/soak_requests.py MODEL [--minutes 60] [--callers 4] [--seed 0] [--json soak.json]

MODEL is a language model that the engine runs; `benchmarks/llm_random.py --small` makes one. What some random requests,
greedy and sampled, are answered with alone, in one piece and without guesses, is kept. Then threads ask for them at
once, singly and several together, with priorities, and stop listening to some in the middle, while the cache has room
for a few only: requests wait, are put back, and find each other's blocks. Every token must be the one that was kept.
Memory is what Linux counts as resident; after warm-up, a tenth of the soak, it may grow by `ROOM_MIB` at most. The exit
code is 1 after a wrong token, or when memory grew by more.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.files.directory import ModelDirectory
from bitwright.runtime.decoder_model import DecoderModel
from bitwright.runtime.resident import rss_mib

ROOM_MIB = 16.0
_REQUESTS = 60
_LONGEST = 400  # tokens of a prompt; an answer has a quarter at most


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, how it is answered, and the answer."""

    prompt: list[int]
    how: dict[str, Any]
    tokens: tuple[int, ...]


def make_requests(model: DecoderModel, generator: np.random.Generator, count: int = _REQUESTS) -> list[Asked]:
    """Random requests, half of which begin alike, with the answers that `model` gives to each alone."""
    longest = min(_LONGEST, model.max_tokens * 3 // 4)
    common, found = generator.integers(0, model.vocabulary, longest), []
    for number in range(count):
        prompt = generator.integers(0, model.vocabulary, generator.integers(1, longest + 1))
        if number % 2:
            cut = generator.integers(1, longest + 1)
            prompt = np.concatenate([common[:cut], prompt[: longest - cut]])
        how: dict[str, Any] = {"max_tokens": (5, longest // 8, longest // 4)[number // 3 % 3], "temperature": 0.0}
        if number % 3 == 1:
            how |= {"temperature": 0.8, "top_k": 20, "seed": 1}
        if number % 3 == 2:
            how |= {"repetition_penalty": 1.1}
        (alone,) = model.generate([prompt.tolist()], **how)
        found.append(Asked(prompt.tolist(), how, alone.ids))
    return found


def wrong_answers(model: DecoderModel, requests: list[Asked], end: float, seed: int) -> tuple[int, int]:
    """(answers, wrong ones) of one caller until the clock shows `end`."""
    generator, answers, wrong = np.random.default_rng(seed), 0, 0
    while time.monotonic() < end:
        asked = requests[generator.integers(len(requests))]
        priority = int(generator.integers(0, 3))
        if generator.random() < 0.3:  # several at once, of one way of answering
            alike = [other for other in requests if other.how == asked.how]
            made = model.generate([other.prompt for other in alike], priority=priority, **asked.how)
            answers += len(alike)
            wrong += sum(one.ids != other.tokens for one, other in zip(made, alike, strict=True))
            continue
        stream, tokens = model.stream(asked.prompt, priority=priority, **asked.how), []
        stop = generator.integers(0, 2 * len(asked.tokens) + 1)  # half are heard to the end
        for step in stream:
            if step.id is not None:
                tokens.append(step.id)
            if len(tokens) == stop:
                break
        stream.close()  # type: ignore[attr-defined]
        answers, wrong = answers + 1, wrong + (tuple(tokens) != asked.tokens[: len(tokens)])
    return answers, wrong


def soak(directory: Path, *, minutes: float, callers: int, seed: int, count: int = _REQUESTS) -> dict[str, Any]:
    """{answers, wrong, seconds, preempted, guessed, rss_mib: [after warm-up, at the end], rounds}."""
    generator = np.random.default_rng(seed)
    alone = DecoderModel(ModelDirectory(directory), speculate=False)
    requests = make_requests(alone, generator, count)
    tokens = 3 * max(len(one.prompt) + len(one.tokens) for one in requests)  # room for a few of them
    del alone
    model = DecoderModel(ModelDirectory(directory), cache_tokens=tokens)
    begun = time.monotonic()
    end, answers, wrong, resident = begun + 60 * minutes, 0, 0, list[tuple[float, float]]()
    with ThreadPoolExecutor(callers) as pool:
        while (now := time.monotonic()) < end:
            until = min(end, now + max(60 * minutes / 100, 0.5))
            seeds = generator.integers(0, 1 << 62, callers).tolist()
            for done, bad in pool.map(lambda one: wrong_answers(model, requests, until, one), seeds):  # noqa: B023
                answers, wrong = answers + done, wrong + bad
            resident.append(((time.monotonic() - begun) / (60 * minutes), rss_mib()))
            if sys.stderr.isatty():
                print(f"\r{answers} answers, {wrong} wrong, {resident[-1][1]:.1f} MiB", end="", file=sys.stderr)
    warm = [mib for progress, mib in resident if progress >= 0.1] or [resident[-1][1]]
    kept = model.cache.size - model.cache.free
    return {
        "answers": answers, "wrong": wrong, "kept_blocks": kept, "seconds": time.monotonic() - begun,
        "steps": model.scheduler.steps, "preempted": model.scheduler.preempted, "accepted": model.scheduler.accepted,
        "rss_mib": [warm[0], warm[-1]], "rounds": warm,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a token was wrong, a block was not given back, or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found there")
    options = parser.parse_args(arguments)
    found = soak(options.model, minutes=options.minutes, callers=options.callers, seed=options.seed)
    first, last = found["rss_mib"]
    print(f"{found['answers']} answers in {found['seconds']:.0f} s: {found['wrong']} wrong")
    print(f"{found['steps']} steps; {found['preempted']} requests put back; {found['accepted']} guesses were right")
    print(f"{found['kept_blocks']} blocks of the cache not given back")
    print(
        f"resident: {first:.1f} MiB after warm-up, {last:.1f} MiB at the end; up to {ROOM_MIB:.0f} MiB more are allowed"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return int(found["wrong"] > 0 or found["kept_blocks"] > 0 or last - first > ROOM_MIB)


if __name__ == "__main__":
    sys.exit(main())
