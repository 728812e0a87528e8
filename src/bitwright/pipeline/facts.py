"""Fills the Record of a finished job."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bitwright.evaluate import Interval, Task, judge, metric_found, without_pairs
from bitwright.evaluate.by_kind import kind_bounds
from bitwright.evaluate.kinds import Outputs
from bitwright.files.directory import license_of, source_bytes
from bitwright.onnx.verify import RUNTIMES
from bitwright.pipeline.enough import given
from bitwright.pipeline.exporting import on_engine, verify_formats, verify_graphs
from bitwright.pipeline.job import Job
from bitwright.pipeline.variants import candidate, dequantized
from bitwright.plan import Plan, int8_attention, quantized_names
from bitwright.quantizing.layers import Quantized
from bitwright.record import (
    Elsewhere,
    Evaluation,
    KindRow,
    LayerRow,
    Metric,
    ModelFacts,
    Size,
    Verification,
    from_data,
)
from bitwright.runtime.verify import compared, verify
from bitwright.runtime.verify_library import Given
from bitwright.search.journal import Journal
from bitwright.targets import ENGINE, TARGETS

_CRUSHED = 0.3  # error of an ordinary token from rounding the input alone; 8 bits usually leave a few percent
# Sequences × tokens that every runtime must agree on. The engine's limits are the sharper, the more sequences.
_VERIFY_SHAPE = (32, 32)
_VERIFY_ATTENTION = (32, 64)  # with int8 attention, which kernels compute in float where sequences are short
_VERIFY_STREAMED = (4, 32)  # of a language model, which is compared bit by bit


@dataclass(frozen=True, slots=True)
class Compared:
    """A task, the outputs of the float and of the quantized model for it, and the loss with its bounds."""

    task: Task
    float_outputs: Outputs
    quant_outputs: Outputs
    interval: Interval


def evaluation_facts(job: Job, compared: Compared, elsewhere: Compared | None = None) -> Evaluation:
    """The Record's `evaluation`."""
    task, interval, budget = compared.task, compared.interval, job.recipe.budget
    verdict = judge(interval, budget.max_loss, given(job.scored, len(compared.float_outputs)))
    if job.scored.missing_pairs:
        verdict = without_pairs(verdict, job.scored.missing_pairs)
    float_score, quantized_score = _scores(compared)
    inside = verdict.verdict == "undecided" and interval.loss <= budget.max_loss
    return Evaluation(
        metric=Metric(
            name=metric_found(task.kind, compared.float_outputs, compared.quant_outputs)[0],
            kind=task.kind.name,
            task=task.name,
            unit=task.kind.unit,
            label_free=task.kind.label_free,
            higher_is_better=task.kind.higher_is_better,
            protocol=getattr(task.kind, "protocol", None),
        ),
        n_tuning=job.scored.tuning.n_units,
        n_held_out=interval.n_units,
        float_score=float_score,
        quantized_score=quantized_score,
        loss=interval.loss,
        loss_lower=interval.lower,
        loss_upper=interval.upper,
        confidence=interval.confidence,
        max_loss=budget.max_loss,
        verdict=verdict.verdict,
        sentence=verdict.sentence,
        needed_samples=verdict.needed_samples,
        accepted_point_estimate=inside and budget.accept_point_estimate,
        companions=task.companions(compared.float_outputs, compared.quant_outputs),
        seed=job.recipe.seed,
        judge=None if job.reference is None else job.reference.library,
        texts=job.scored.source,
        kinds=_kind_rows(compared, job.recipe.seed) or None,
        languages=job.scored.languages or None,
        languages_left_out=job.scored.unread or None,
        calibrated_on=job.scored.calibrated_on,
        elsewhere=None if elsewhere is None else _elsewhere(elsewhere, job.recipe.seed),
    )


def _scores(compared: Compared) -> tuple[float, float]:
    """The scores of the float and of the quantized model; with several kinds of text, the mean over the kinds."""
    task, interval = compared.task, compared.interval
    float_score, quant_score = task.scores(compared.float_outputs, compared.quant_outputs)
    if interval.kinds and task.kind.label_free:  # the float model agrees with itself
        return 1.0, 1.0 - interval.loss
    return float_score, quant_score


def _kind_rows(compared: Compared, seed: int) -> tuple[KindRow, ...]:
    """The kinds of text, largest loss first."""
    kinds = compared.interval.kinds
    if not kinds:
        return ()
    upper = kind_bounds(compared.task, compared.float_outputs, compared.quant_outputs, seed=seed)
    rows = (KindRow(kind.kind, kind.n, kind.loss, max(kind.loss, upper[kind.kind])) for kind in kinds)
    return tuple(sorted(rows, key=lambda row: -row.loss))


def _elsewhere(compared: Compared, seed: int) -> Elsewhere:
    interval = compared.interval
    metric, _ = metric_found(compared.task.kind, compared.float_outputs, compared.quant_outputs)
    return Elsewhere(metric, interval.n_units, interval.loss, interval.upper, _kind_rows(compared, seed))


def model_facts(job: Job) -> ModelFacts:
    """The Record's `model`."""
    loaded = job.opened.loaded
    blocks = {site.block for site in job.opened.sites if site.block is not None}
    return ModelFacts(
        name=loaded.directory.origin.name if Path(loaded.name).exists() else loaded.name,
        source=loaded.name,
        model_type=loaded.config.model_type,
        architectures=tuple(loaded.config.architectures or ()),
        task=loaded.task,
        n_parameters=sum(p.numel() for p in loaded.model.parameters()),
        n_blocks=len(blocks),
        license=license_of(loaded.path),
        source_sha256=job.source_sha256,
        dtype=str(job.opened.dtype).removeprefix("torch."),
        decoded=loaded.directory.decoded_types or None,
    )


def size_facts(job: Job, staged: Path) -> Size:
    """The Record's `size`."""
    return Size(
        source_bytes=source_bytes(job.opened.loaded.directory.origin),
        checkpoint_bytes=sum(file.stat().st_size for file in staged.glob("*.safetensors")),
        weights_before=sum(row.bytes_before for row in job.plan),
        weights_after=sum(row.bytes_after for row in job.plan),
    )


def verify_in_runtimes(job: Job, staged: Path, quantized: Quantized, backend: str) -> tuple[Verification, ...]:
    """The Record's `verify`: the written files against models in memory that never saw them. backend: of the result
    that was judged.
    """
    with_int8 = bool(int8_attention(job.plan))
    shape = _VERIFY_ATTENTION if with_int8 else _VERIFY_SHAPE
    sequences, tokens = _VERIFY_STREAMED if job.opened.streams else shape
    limit = min(tokens, job.model.max_tokens)
    # Real tokens: random ones are far from what the model knows. No sequence is given twice: how sure the check is,
    # comes of how they differ.
    pool = [i for ids in job.model.tokenize(job.scored.probe) for i in ids]
    batch = min(max(len(pool) // limit, 1), sequences)
    ids = torch.from_numpy(np.resize(np.array(pool, dtype=np.int64), (batch, limit)))
    # With nothing quantized the directory is an ordinary float model, and is loaded as one.
    ours = candidate if quantized_names(job.plan) or quantized.tables else dequantized
    expected, calls = compared(ours(job, quantized), ids)
    plain, _ = compared(dequantized(job, quantized), ids)
    targets = list(job.recipe.targets or ())
    if job.opened.loaded.task != "embedding":
        targets = [target for target in targets if target != "sentence-transformers"]
    elif "transformers" in targets and job.opened.loads("sentence-transformers", job.recipe, job.plan):
        targets = list(dict.fromkeys([*targets, "sentence-transformers"]))
    compute = "float32" if job.opened.streams else "auto"
    original = compared(job.model, ids)[0] if with_int8 or job.opened.streams else None
    graphs = [target for target in targets if target in RUNTIMES]
    formats = [target for target in targets if TARGETS[target].format]
    libraries = dict.fromkeys("bitwright" if target == ENGINE else target for target in targets)
    others = [target for target in libraries if target not in (*graphs, *formats)]
    rows = [from_data(Verification, row) for row in verify(
        staged, others, Given(ids.numpy(), plain, expected), calls, compute, original)]  # fmt: skip
    if ENGINE in targets:
        rows.append(on_engine(next(row for row in rows if row.target == "bitwright"), backend))
    return (*rows, *verify_graphs(staged, graphs), *verify_formats(staged, formats))


def warnings_of(
    job: Job, layers: Sequence[LayerRow], evaluation: Evaluation | None, verified: Sequence[Verification],
    journal: Journal,
) -> tuple[str, ...]:  # fmt: skip
    """The Record's `warnings`."""
    texts = [*job.warnings, *job.dropped, *_not_as_asked(layers)]
    if evaluation is None:
        return (
            *texts,
            "nothing was evaluated, so the loss of accuracy is not known; run without --no-judge to measure it",
        )
    if (evaluation.n_held_out or 0) < 2:
        texts.append("the metric gives a single number, so the choices and the verdict were made on the same data")
    texts += [f"{row.target}: {row.detail}" for row in verified if row.ok is not True]
    if journal.reused:
        texts.append(f"{journal.reused} measurements were taken by an earlier run that was interrupted")
    return tuple(texts)


def _not_as_asked(rows: Sequence[LayerRow]) -> list[str]:
    """Warnings about linears that did not get what the recipe asks for."""
    texts = []
    if starved := [row for row in rows if row.starved]:
        texts.append(
            f"{len(starved)} linears of experts saw too few calibration tokens (such as {starved[0].name} with "
            f"{starved[0].n_tokens}). The report says what was used instead; calibrate on more text"
        )
    failed = [row for row in rows if row.gave_way_to]
    for reason in dict.fromkeys(row.reason for row in failed):
        names = [row.name for row in failed if row.reason == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        texts.append(f"{names[0]}{more}: rounded to nearest instead of the planned method: {reason}")
    crushed = {row.name: row.error_input for row in rows if not row.fallback and (row.error_input or 0.0) > _CRUSHED}
    if crushed:
        worst = max(crushed, key=lambda name: crushed[name] or 0.0)
        texts.append(
            f"{worst}: a few very large tokens widen the input range, so that ordinary tokens have an error of "
            f"{crushed[worst]:.0%}. {len(crushed)} linears have over {_CRUSHED:.0%}; give them a dynamic scheme by "
            "a rule"
        )
    return texts


def layer_rows(account: Sequence[LayerRow], plan: Plan) -> tuple[LayerRow, ...]:
    """The Record's `layers`: how each linear was quantized, and how well; those that fell back say so."""
    schemes = {row.name: row.scheme for row in plan}
    return tuple(replace(row, fallback=row.scheme != schemes[row.name]) for row in account)
