"""The worker of `llm_speed.py`: one engine with one model, told over pipes what to run, in that engine's environment.

    python benchmarks/llm_engines.py ENGINE PATH --threads N        with ENGINE one of `ENGINES`

It says one line of JSON when the model is loaded, then answers each line of JSON with one. It
imports only that engine. An engine has several settings where its users have a choice that
changes speed (precision of the cache, kind of attention); where none is asked for, all are tried and the fastest one
is measured.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TRY_SECONDS = 1.0  # of each setting
CACHE_TOKENS = 6144  # of all sequences of a cell, at most
OURS = "bitwright"

Ids = Sequence[int]


class Session(NamedTuple):
    """Sequences under way.

    begin: forgets all sequences, and computes these prompts. step: one more token of each. Both return the logits after
    the last tokens, float32 (B, V); an engine that keeps them to itself chooses the most likely token and returns None.
    """

    begin: Callable[[Sequence[Ids]], np.ndarray | None]
    step: Callable[[Ids], np.ndarray | None]


# What a setting is: a session for so many sequences, of so many tokens of a prompt, and so many more.
Setting = Callable[[int, int, int], Session]


class Engine(NamedTuple):
    """An engine with its model loaded. about: versions and features, as it reports them."""

    settings: dict[str, Setting]
    about: str


def open_bitwright(path: Path, threads: int) -> Engine:
    """Ours, on the level of the scheduler's steps."""
    import bitwright
    from bitwright.files.opening import open_path
    from bitwright.generate.cache import Held
    from bitwright.runtime.decoder_model import DecoderModel

    model = DecoderModel(open_path(path), threads=threads, cache_tokens=CACHE_TOKENS)
    held: list[Held] = []

    def open_session(sequences: int, prompt: int, steps: int) -> Session:
        def append(part: Sequence[Ids], each: Sequence[Held]) -> np.ndarray:
            for ids, one in zip(part, each, strict=True):
                model.cache.grow(one, len(ids))
            work = [(one, ids, 1) for ids, one in zip(part, each, strict=True)]
            logits_BV: np.ndarray = model.executor.step(model.cache.step(work), threads)
            for ids, one in zip(part, each, strict=True):
                model.cache.advanced(one, len(ids))
            return logits_BV

        def begin(prompts: Sequence[Ids]) -> np.ndarray:
            while held:
                model.cache.end(held.pop())
            rows = []
            for ids in prompts:
                held.append(model.cache.begin([]))
                for first in range(0, len(ids), 512):
                    logits_1V = append([ids[first : first + 512]], held[-1:])
                rows.append(logits_1V)
            return np.concatenate(rows)

        return Session(begin, lambda tokens: append([[token] for token in tokens], held))

    return Engine({"int8 cache": open_session}, f"{bitwright.__version__}, {model.backend}")


def open_llama_cpp(path: Path, threads: int) -> Engine:
    """llama.cpp by its C interface: batches of several sequences, logits of the last tokens alone."""
    import ctypes

    import llama_cpp as cpp

    cpp.llama_backend_init()
    model = cpp.llama_model_load_from_file(str(path).encode(), cpp.llama_model_default_params())
    vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))

    def setting(cache: int, flash: int) -> Setting:
        def open_session(sequences: int, prompt: int, steps: int) -> Session:
            asked = cpp.llama_context_default_params()
            asked.n_ctx = sequences * -(-(prompt + steps + 1) // 256) * 256
            asked.n_seq_max, asked.n_batch, asked.n_ubatch = sequences, 512, 512
            asked.n_threads = asked.n_threads_batch = threads
            asked.type_k = asked.type_v = cache
            asked.flash_attn_type, asked.no_perf = flash, True
            context = cpp.llama_init_from_model(model, asked)
            batch, lengths = cpp.llama_batch_init(512, 0, 1), [0] * sequences
            contexts.append((context, batch))

            def decode(tokens: Ids, owners: Sequence[int], wanted: int) -> np.ndarray:
                """The tokens, each of a sequence; the logits of the last `wanted`."""
                batch.n_tokens = len(tokens)
                for place, (token, owner) in enumerate(zip(tokens, owners, strict=True)):
                    batch.token[place], batch.pos[place] = token, lengths[owner]
                    batch.n_seq_id[place], batch.seq_id[place][0] = 1, owner
                    batch.logits[place] = place >= len(tokens) - wanted
                    lengths[owner] += 1
                if code := cpp.llama_decode(context, batch):
                    raise RuntimeError(f"llama_decode returned {code}")
                first = ctypes.cast(cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
                return np.ctypeslib.as_array(first, (wanted, vocabulary))

            def begin(prompts: Sequence[Ids]) -> np.ndarray:
                cpp.llama_memory_clear(cpp.llama_get_memory(context), False)
                lengths[:] = [0] * sequences
                rows = []
                for owner, ids in enumerate(prompts):
                    for at in range(0, len(ids), 512):
                        part = ids[at : at + 512]
                        logits_1V = decode(part, [owner] * len(part), 1)
                    rows.append(logits_1V.copy())
                return np.concatenate(rows)

            return Session(begin, lambda tokens: decode(tokens, range(sequences), sequences))

        def after_the_last(sequences: int, prompt: int, steps: int) -> Session:
            while contexts:  # one at a time in memory
                context, batch = contexts.pop()
                cpp.llama_batch_free(batch)
                cpp.llama_free(context)
            return open_session(sequences, prompt, steps)

        return after_the_last

    contexts: list[tuple[Any, Any]] = []
    on, off = cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings = {
        "f16 cache, flash attention": setting(cpp.GGML_TYPE_F16, on),
        "f16 cache": setting(cpp.GGML_TYPE_F16, off),
        "q8_0 cache, flash attention": setting(cpp.GGML_TYPE_Q8_0, on),
    }
    return Engine(settings, f"llama-cpp-python {cpp.__version__}, {cpp.llama_print_system_info().decode()}")


def open_openvino(path: Path, threads: int) -> Engine:
    """OpenVINO: the model with its cache as state, and GenAI's pipeline with a paged cache."""
    import openvino
    import openvino.opset13 as ops

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    model = core.read_model(path / "openvino_model.xml")
    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    last = ops.slice(head.input_value(0), [-1], [np.iinfo(np.int64).max], [1], [1])
    head.input(0).replace_source_output(last.output(0))  # as GenAI does: rows that need no logits are dropped
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def stateful(sequences: int, prompt: int, steps: int) -> Session:
        mask_BT = np.ones((sequences, prompt + steps + 1), np.int64)
        length = 0

        def append(ids_BT: np.ndarray) -> np.ndarray:
            nonlocal length
            n, new = ids_BT.shape
            positions_BT = np.broadcast_to(np.arange(length, length + new), (n, new)).copy()
            length += new
            inputs = {
                "input_ids": ids_BT, "attention_mask": mask_BT[:, :length], "position_ids": positions_BT,
                "beam_idx": np.arange(n, dtype=np.int32),
            }  # fmt: skip
            request.infer(inputs)
            logits_BV: np.ndarray = request.get_tensor("logits").data[:, -1]
            return logits_BV

        def begin(prompts: Sequence[Ids]) -> np.ndarray:
            nonlocal length
            request.reset_state()
            length = 0
            return append(np.array(prompts, np.int64))

        return Session(begin, lambda tokens: append(np.array(tokens, np.int64)[:, None]))

    return Engine(
        {"state": stateful, **_openvino_paged(path, settings)}, f"openvino {openvino.get_version()}, {settings}"
    )


def _openvino_paged(path: Path, settings: dict[str, Any]) -> dict[str, Setting]:
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens = 1, CACHE_TOKENS
    scheduler.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", settings)
    handles: list[Any] = []

    def open_session(sequences: int, prompt: int, steps: int) -> Session:
        asked = genai.GenerationConfig(max_new_tokens=steps + 1, ignore_eos=True)

        def begin(prompts: Sequence[Ids]) -> None:
            while pipeline.has_non_finished_requests():
                pipeline.step()
            handles[:] = [
                pipeline.add_request(number, openvino.Tensor(np.array([ids], np.int64)), asked)
                for number, ids in enumerate(prompts)
            ]
            pipeline.step()

        return Session(begin, lambda tokens: pipeline.step())

    return {"paged": open_session}


def vllm_engine(path: Path, threads: int, **asked: Any) -> Any:
    """vLLM's engine in this process, without the two others that it starts by default."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
    import vllm

    return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(
        str(path), max_num_seqs=32, enable_prefix_caching=False, disable_log_stats=True,
        **({"dtype": "bfloat16"} | asked),
    ))  # fmt: skip


def open_vllm(path: Path, threads: int) -> Engine:
    """vLLM, by its engine's steps."""
    engine = vllm_engine(path, threads, max_model_len=CACHE_TOKENS, max_num_batched_tokens=CACHE_TOKENS)
    number = 0
    import vllm

    def open_session(sequences: int, prompt: int, steps: int) -> Session:
        greedy = vllm.SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True, detokenize=False)

        def begin(prompts: Sequence[Ids]) -> None:
            nonlocal number
            while engine.has_unfinished_requests():
                engine.step()
            for ids in prompts:
                engine.add_request(str(number), {"prompt_token_ids": list(ids)}, greedy)
                number += 1
            started: set[str] = set()
            while len(started) < len(prompts):
                started |= {output.request_id for output in engine.step()}

        def step(tokens: Ids) -> None:
            while not engine.step() and engine.has_unfinished_requests():
                pass  # it schedules ahead: not every step of its own has tokens

        return Session(begin, step)

    return Engine({"paged": open_session}, f"vllm {vllm.__version__}")


ENGINES: dict[str, Callable[[Path, int], Engine]] = {
    OURS: open_bitwright,
    "llama.cpp": open_llama_cpp,
    "openvino": open_openvino,
    "vllm": open_vllm,
}


def prompts_of(sequences: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Ordinary tokens, drawn alike for every engine."""
    draw = np.random.default_rng(0)
    drawn: list[list[int]] = draw.integers(vocabulary // 10, vocabulary, (sequences, tokens)).tolist()
    return drawn


def speed(session: Session, prompts: Sequence[Ids], steps: int, seconds: float) -> float:
    """Tokens per second of the steps, or of the prompts where there are no steps. Choosing the most likely token counts
    too."""
    taken, done = 0.0, 0
    while taken < seconds:
        begun = time.perf_counter()
        tokens = _most_likely(session.begin(prompts), prompts)
        if not steps:
            taken, done = taken + time.perf_counter() - begun, done + sum(map(len, prompts))
            continue
        begun = time.perf_counter()
        for _ in range(steps):
            tokens = _most_likely(session.step(tokens), prompts)
        taken, done = taken + time.perf_counter() - begun, done + steps * len(prompts)
    return done / taken


def _most_likely(logits_BV: np.ndarray | None, prompts: Sequence[Ids]) -> Ids:
    if logits_BV is None:
        return [0] * len(prompts)
    tokens: list[int] = logits_BV.argmax(axis=1).tolist()
    return tokens


def perplexity(session: Session, ids: Ids) -> float | None:
    """exp of the mean NLL of each token after the first, token by token as in decoding; None where an engine keeps its
    logits to itself."""
    logits_1V, total = session.begin([ids[:1]]), 0.0
    for token in ids[1:]:
        if logits_1V is None:
            return None
        row_V = logits_1V[0].astype(np.float64)
        most = row_V.max()
        total += math.log(np.exp(row_V - most).sum()) + most - row_V[token]
        logits_1V = session.step([token])
    return math.exp(total / (len(ids) - 1))


def answered(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    """The perplexity of `ids`, or the speed of a cell: in `setting`, or where that is None in the fastest one."""
    if "ids" in asked:
        name = next(iter(engine.settings))
        return {"setting": name, "perplexity": perplexity(engine.settings[name](1, 1, len(asked["ids"])), asked["ids"])}
    cell = asked["sequences"], asked["prompt"], asked["steps"]
    prompts = prompts_of(*cell[:2], asked["vocabulary"])

    def measured(name: str, seconds: float) -> float:
        return speed(engine.settings[name](*cell), prompts, cell[2], seconds)

    name = asked["setting"] or max(engine.settings, key=lambda name: measured(name, TRY_SECONDS))
    return {"setting": name, "per_s": measured(name, asked["seconds"])}


def answer_requests(
    begin: Callable[[], Any], about: Callable[[Any], dict[str, Any]], answered: Callable[..., Any]
) -> None:
    """A worker's whole life: load by `begin`, then answer each line of JSON until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=replies, flush=True)

    try:
        begun = time.perf_counter()
        engine = begin()
        reply({**about(engine), "load_s": time.perf_counter() - begun})
        for line in sys.stdin:
            reply(answered(engine, json.loads(line)))
    except Exception as error:  # the driver says which engine it was, and goes on with the others
        reply({"error": f"{type(error).__name__}: {error}"})
        raise


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, then answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)

    def begin() -> Engine:
        return ENGINES[options.engine](options.path, options.threads)

    answer_requests(begin, lambda engine: {"about": engine.about}, answered)


if __name__ == "__main__":
    main()
