"""What the user asks for: texts, metric, recipe and options of a run."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitwright.errors import RecipeError
from bitwright.families.tasks import TaskName
from bitwright.recipe import Recipe, read_recipe
from bitwright.record import Tuning
from bitwright.search.smallest import check_goal
from bitwright.targets import check_names

RECIPE_FILE = "recipe.yaml"
STUDY_FOLDER = "tuning"


@dataclass(frozen=True, slots=True)
class Texts:
    """The sources of the texts and of the metric.

    data: sources for the label-free metric and for calibration, as `--data` takes them; () means built-in prose.
    evaluation: labelled data; metric: "file.py:function". With neither, agreement with the float model decides.
    samples: texts for the label-free metric, tuning and held-out together.
    """

    data: tuple[str, ...] = ()
    evaluation: str | None = None
    kind: str | None = None
    metric: str | None = None
    samples: int = 1000


@dataclass(frozen=True, slots=True)
class TrainingAsked:
    """How a run shall train. minutes or steps: for how long. texts, labels: what on; built-in texts without either.
    teacher: another model than the float one. rate: of the weights, in steps of their grids; None takes one for the
    task. only_if_over: whether only a result that is not inside the budget is trained.
    """

    minutes: float | None = None
    steps: int | None = None
    texts: tuple[str, ...] = ()
    labels: str | None = None
    teacher: str | None = None
    rate: float | None = None
    only_if_over: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run shall do besides carrying out the recipe.

    out: directory of the result; overwrite: whether what is there may be replaced. judged: evaluate, search for a
    fallback, verify. sensitivity: of every layer of an encoder, for the report. speed: time the result.
    command: what a person would type to do this again. training: whether and how to train. tuning: the study that chose
    the recipe; study_files: what the result keeps of it, by name.
    """

    out: Path
    overwrite: bool
    judged: bool
    sensitivity: bool
    speed: bool
    command: str
    training: TrainingAsked | None = None
    tuning: Tuning | None = None
    study_files: Mapping[str, Path] = field(default_factory=dict)


def make_texts(
    data: str | Sequence[str], evaluation: str | Path | None, kind: str | None, metric: str | None, samples: int
) -> Texts:
    """`Texts` from the arguments of the public functions, which may give one source as a plain string."""
    sources = (data,) if isinstance(data, str) else tuple(map(str, data))
    sources = () if sources == ("builtin",) else sources  # as without any
    return Texts(sources, None if evaluation is None else str(evaluation), kind, metric, samples)


def resolve_recipe(
    recipe: Recipe | str | Path | None, max_loss: float | None = None, min_speedup: float | None = None,
    targets: str | Sequence[str] | None = None, goal: str | None = None,
) -> Recipe:  # fmt: skip
    """The recipe of a run: given, read from a path, or the default. A given budget and given targets replace its own.

    Raises:
        RecipeError: unreadable, malformed, a budget out of range, or a goal beside schemes. TargetError: a target
            that nobody knows.
    """
    resolved = recipe if isinstance(recipe, Recipe) else Recipe() if recipe is None else read_recipe(Path(recipe))
    if max_loss is not None and not (isinstance(max_loss, float) and 0 < max_loss < 1):
        raise RecipeError(f"max_loss = {max_loss!r}: give a fraction between 0 and 1, such as 0.01 for 1 %")
    if min_speedup is not None and not (isinstance(min_speedup, int | float) and 0 < min_speedup <= 100):
        raise RecipeError(f"min_speedup = {min_speedup!r}: give a factor between 0 and 100, such as 1.3")
    if goal not in (None, "smallest"):
        raise RecipeError(f'goal = {goal!r}: give "smallest" or None')
    given = {"max_loss": max_loss, "min_speedup": min_speedup, "goal": goal}
    changed = {key: value for key, value in given.items() if value is not None}
    update: dict[str, Any] = {"budget": resolved.budget.model_copy(update=changed)}
    if targets is not None:
        update["targets"] = (targets,) if isinstance(targets, str) else tuple(targets)
    resolved = resolved.model_copy(update=update)
    check_goal(resolved)
    check_names(resolved.targets or ())
    return resolved


def reproducing_command(
    model: str | Path, out: Path, recipe: Recipe, texts: Texts, task: TaskName | None = None
) -> str:
    """The command that makes the same result again, with the recipe that the result holds."""
    words = ["bitwright", "quantize", str(model), "--out", str(out), "--samples", str(texts.samples)]
    words += ["--task", task] if task else []
    words += ["--recipe", str(out / RECIPE_FILE)] if recipe != Recipe() else []
    words += [word for source in texts.data for word in ("--data", source)]
    for option, value in (("--eval", texts.evaluation), ("--kind", texts.kind), ("--metric", texts.metric)):
        words += [option, value] if value else []
    return shlex.join(words)
