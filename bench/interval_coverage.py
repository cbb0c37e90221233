"""How often do 95% intervals hold the truth? Synthetic scores whose true rates are known in closed form.

    python -m bench.interval_coverage            # 1,000 repeats of each case; exits with 1 where one misses
    python -m bench.interval_coverage --quick    # 100 repeats, nothing is judged

Genuine and impostor scores are normal. In the cases with identities each score has a part that belongs to the people of
the pair, so that pairs of the same person move together; the rates of all people together are the truth.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from adaface.metrics.intervals import Interval, accuracy_interval, auc_interval, eer_interval, tar_intervals
from adaface.metrics.verification import evaluate

WANTED = (0.93, 0.97)
_FARS = (1e-1, 1e-2, 1e-3)
_SCALE = 0.08  # of a standard deviation, as a cosine
_FEWEST = 5  # expected errors, and impostor scores above the threshold, for an interval to be exact


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

    def is_edge(self, name: str) -> bool:
        """Return whether so few errors are expected that a rate's interval can only be on the safe side."""
        truth = self.truth(_FARS)
        pairs = self.pairs if name in ("accuracy", "EER") else self.pairs / 2
        rate = truth["EER"] if name in ("accuracy", "AUC", "EER") else 1 - truth[name]
        accepted = float(name.partition("@")[2] or 1) * self.pairs / 2
        return min(rate * pairs, accepted) < _FEWEST

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
        "accuracy": accuracy_interval(embeddings, issame, thresholds, who),
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
    fars = tuple(far for far in _FARS if far * case.pairs / 2 >= 1)
    truth = case.truth(fars)
    held = dict.fromkeys(truth, 0)
    width = dict.fromkeys(truth, 0.0)
    for repeat in range(repeats):
        similarity, issame, who = case.draw(np.random.default_rng((seed, repeat)))
        for name, (low, high) in intervals(similarity, issame, None if blind else who, fars, repeat).items():
            held[name] += low <= truth[name] <= high
            width[name] += high - low
    return {name: (held[name] / repeats, width[name] / repeats) for name in truth}


INDEPENDENT = [Case(600, 1), Case(600, 2), Case(600, 4), Case(1200, 3), Case(6000, 2), Case(6000, 4), Case(6000, 6)]
SHARED = [Case(2000, 2, 100, 0.3), Case(6000, 2, 300, 0.3), Case(6000, 4, 1000, 0.3)]


def misses(case: Case, measured: dict[str, tuple[float, float]]) -> list[str]:
    """Return the rates whose intervals hold the truth too rarely, or too often where errors are not few."""
    low, high = WANTED
    return [name for name, (held, _) in measured.items() if held < low or (held > high and not case.is_edge(name))]


def main() -> int:
    """Measure, print, judge; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 repeats instead of 1,000: does it run?")
    parser.add_argument("--repeats", type=int, default=1000, help="draws of each case (default 1000)")
    chosen = parser.parse_args()
    repeats = 100 if chosen.quick else chosen.repeats
    failed = False
    print(f"share of {repeats} repeats that hold the truth, %  (mean width, %); * few errors: at least {WANTED[0]:.0%}")
    for case, blind in [*((case, False) for case in INDEPENDENT), *((c, b) for c in SHARED for b in (False, True))]:
        measured = coverage(case, repeats, blind=blind)
        missed = [] if blind else misses(case, measured)
        failed |= bool(missed)
        told = f", {case.people} people" + (", not told" if blind else "") if case.people else ""
        print(f"{case.pairs} pairs, distance {case.distance}{told}")
        for name, (held, width) in measured.items():
            marks = "*" * case.is_edge(name) + (" MISSED" if name in missed else "")
            print(f"  {name:<10} {100 * held:5.1f}  ({100 * width:.3g}){marks}", flush=True)
    return int(failed and not chosen.quick)


if __name__ == "__main__":
    sys.exit(main())
