"""The effect of fine-tuning: the pretrained and the fine-tuned model on the same pairs, clear and blurred.

The pairs are those of the run's verification sets; the blurred pairs are the same ones, with each image degraded as by
``folder --degrade blur`` (``evaluation/degradation.py``). Numbers, differences and intervals are those of ``pairs
--compare``.
The verdict is based on accuracy: better or worse if the 95 % interval of the difference excludes 0. Otherwise the
result is inconclusive, which does not mean that there is no difference.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaface.config.choices import FAR
from adaface.data.image_list import PairSetImages
from adaface.data.pair_sets import PairSet
from adaface.evaluation.degradation import DegradedImages
from adaface.evaluation.folder import degradation_note
from adaface.evaluation.model_comparison import ModelComparison
from adaface.evaluation.pair_comparison import compare_pair_lists
from adaface.evaluation.verification import PairList
from adaface.metrics.outcome import EmbedImages
from adaface.system.files import write_atomically

PRETRAINED, FINETUNED = "pretrained", "fine-tuned"
FILE = "comparison.json"
_MEASURE = "accuracy"
_FEWEST_IMPOSTORS = math.ceil(1 / FAR)


def comparable_sets(pair_sets: Mapping[str, PairSet]) -> dict[str, PairSet]:
    """Return the sets that two models can be compared on; also used as a check before training.

    Args:
        pair_sets: verification sets by name.

    Raises:
        ValueError: no set has both genuine and impostor pairs.
    """
    usable = {name: one for name, one in pair_sets.items() if one.issame.any() and not one.issame.all()}
    if not usable:
        raise ValueError(
            f"none of the verification sets ({', '.join(pair_sets)}) has both genuine and impostor pairs: at least one "
            "is needed to compare the models"
        )
    return usable


def compare_before_after(
    pretrained: EmbedImages, finetuned: EmbedImages, pair_sets: Mapping[str, PairSet], folder: Path, *, seed: int
) -> ModelComparison:
    """Verify the pairs of a run's sets, clear and blurred, with both models.

    Args:
        pretrained: model before fine-tuning.
        finetuned: model after fine-tuning.
        pair_sets: verification sets by name; those without both genuine and impostor pairs are skipped.
        folder: run folder.
        seed: random seed of the degradation.

    Raises:
        ValueError: no set has both genuine and impostor pairs, or images cannot be read.
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
        f"the {FINETUNED} model is the checkpoint of the best validation, which was chosen on the same (clear) pairs",
    )
    return replace(comparison, notes=(*notes, *comparison.notes), title="Verification before and after fine-tuning")


def verdict(comparison: ModelComparison) -> list[str]:
    """Return lines that say for each set whether fine-tuning improved the model.

    Args:
        comparison: result of ``compare_before_after``.
    """
    lines, worse = [], []
    for condition in comparison.conditions:
        one = comparison.differences[FINETUNED, condition, _MEASURE]
        low, high = (100 * end for end in one.interval)
        effect = f"{100 * one.difference:+.2f} points of accuracy, 95 % interval [{low:+.2f}, {high:+.2f}]"
        if low > 0:
            lines.append(f"{condition}: fine-tuning made it better ({effect})")
        elif high < 0:
            lines.append(f"{condition}: fine-tuning made it WORSE ({effect})")
            worse.append(condition)
        else:
            lines.append(f"{condition}: no significant difference ({effect})")
    if worse:
        lines.append(
            f"fine-tuning made the model worse on {', '.join(worse)}: use the pretrained one there, or try a lower "
            "--lr, fewer --epochs, --freeze_stages, --freeze_batch_norm, or more images"
        )
    return lines


def write_before_after(comparison: ModelComparison, words: Sequence[str], folder: Path) -> None:
    """Write ``comparison.json``: all numbers, the differences, and the verdict in words.

    Args:
        comparison: result of ``compare_before_after``.
        words: result of ``verdict``.
        folder: run folder.

    Raises:
        OSError: it cannot be written; an existing file is left unchanged.
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
