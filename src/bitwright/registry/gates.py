"""The gates: what a version must pass before it is promoted. A table of functions, each of which knows one question.

    verdict      is the loss that its record tells inside the budget, and is the record of these files?
    size         is it not much larger than the champion?
    signature    are its files those that were added, and signed?
    latency      is the slowest twentieth of its calls not much slower than the champion's?
    drift        does the traffic still look like the texts that it was calibrated on?
    space        do its queries find what they should in the index that other vectors made?

A gate that has nothing to ask is skipped, and says why. Nothing but the outcomes goes into the log.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitwright.errors import BitwrightError, EngineError, InputError, RegistryError
from bitwright.files.opening import open_path
from bitwright.record import RECORD_FILE, Record, read_record
from bitwright.registry.add import changed_files
from bitwright.registry.keys import PUBLIC
from bitwright.registry.log import KEY
from bitwright.registry.signing import check_signature, installed
from bitwright.registry.state import Checked, Model, Version
from bitwright.registry.store import Registry, model_of, writing
from bitwright.report.verdict import verdict_word

if TYPE_CHECKING:
    from bitwright.registry.spaces import SearchTexts
    from bitwright.runtime.model import Model as Runnable

# What a candidate may have at most (at least, of the agreement). registry.json may name others under "limits".
LIMITS = {
    "size": 1.1,  # times the champion's weight files
    "latency": 1.1,  # times the champion's 95th percentile
    "agreement": 0.8,  # share of the ten nearest documents, lower bound
}

_TIMED = 100  # texts

State = Literal["passed", "failed", "skipped"]
Drift = Callable[[Path], tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one gate says. detail: a sentence for people. figures: what it measured."""

    gate: str
    state: State
    detail: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """A version before the gates. champion: the one that it would replace. index: of whose vectors the index is made,
    and the id of their embedding space; None where nobody's is known. texts: to search in; None for built-in ones.
    opened: loads a model's directory, once; with `quick` a float one on the engine, in bf16.
    """

    registry: Registry
    model: Model
    version: Version
    champion: Version | None
    index: tuple[Path, str] | None
    texts: "SearchTexts | None"
    drift: Drift | None
    limits: Mapping[str, float]
    opened: Callable[..., "Runnable"]

    @property
    def place(self) -> Path:
        """The version's directory."""
        return self.registry.version(self.model.name, self.version.number)

    @property
    def champion_place(self) -> Path | None:
        """The champion's directory."""
        return None if self.champion is None else self.registry.version(self.model.name, self.champion.number)


def limits_of(registry: Registry) -> dict[str, float]:
    """The limits of a registry's gates.

    Raises:
        InputError: registry.json names one that no gate has, or no number.
    """
    for name, value in registry.limits.items():
        if name not in LIMITS:
            near = get_close_matches(name, LIMITS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"registry.json: no gate has the limit {name!r}{hint}; there are {', '.join(LIMITS)}")
        if not isinstance(value, int | float) or not value > 0:
            raise InputError(f"registry.json: limits.{name} = {value!r} must be a number above 0")
    return LIMITS | {name: float(value) for name, value in registry.limits.items()}


def check(
    registry: Registry, name: str, number: int, *, index: Path | None = None, texts: str | None = None,
    drift: Drift | None = None,
) -> Checked:  # fmt: skip
    """Let a version pass the gates, against the champion of now, and write the outcomes into the log.

    Args:
        index: a model that made the vectors of the index, if it is not in the registry.
        texts: a file of texts like those that are searched, or a directory with corpus, queries and judgements.
        drift: says of a version's directory whether the traffic is still what it was calibrated on, and why.

    Raises:
        InputError: no such version. DataError: `texts` cannot be used. And as `writing`.
    """
    model = model_of(registry, name)
    version, limits, given = model.version(number), limits_of(registry), search(texts) if texts else None
    champion = None if model.champion is None else model.versions[model.champion]
    opened: dict[tuple[Path, bool], Runnable] = {}
    trial = Trial(
        registry, model, version, champion, index_of(registry, model, version, index), given, drift, limits,
        partial(_opened, opened),
    )  # fmt: skip
    outcomes = [_outcome(gate, ask, trial) for gate, ask in GATES.items()]
    opened.clear()
    passed = all(outcome.state != "failed" for outcome in outcomes)
    facts = {"against": model.champion, "passed": passed, "space": _space(trial, outcomes)}
    with writing(registry, f"gates {name} {number}") as writer:
        writer.append("gates", name, version=number, outcomes=[asdict(outcome) for outcome in outcomes], **facts)
        return writer.model(name).versions[number].checks[-1]


def search(source: str) -> "SearchTexts":
    """`spaces.search_texts`, for those who do not import numpy before they must."""
    from bitwright.registry.spaces import search_texts

    return search_texts(source)


def index_of(registry: Registry, model: Model, version: Version, given: Path | None) -> tuple[Path, str] | None:
    """Whose vectors are in the index, and the id of their space.

    The given model; else the version that founded the champion's space, so that small steps cannot add up; without a
    champion, the float model that the version's record names, if it is still where it was.
    """
    if given is not None:
        return given, open_path(given).fingerprint
    if model.champion is not None:
        space = model.versions[model.champion].space
        served = [change.version for change in model.changes if not change.undone]
        founder = next(n for n in served if model.versions[n].space == space)
        return registry.version(model.name, founder), space
    record = _record(registry.version(model.name, version.number))
    source = Path((record and record.model.source) or "")
    if record is None or not source.is_dir() or source == Path():
        return None
    return (source, version.claimed) if open_path(source).fingerprint == version.claimed else None


def _outcome(gate: str, ask: "Gate", trial: Trial) -> Outcome:
    """What a gate says; an error of ours is a failure, with its reason."""
    try:
        state, detail, figures = ask(trial)
    except BitwrightError as error:
        state, detail, figures = "failed", str(error), {}
    return Outcome(gate, state, detail, figures)


def _space(trial: Trial, outcomes: list[Outcome]) -> str | None:
    """The id of the space of a version's vectors: that of the index if it was shown to be, a new one if not."""
    said = next(outcome for outcome in outcomes if outcome.gate == "space")
    if trial.index is None or not said.figures:  # it was not measured
        return None
    return trial.index[1] if said.state == "passed" else trial.version.content


def _record(place: Path) -> Record | None:
    return read_record(place) if (place / RECORD_FILE).exists() else None


def _opened(loaded: "dict[tuple[Path, bool], Runnable]", place: Path, *, quick: bool = False) -> "Runnable":
    """A model as `load` gives it; with `quick` on the engine, if that runs it."""
    from bitwright.runtime.load import load

    quick = quick and not open_path(place).is_quantized
    if (place, quick) not in loaded:
        try:
            loaded[place, quick] = load(place, compute="engine" if quick else "auto")
        except EngineError:
            loaded[place, quick] = load(place)
    return loaded[place, quick]


# -- the gates --------------------------------------------------------------------------------------------------------

Said = tuple[State, str, Mapping[str, Any]]
Gate = Callable[[Trial], Said]


def verdict(trial: Trial) -> Said:
    """Whether the record's verdict is good, and of these files."""
    record = _record(trial.place)
    if record is None:
        if not open_path(trial.place).is_quantized:
            return "skipped", "a float model, which has no verdict", {}
        return "failed", "there is no record.json, so nobody knows what quantizing cost; use `bitwright quantize`", {}
    evaluation, word = record.evaluation, verdict_word(record)
    figures = {} if evaluation is None else {"loss": evaluation.loss, "upper": evaluation.loss_upper,
                                             "max_loss": evaluation.max_loss}  # fmt: skip
    if record.size.checkpoint_bytes not in (None, trial.version.bytes):
        told = record.size.checkpoint_bytes
        return "failed", f"the record is of {told} bytes of weights, and here are {trial.version.bytes}", figures
    if word == "met" or (evaluation is not None and word == "undecided" and evaluation.accepted_point_estimate):
        return "passed", (evaluation.sentence if evaluation else None) or "the budget is met", figures
    if word is None:
        return "failed", "the record has no verdict: it was quantized without a budget; use --max-loss", figures
    return "failed", f"the verdict is {word!r}: {(evaluation and evaluation.sentence) or ''}".rstrip(": "), figures


def size(trial: Trial) -> Said:
    """Whether the weight files are at most `limits.size` times as large as the champion's."""
    if trial.champion is None:
        return "skipped", "there is no champion to compare with", {}
    ratio, limit = trial.version.bytes / max(1, trial.champion.bytes), trial.limits["size"]
    detail = f"{ratio:.2f} times the champion's {trial.champion.bytes / 1e6:.1f} MB, at most {limit:g} times"
    return "passed" if ratio <= limit else "failed", detail, {"ratio": ratio, "limit": limit}


def signature(trial: Trial) -> Said:
    """Whether the files are those of the manifest that the log names, and match their signature."""
    changed = changed_files(trial.place, trial.version.content)
    if changed:
        raise RegistryError(f"files that are not as they were added: {', '.join(changed[:5])}")
    signed = trial.place.with_name(f"{trial.place.name}.sig")
    if not trial.version.signed or not installed():
        why = "is not signed" if not trial.version.signed else "has a signature, but model-signing is not installed"
        return "passed", f"every file is as the signed log says; the version {why}", {}
    check_signature(trial.place, signed, trial.registry.root / KEY / PUBLIC)
    return "passed", "every file is as the signed log says, and as model-signing signed it", {}


def latency(trial: Trial) -> Said:
    """Whether the 95th percentile of a call is at most `limits.latency` times the champion's."""
    if trial.champion_place is None:
        return "skipped", "there is no champion to compare with", {}
    from bitwright.registry.latency import latency_ratio

    limit = trial.limits["latency"]
    candidate, champion = trial.opened(trial.place), trial.opened(trial.champion_place)
    texts = _search_texts(trial, candidate).queries
    found = latency_ratio(candidate, champion, texts[:: max(1, len(texts) // _TIMED)][:_TIMED], limit=limit)
    fast = found.ratio <= limit if found.lower <= limit < found.upper else found.upper <= limit
    detail = (
        f"p95 of a call {found.candidate_ms:.2f} ms, {found.ratio:.2f} times the champion's {found.champion_ms:.2f} ms "
        f"(90 % interval {found.lower:.2f} to {found.upper:.2f}), at most {limit:g} times"
    )
    return "passed" if fast else "failed", detail, asdict(found) | {"limit": limit}


def drift(trial: Trial) -> Said:
    """Whether the traffic is still like the calibration texts, as the caller's function says."""
    if trial.drift is None:
        return "skipped", "no watch of the traffic was given", {}
    same, why = trial.drift(trial.place)
    return "passed" if same else "failed", why, {}


def space(trial: Trial) -> Said:
    """Whether the candidate's queries find what they should in the index of other vectors."""
    if trial.version.task != "embedding":
        return "skipped", "it makes no vectors that an index could hold", {}
    if trial.index is None:
        return "skipped", "there is no champion, and its float model is not where it was: it founds a space", {}
    from bitwright.registry.spaces import compare, encoded

    place, limit = trial.index[0], trial.limits["agreement"]
    candidate, reference = trial.opened(trial.place, quick=True), trial.opened(place, quick=True)
    if candidate.width != reference.width:
        return "failed", f"vectors of {candidate.width} values do not fit an index of {reference.width}; re-index", {}
    texts = _search_texts(trial, reference)
    found = compare(texts, encoded(candidate, texts), encoded(reference, texts))
    said = f"{found.lower:.1%} of the ten nearest documents at least (95 % sure), {limit:.0%} are needed"
    if found.ndcg is not None:
        before, asked, mixed = found.ndcg
        said += f"; nDCG@10 {before:.3f}, with its queries {asked:.3f}, in a mixed index {mixed:.3f}"
    if found.lower >= limit:
        return "passed", f"its queries find {said}", asdict(found) | {"limit": limit}
    said = f"its queries find {said}. Its vectors do not belong to the index that is there: re-index all documents"
    return "failed", said, asdict(found) | {"limit": limit}


def _search_texts(trial: Trial, model: "Runnable") -> "SearchTexts":
    from bitwright.registry.spaces import builtin_search

    return trial.texts or builtin_search(model)


# In the order in which they are asked; nothing is spared after one that failed, so that a person sees all there is.
GATES: dict[str, Gate] = {
    "verdict": verdict, "size": size, "signature": signature, "latency": latency, "drift": drift, "space": space
}  # fmt: skip
