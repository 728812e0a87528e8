"""In words: on what text a loss was measured, how much of it, of which kinds, and which kind loses most."""

from collections.abc import Sequence

from bitwright.record import Elsewhere, Evaluation, KindRow
from bitwright.report.wording import listed, number, percent

_NAMED = 4  # languages, or kinds


def judged_on(evaluation: Evaluation, named: int = _NAMED) -> str:
    """What decided: "990 built-in texts of 18 kinds, in English, German, French and 3 more"; "40 held-out windows".

    named: so many languages are named.
    """
    what = f"{number(evaluation.n_held_out)} {{}}{evaluation.metric.unit or 'samples'}"
    if not evaluation.kinds:
        source = f" of {evaluation.texts}" if evaluation.texts else ""
        return what.format("held-out ") + source
    return (
        f"{what.format('built-in ')} of {len(evaluation.kinds)} kinds{_in_languages(evaluation.languages or (), named)}"
    )


def worst_kind(kinds: Sequence[KindRow]) -> str:
    """ "most on queries, 0.2 %"; nothing without kinds."""
    worst = max(kinds, key=lambda row: row.loss, default=None)
    return f"most on {worst.kind}, {percent(worst.loss)}" if worst else ""


def elsewhere_words(elsewhere: Elsewhere) -> str:
    """What stands beside the user's own text: the loss on built-in texts."""
    kinds = f"{number(elsewhere.n)} built-in texts of {len(elsewhere.kinds)} kinds"
    bound = f"at most {percent(elsewhere.loss_upper)} on a new kind"
    return f"{percent(elsewhere.loss)} on {kinds} ({worst_kind(elsewhere.kinds)}); {bound}"


def _in_languages(languages: Sequence[str], named: int) -> str:
    if not languages:
        return ""
    names, more = list(languages[:named]), len(languages) - named
    if more > 0:
        names.append(f"{more} more language{'s' * (more != 1)}")
    return f" in {listed(names)}"
