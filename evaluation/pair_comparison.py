"""Several models on the same verification pairs: ``pairs --compare a.ckpt b.ckpt``.

For each set the 10-fold accuracy, the area under the ROC curve and TAR at one FAR, with the difference of each model to
the first, its 95% interval and p-value (``evaluation.comparison``): pairs that both models decide alike tell nothing
about which is better, so such a difference is surer than the models' own intervals suggest.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.comparison import Comparison, compare_auc, compare_decisions, compare_tar
from evaluation.model_comparison import ModelComparison
from evaluation.outcome import EmbedImages, Outcome
from evaluation.verification import run
from results import SetResult

FAR = 1e-2


def compare_on_pairs(
    models: Mapping[str, EmbedImages], root: str | Path, names: Sequence[str] = (), *, far: float = FAR, limit: int = 0
) -> ModelComparison:
    """Verify the pairs of all sets, or of those that are named, with each model.

    Args:
        models: by name, at least one; the others are compared with the first.
        root: as ``verification.run``.
        names: as ``verification.run``.
        far: false accept rate of the TAR, in (0, 1).
        limit: as ``verification.run``.

    Raises:
        FileNotFoundError: as ``verification.run``.
        ValueError: as ``verification.run``; or too few impostor pairs for the FAR.
    """
    found = {model: [verified.result for verified in run(embed, root, names, limit)] for model, embed in models.items()}
    shown = ("accuracy", "AUC", f"TAR at FAR {far:g}")
    first = next(iter(models))
    outcomes: dict[tuple[str, str], Outcome] = {}
    differences: dict[tuple[str, str, str], Comparison] = {}
    for number, of_first in enumerate(found[first]):
        _check_enough(of_first, far)
        measured = dict(zip(shown, _measures(far), strict=True))
        for model, results in found.items():
            compared = {name: measure(of_first, results[number]) for name, measure in measured.items()}
            outcomes[model, of_first.name] = _outcome(results[number], compared)
            if model != first:
                differences |= {(model, of_first.name, name): one for name, one in compared.items()}
    notes = dict.fromkeys(
        f"{result.name}: {note}" for results in found.values() for result in results for note in result.notes
    )
    sets = tuple(result.name for result in found[first])
    return ModelComparison(Path(root).name, tuple(models), sets, outcomes, differences, tuple(notes), "pairs", shown)


def _measures(far: float) -> tuple[Callable[[SetResult, SetResult], Comparison], ...]:
    return (
        lambda first, second: compare_decisions(first.correct, second.correct),
        lambda first, second: compare_auc(first.similarity, second.similarity, first.issame),
        lambda first, second: compare_tar(first.similarity, second.similarity, first.issame, far),
    )


def _check_enough(result: SetResult, far: float) -> None:
    if not result.genuine or result.pairs < 2 or far * result.impostors < 1:
        raise ValueError(
            f"{result.name} has {result.genuine:,} genuine and {result.impostors:,} impostor pairs; a comparison at "
            f"FAR {far:g} needs genuine ones, and {int(np.ceil(1 / far)):,} of the others: give a higher --target_far"
        )


def _outcome(result: SetResult, compared: Mapping[str, Comparison]) -> Outcome:
    """Return a model's own numbers; intervals are of those that the set's result has."""
    known = {"accuracy": "accuracy", "AUC": "auc"}
    known |= {f"TAR at FAR {far:g}": f"tar_at_far_{far:g}" for far in result.tar_at_far}
    return Outcome(
        "pairs",
        result.name,
        {name: 100 * one.second for name, one in compared.items()},
        {name: result.intervals[known[name]] for name in compared if known.get(name) in result.intervals},
        result.notes,
    )
