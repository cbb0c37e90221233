"""How often do 95% intervals hold the truth? Synthetic scores whose true rates are known in closed form.

    python -m bench.interval_coverage            # 1,000 repeats of each case; exits with 1 where one misses
    python -m bench.interval_coverage --quick    # 100 repeats, nothing is judged

Genuine and impostor scores are normal. In the cases with identities each score has a part that belongs to the people of
the pair, so that pairs of the same person move together; the rates of all people together are the truth.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from evaluate_utils import evaluate
from evaluation.intervals import Interval, accuracy_interval, auc_interval, eer_interval, tar_intervals

WANTED = (0.93, 0.97)
_SCALE = 0.08  # of a standard deviation, as a cosine


@dataclass(frozen=True)
class Case:
    """Synthetic pairs.

    Attributes:
        pairs: half of them genuine.
        distance: between the means of genuine and impostor scores, in standard deviations.
        people: identities; 0 where all pairs are of different people.
        shared: the part of a score's variance that belongs to its people.
    """

    pairs: int
    distance: float
    people: int = 0
    shared: float = 0.0

    def truth(self, fars: tuple[float, ...]) -> dict[str, float]:
        """Return the true rates: of the best threshold, and of the population."""
        tars = {f"TAR@{far:g}": float(norm.sf(norm.isf(far) - self.distance)) for far in fars}
        half = self.distance / 2
        return {
            "accuracy": float(norm.cdf(half)),
            **tars,
            "AUC": float(norm.cdf(self.distance / np.sqrt(2))),
            "EER": float(norm.sf(half)),
        }

    def draw(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return cosines (P,), issame (P,), and the people (P, 2) where they are known."""
        issame = np.arange(self.pairs) % 2 == 0
        if not self.people:
            return _SCALE * (generator.standard_normal(self.pairs) + self.distance * issame), issame, None
        first = generator.integers(self.people, size=self.pairs)
        second = (first + generator.integers(1, self.people, size=self.pairs)) % self.people
        who = np.stack((first, np.where(issame, first, second)), axis=1)
        alone, met = generator.standard_normal((2, self.people))  # among one's own images, among those of others
        part = np.where(issame, alone[first], (met[who[:, 0]] + met[who[:, 1]]) / np.sqrt(2))
        noise = generator.standard_normal(self.pairs)
        score = np.sqrt(self.shared) * part + np.sqrt(1 - self.shared) * noise
        return _SCALE * (score + self.distance * issame), issame, who


def intervals(
    similarity: np.ndarray, issame: np.ndarray, who: np.ndarray | None, fars: tuple[float, ...], seed: int
) -> dict[str, Interval]:
    """Return the intervals of one draw, by the names of ``Case.truth``."""
    embeddings = np.zeros((2 * len(issame), 2))
    embeddings[0::2, 0] = 1
    embeddings[1::2] = np.stack((similarity, np.sqrt(1 - similarity**2)), axis=1)
    thresholds = evaluate(embeddings, issame)[3]
    tars = tar_intervals(similarity, issame, fars, who, seed)
    return {
        "accuracy": accuracy_interval(embeddings, issame, thresholds, who, seed),
        **{f"TAR@{far:g}": interval for far, interval in tars.items()},
        "AUC": auc_interval(similarity, issame, who),
        "EER": eer_interval(similarity, issame, who),
    }


def coverage(case: Case, repeats: int, *, blind: bool = False, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Measure how often the intervals hold the truth.

    Args:
        case: what is drawn.
        repeats: how often.
        blind: do not tell the intervals who is on the images.
        seed: of the draws.

    Returns:
        For each rate the share of repeats, and the mean width.
    """
    fars = tuple(far for far in (1e-1, 1e-2, 1e-3) if far * case.pairs / 2 >= 1)
    truth = case.truth(fars)
    held = dict.fromkeys(truth, 0)
    width = dict.fromkeys(truth, 0.0)
    for repeat in range(repeats):
        similarity, issame, who = case.draw(np.random.default_rng((seed, repeat)))
        for name, (low, high) in intervals(similarity, issame, None if blind else who, fars, repeat).items():
            held[name] += low <= truth[name] <= high
            width[name] += high - low
    return {name: (held[name] / repeats, width[name] / repeats) for name in truth}
