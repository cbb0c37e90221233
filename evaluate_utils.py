"""Verification metrics, under the official import path: ``from evaluate_utils import evaluate``.

The code is in ``adaface/metrics/verification.py``.
"""

from verification_metrics import auc as auc
from verification_metrics import best_accuracy as best_accuracy
from verification_metrics import eer as eer
from verification_metrics import evaluate as evaluate
from verification_metrics import fold_decisions as fold_decisions
from verification_metrics import fuse_flip as fuse_flip
from verification_metrics import pair_similarities as pair_similarities
from verification_metrics import roc as roc
from verification_metrics import tar_at_far as tar_at_far
