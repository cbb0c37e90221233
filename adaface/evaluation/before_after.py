"""What a fine-tuning has brought: the pretrained and the fine-tuned model on the same pairs, clear and blurred.

The pairs are those of the run's verification sets; blurred are the same pairs, each image degraded as by ``folder
--degrade blur`` (``evaluation/degradation.py``). Numbers, differences and intervals are those of ``pairs --compare``.
What is said in words goes by the accuracy: better or worse where the 95 % interval of the difference does not hold 0,
and otherwise that no difference is shown, which is not the same as that there is none.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaface.data.image_list import PairSetImages
from adaface.data.pair_sets import PairSet
from adaface.evaluation.degradation import DegradedImages
from adaface.evaluation.folder import degradation_note
from adaface.evaluation.model_comparison import ModelComparison
from adaface.evaluation.pair_comparison import FAR, compare_pair_lists
from adaface.evaluation.verification import PairList
from adaface.metrics.outcome import EmbedImages
from adaface.system.files import write_atomically

PRETRAINED, FINETUNED = "pretrained", "fine-tuned"
FILE = "comparison.json"
_MEASURE = "accuracy"
_FEWEST_IMPOSTORS = math.ceil(1 / FAR)


def comparable_sets(pair_sets: Mapping[str, PairSet]) -> dict[str, PairSet]:
    """Return the sets that two models can be compared on; to be asked before a training too.

    Args:
        pair_sets: by name.

    Raises:
        ValueError: none has pairs of both kinds.
    """
    usable = {name: one for name, one in pair_sets.items() if one.issame.any() and not one.issame.all()}
    if not usable:
        raise ValueError(
            f"none of the verification sets ({', '.join(pair_sets)}) has pairs of one person and of two people: there "
            "is nothing to compare the models on"
        )
    return usable


def compare_before_after(
    pretrained: EmbedImages, finetuned: EmbedImages, pair_sets: Mapping[str, PairSet], folder: Path, *, seed: int
) -> ModelComparison:
    """Verify the pairs of a run's sets, clear and blurred, with both models.

    Args:
        pretrained: the model before.
        finetuned: the model after.
        pair_sets: by name; those without pairs of both kinds are left out.
        folder: of the run.
        seed: of the degradation.

    Raises:
        ValueError: no set has pairs of both kinds, or images cannot be used.
    """
    usable = comparable_sets(pair_sets)
    pair_lists = []
    for pair_set in usable.values():
        images = PairSetImages(pair_set, folder)
        clear = PairList(images, pair_set.issame, pair_set.identities)
        pair_lists += [clear, replace(clear, images=DegradedImages(images, seed))]
    enough = min(int((~one.issame).sum()) for one in usable.values()) >= _FEWEST_IMPOSTORS
    models = {PRETRAINED: pretrained, FINETUNED: finetuned}
    comparison = compare_pair_lists(models, pair_lists, "before and after fine-tuning", far=FAR if enough else None)
    notes = (
        f"blurred: {degradation_note('all', strength=1.0, seed=seed).replace('gallery and probes', 'all images')}",
        f"the {FINETUNED} model is that of the best validation, chosen on these very pairs where they are not blurred",
    )
    return replace(comparison, notes=(*notes, *comparison.notes))


def verdict(comparison: ModelComparison) -> list[str]:
    """Say in words whether fine-tuning has made the model better or worse, set by set.

    Args:
        comparison: of ``compare_before_after``.
    """
    lines, worse = [], []
    for condition in comparison.conditions:
        one = comparison.differences[FINETUNED, condition, _MEASURE]
        low, high = (100 * end for end in one.interval)
        told = f"{100 * one.difference:+.2f} points of accuracy, 95 % interval [{low:+.2f}, {high:+.2f}]"
        if low > 0:
            lines.append(f"{condition}: fine-tuning made it better ({told})")
        elif high < 0:
            lines.append(f"{condition}: fine-tuning made it WORSE ({told})")
            worse.append(condition)
        else:
            lines.append(f"{condition}: no difference is shown ({told})")
    if worse:
        lines.append(
            f"fine-tuning has harmed the model on {', '.join(worse)}: keep the pretrained one there, or try a lower "
            "--lr, fewer --epochs, --freeze_stages, --freeze_batch_norm, or more images"
        )
    return lines


def write_before_after(comparison: ModelComparison, words: Sequence[str], folder: Path) -> None:
    """Write ``comparison.json``: all numbers, the differences, and what was said in words.

    Args:
        comparison: of ``compare_before_after``.
        words: of ``verdict``.
        folder: of the run.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    rows: list[dict[str, Any]] = []
    for (model, condition), outcome in comparison.outcomes.items():
        row: dict[str, Any] = {"model": model, "condition": condition, **outcome.as_dict()}
        row["differences"] = {
            name: {
                "difference": 100 * one.difference,
                "interval": [100 * end for end in one.interval],
                "p_value": one.p_value,
            }
            for name in comparison.shown
            if (one := comparison.differences.get((model, condition, name))) is not None
        }
        rows.append(row)
    content = {"unit": "percent", "verdict": list(words), "notes": list(comparison.notes), "models": rows}
    write_atomically(folder / FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")
