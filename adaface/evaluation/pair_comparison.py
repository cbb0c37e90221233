"""Comparison of several models on the same verification pairs: ``pairs --compare a.ckpt b.ckpt``.

For each set: 10-fold accuracy, area under the ROC curve and TAR at one FAR, with the difference of each model to the
first, its 95% interval and p-value (``metrics.comparison``). The tests are paired: a difference can be significant even
if the models' own intervals overlap.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from adaface.config.choices import FAR
from adaface.evaluation.model_comparison import ModelComparison
from adaface.evaluation.verification import PairList, VerifiedSet, open_pair_lists, verify
from adaface.metrics.comparison import Comparison, compare_auc, compare_decisions, compare_tar
from adaface.metrics.outcome import EmbedImages, Outcome
from adaface.metrics.results import SetResult


def compare_on_pairs(
    models: Mapping[str, EmbedImages], root: str | Path, names: Sequence[str] = (), *, far: float = FAR, limit: int = 0
) -> ModelComparison:
    """Verify the pairs of all or of some sets with each model.

    Args:
        models: models by name, at least one; the others are compared with the first.
        root: as in ``verification.run``.
        names: as in ``verification.run``.
        far: false accept rate of the TAR, in (0, 1).
        limit: as in ``verification.run``.

    Raises:
        FileNotFoundError: as in ``verification.run``.
        ValueError: as in ``verification.run``; or too few impostor pairs for the FAR.
    """
    return compare_pair_lists(models, list(open_pair_lists(root, names, limit)), Path(root).name, far=far)


def compare_pair_lists(
    models: Mapping[str, EmbedImages], pair_lists: Sequence[PairList], data: str, *, far: float | None = FAR
) -> ModelComparison:
    """Verify lists of pairs with each model.

    Args:
        models: as in ``compare_on_pairs``.
        pair_lists: lists of pairs with different names.
        data: name of the data, for the caption.
        far: as in ``compare_on_pairs``; None leaves the TAR out.

    Raises:
        ValueError: images that cannot be read; or too few impostor pairs for the FAR.
    """
    verified_sets = {model: [verify(embed, pair_list) for pair_list in pair_lists] for model, embed in models.items()}
    measured = _measures(far)
    first = next(iter(models))
    outcomes: dict[tuple[str, str], Outcome] = {}
    differences: dict[tuple[str, str, str], Comparison] = {}
    for number, of_first in enumerate(verified_sets[first]):
        _check_enough(of_first.result, far)
        name_of_set = of_first.result.name
        for model, verified in verified_sets.items():
            compared = {name: measure(of_first, verified[number]) for name, measure in measured.items()}
            outcomes[model, name_of_set] = _outcome(verified[number].result, compared)
            if model != first:
                differences |= {(model, name_of_set, name): one for name, one in compared.items()}
    results = [verified.result for of_model in verified_sets.values() for verified in of_model]
    notes = tuple(dict.fromkeys(f"{result.name}: {note}" for result in results for note in result.notes))
    sets = tuple(verified.result.name for verified in verified_sets[first])
    return ModelComparison(data, tuple(models), sets, outcomes, differences, notes, "pairs", tuple(measured))


def _measures(far: float | None) -> dict[str, Callable[[VerifiedSet, VerifiedSet], Comparison]]:
    """Return the compared measures by name."""
    measures: dict[str, Callable[[VerifiedSet, VerifiedSet], Comparison]] = {
        "accuracy": lambda a, b: compare_decisions(a.result.correct, b.result.correct, a.identities),
        "AUC": lambda a, b: compare_auc(a.result.similarity, b.result.similarity, a.result.issame, a.identities),
    }
    if far is not None:
        measures[f"TAR at FAR {far:g}"] = lambda a, b: compare_tar(
            a.result.similarity, b.result.similarity, a.result.issame, far, a.identities
        )
    return measures


def _check_enough(result: SetResult, far: float | None) -> None:
    if far is None and result.genuine and result.impostors:
        return
    far = FAR if far is None else far
    if not result.genuine or result.pairs < 2 or far * result.impostors < 1:
        both = result.genuine and result.impostors  # no rate is measured without
        raise ValueError(
            f"{result.name} has {result.genuine:,} genuine and {result.impostors:,} impostor pairs; a comparison at "
            f"FAR {far:g} needs genuine pairs and at least {int(np.ceil(1 / far)):,} impostor pairs: "
            f"{'use a higher --target_far' if both else 'leave the set out'}, or add pairs"
        )


def _outcome(result: SetResult, compared: Mapping[str, Comparison]) -> Outcome:
    """Return a model's own numbers, with intervals as far as the set's result has them."""
    known = {"accuracy": "accuracy", "AUC": "auc"}
    known |= {f"TAR at FAR {far:g}": f"tar_at_far_{far:g}" for far in result.tar_at_far}
    return Outcome(
        "pairs",
        result.name,
        {name: 100 * one.second for name, one in compared.items()},
        {name: result.intervals[known[name]] for name in compared if known.get(name) in result.intervals},
        result.notes,
    )
