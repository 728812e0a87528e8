"""What a run takes in time and memory, before it begins; and what there is to calibrate with."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from bitwright.calibration.precision import fast_matmul
from bitwright.files.directory import ModelDirectory, source_bytes
from bitwright.files.task import find_task
from bitwright.methods import METHODS
from bitwright.models.rescale import find_inputs
from bitwright.numerics.schemes import SCHEMES
from bitwright.pipeline.job import Job
from bitwright.pipeline.loss_weights import weighted_names
from bitwright.pipeline.parts import sensitivity_task
from bitwright.plan import quantized_names
from bitwright.quantizing.layers import needs_inputs
from bitwright.recipe import AUTO, scheme_of
from bitwright.record import Shape
from bitwright.search.cost import Cost, Resources, Tensor, calibration_cost
from bitwright.search.fisher import gradient_bytes
from bitwright.search.sensitivity import parts_of

_PROBE = (512, 2048, 2048)  # M, N, K of the product that is timed
_PATIENCE_S = 6 * 3600.0
_FLOAT32 = 4  # bytes

# Of a run on one core of the machine that the measurements are from: seconds of work that do not depend on the model.
_IMPORTS_S = 5.0  # torch and transformers, in a process that computes with them
_LIBRARY_S = 12.0  # the process that runs the user's library: its imports, and hard texts
_VERIFY_S = 8.0
_BLOCK_S, _BLOCKS = 0.4, 3  # of timing one runtime with one shape: warm up and measure, in each round
_PROCESS_BYTES = 380 << 20  # of a process that has imported torch and transformers
_ENGINE_BYTES = 60 << 20  # of one that has imported our engine alone
_ROUNDED_PER_S = 40e6  # weights that are read, rounded to nearest and written in a second
_ENGINE_SHARE = 0.25  # of the time of the float model in torch, that the engine takes for the same tokens
_TIMED_TOKENS, _TIMED_TEXTS = 2048, 4  # in all, and of one length
# Of polishing, in forwards of the float model for the same tokens: a step goes forward and back through linears that
# are rounded anew each time; what is held out, an eighth, and the float model's own outputs come once.
_STEP_PASSES, _ONCE_PASSES = 4.0, 1.25


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run takes: by the clock if nothing else runs, and at its peak all processes together."""

    seconds: float
    memory_bytes: int


def run_cost(job: Job, *, sensitivity: bool, shapes: Sequence[Shape]) -> Estimate:
    """What quantizing, judging and timing would take, if no linear has to fall back.

    The float model is timed on a few of the texts; the rest follows from how many tokens there are, and from what
    processes take that run the libraries.

    Args:
        sensitivity: whether every layer of an encoder is measured. shapes: that it is timed with.
    """
    loaded, scored, streams = job.opened.loaded, job.scored, job.opened.streams
    sides = [side for side in (scored.tuning, scored.held_out, scored.elsewhere) if side is not None]
    # A metric of the user's own says nothing of its texts: as many as the probe's are assumed.
    tokens = sum(_count_tokens(job, side.texts or scored.probe) for side in sides)
    token_s = _seconds_per_token(job)
    float_s = tokens * token_s
    n_weights = sum(p.numel() for p in loaded.model.parameters())
    quantized_s = float_s * (1.0 if streams or job.recipe.scheme[:4] != "w8a8" else _ENGINE_SHARE)
    seconds = job.timings_s["load"] + _IMPORTS_S + _LIBRARY_S + float_s + n_weights / _ROUNDED_PER_S + quantized_s
    seconds += _VERIFY_S + _timing_s(shapes, token_s)
    calibration = job_cost(job, resources()) if any(needs_inputs(row, job.recipe) for row in job.plan) else None
    if calibration is not None:
        seconds += calibration.seconds
    seconds += _polish_s(job, token_s)
    if sensitivity and not streams:
        names = quantized_names(job.plan)
        parts = {part.members for part in parts_of([site for site in job.opened.sites if site.name in names])}
        each = max(_count_tokens(job, sensitivity_task(job).texts), _count_tokens(job, scored.probe))
        seconds += len(parts) * each * token_s
    whole, after = _FLOAT32 * n_weights, sum(row.bytes_after for row in job.plan)
    here = psutil.Process().memory_info().rss  # with the float model, as it was timed
    library = _PROCESS_BYTES + whole
    rivals = 2 * (_PROCESS_BYTES + (whole // 2 if streams else whole)) + _ENGINE_BYTES + after
    beside = (library, _PROCESS_BYTES + rivals)
    calibrating = 0 if calibration is None else calibration.memory_bytes
    return Estimate(seconds, here + max(*beside, calibrating, _weighting_bytes(job)))


def _weighting_bytes(job: Job) -> int:
    """Of the gradients of one text, before anything is rounded; the float model is there."""
    names = weighted_names(job)
    tokens = len(job.scored.calibration[0]) if job.opened.streams else job.recipe.calibration.max_tokens
    return gradient_bytes(job.opened.loaded.model, quantized_names(job.plan), tokens) if names else 0


def polish_minutes(job: Job) -> float:
    """What polishing would take, if the recipe asks for it. The float model is timed for this."""
    return _polish_s(job, _seconds_per_token(job)) / 60 if job.recipe.polish is not None else 0.0


def _polish_s(job: Job, token_s: float) -> float:
    settings = job.recipe.polish
    if settings is None:
        return 0.0
    tokens = min(settings.tokens, _count_tokens(job, job.scored.polishing))
    return tokens * token_s * (_ONCE_PASSES + settings.epochs * _STEP_PASSES)


def _timing_s(shapes: Sequence[Shape], token_s: float) -> float:
    """Of timing a result: two processes with torch that load, then it and those two in turn, with each shape."""
    # A forward each, at least.
    torch_s = sum(max(_BLOCK_S, 2 * batch * tokens * token_s) for batch, tokens, _ in shapes)
    return 2 * _IMPORTS_S + _BLOCKS * (2 * torch_s + len(shapes) * _BLOCK_S)


def _seconds_per_token(job: Job) -> float:
    """How long the float model takes for a token of the texts: timed on some, short ones and long ones, by the clock of
    the process, so that other programs do not count.
    """
    texts: list[Any] = sorted(job.scored.tuning.texts or job.scored.probe, key=lambda text: _count_tokens(job, [text]))
    # As the run does it, texts of like length are a batch: in a sample of all lengths, padding would be half the work.
    batches = max(1, _TIMED_TOKENS * len(texts) // (_TIMED_TEXTS * _count_tokens(job, texts)))
    places = (len(texts) * (2 * n + 1) // (2 * batches) for n in range(batches))
    some = [text for place in places for text in texts[place : place + _TIMED_TEXTS]]
    model = job.model.generic
    model.encode(some[:1])
    begun = time.process_time()
    model.encode(some, batch_size=_TIMED_TEXTS)
    return (time.process_time() - begun) / torch.get_num_threads() / _count_tokens(job, some)


def _count_tokens(job: Job, items: Sequence[Any]) -> int:
    """Tokens of texts, of pairs of texts, or of windows of ids."""
    windows = len(items) > 0 and not isinstance(items[0], str) and isinstance(items[0][0], int)
    return sum(map(len, items if windows else job.model.tokenize(list(items))))


def resources(*, memory_bytes: int | None = None, seconds: float | None = None) -> Resources:
    """This machine's free memory, its arithmetic per second in calibration (measured, 0.1 s), and the time that the
    user may want to wait; by default 6 h.
    """
    m, n, k = _PROBE
    a_MK, b_KN = torch.ones(m, k), torch.ones(k, n)
    with fast_matmul():
        took = []
        for _ in range(4):
            begun = time.perf_counter()
            a_MK @ b_KN
            took.append(time.perf_counter() - begun)
    free = psutil.virtual_memory().available if memory_bytes is None else memory_bytes
    return Resources(free, _PATIENCE_S if seconds is None else seconds, 2 * m * n * k / min(took))


def job_cost(job: Job, available: Resources) -> Cost:
    """The cost of calibrating on all calibration texts of the job, each as long as the recipe allows."""
    model, settings = job.opened.loaded.model, job.recipe.calibration
    sites = [site for site in job.opened.sites if SCHEMES[scheme_of(job.recipe, site)[0]].weight is not None]
    shapes = {site.name: model.get_parameter(f"{site.name}.weight").shape for site in sites}
    experts = {site.name for site in sites if site.role == "expert"}
    config = job.opened.loaded.config.get_text_config()
    methods = {site.name: scheme_of(job.recipe, site)[1] for site in sites}
    gptq = {name for name, method in methods.items() if method == AUTO or METHODS[method].rounding == "gptq"}
    whole = gptq.intersection(site.name for site in sites if site.is_whole)
    options = job.recipe.options
    share = _tokens_per_expert(job, config.num_experts_per_tok) if experts else 1.0
    inputs = find_inputs(model, job.opened.loaded.architecture, sites)
    tensors = [
        Tensor(
            sum(shapes[name][0] for name in shared.sites), shapes[shared.sites[0]][1], shared.block,
            share if experts.intersection(shared.sites) else 1.0,
            options.loss_groups * len(whole.intersection(shared.sites)),
        )
        for shared in inputs
    ]  # fmt: skip
    tables = [model.get_parameter(f"{name}.weight") for name in job.opened.embeddings]  # in memory beside the blocks
    return calibration_cost(
        tensors,
        n_tokens=min(len(job.scored.calibration), settings.samples) * min(settings.max_tokens, job.model.max_tokens),
        hidden=config.hidden_size,
        resident_bytes=_FLOAT32 * sum(table.numel() for table in tables),
        flops_per_second=available.flops_per_second,
        again=options.observes_again,
        mismatch=options.mismatch > 0 and bool(gptq),
    )


def _tokens_per_expert(job: Job, chosen: int) -> float:
    """The share of all tokens that reaches one expert, if all are chosen equally often."""
    block = max(site.block for site in job.opened.sites if site.role == "expert" and site.block is not None)
    names = {site.name.rpartition(".")[0] for site in job.opened.sites if site.role == "expert" and site.block == block}
    return min(1.0, chosen / len(names))


def memory_needed(directory: ModelDirectory, *, judged: bool, timed: bool) -> int:
    """About what a run takes at its peak, in bytes, all its processes together: from the headers of the model's files,
    before anything is loaded. `run_cost` knows more, and takes longer.

    Raises:
        BitwrightError: the files cannot be read.
    """
    whole = _FLOAT32 * sum(map(math.prod, directory.shapes.values())) or 2 * source_bytes(directory.path)
    streams = find_task(directory) == "text-generation"
    held = whole // 2 if streams else whole
    library = (_PROCESS_BYTES + whole) * judged
    rivals = (2 * (_PROCESS_BYTES + held) + _ENGINE_BYTES + whole // 4) * timed
    return _PROCESS_BYTES + held + max(library, rivals)
