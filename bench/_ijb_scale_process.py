"""One process of those whose time and memory `bench.ijb_scale` measures.

    python -m bench._ijb_scale_process SET ROOT

Evaluates SET (ijbc or tinyface) on the files in ROOT from random features, and prints seconds, peak memory, numbers.
The features stand for what a model gives: noise around a vector for each subject, so that the numbers are not trivial.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adaface.data.image_list import ImageList
from adaface.evaluation import ijb, tinyface
from adaface.metrics.outcome import Embedded, Outcome
from bench import timing

D = 512
_BLOCK = 8192  # images whose features are made at a time
_NOISE = {"ijbc": 7.0, "tinyface": 2.0}  # lengths of the noise, against 1 of the subject's vector


def random_embedded(subjects: np.ndarray, noise: float) -> Embedded:
    """Return features of images whose subjects are given, made in blocks so as to take no more memory than they do.

    Args:
        subjects: (N,) integers from 0.
        noise: length of what is added to the subject's unit vector.
    """
    rng = np.random.default_rng(0)
    centres = _unit(rng.standard_normal((int(subjects.max()) + 1, D), dtype=np.float32))
    embeddings = np.empty((len(subjects), D), dtype=np.float32)
    for start in range(0, len(subjects), _BLOCK):
        part = subjects[start : start + _BLOCK]
        directions = _unit(rng.standard_normal((len(part), D), dtype=np.float32))
        embeddings[start : start + _BLOCK] = _unit(centres[part] + noise * directions)
    norms = rng.uniform(5, 40, (len(subjects), 1)).astype(np.float32)
    return Embedded(embeddings, norms, np.ones(len(subjects), dtype=bool))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _timed(evaluate: Callable[[Callable[[ImageList], Embedded]], Outcome], noise: float, subjects: np.ndarray) -> dict:
    """Run a protocol; its time is without that of making features."""
    clocks = (time.perf_counter, time.process_time)  # the second is that of all threads, on a busy machine too
    making = np.zeros(2)

    def now() -> np.ndarray:
        return np.array([clock() for clock in clocks])

    def embed(images: ImageList) -> Embedded:
        started = now()
        embedded = random_embedded(subjects, noise)
        making[:] = now() - started
        return embedded

    started = now()
    outcome = evaluate(embed)
    seconds, processor_seconds = now() - started - making
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        # ru_maxrss would begin at the peak of the process that started this one
        "peak_bytes": timing._memory("VmHWM"),
        "pairs": len(outcome.similarity),
        "images": len(subjects),
        "numbers": dict(outcome.numbers),
    }


def main(kind: str, root: Path) -> None:
    """Measure and print."""
    subjects = np.load(root / f"{kind}_subjects.npy")  # of the images, in the protocol's order
    protocols = {
        "ijbc": lambda embed: ijb.run(embed, root, "IJBC"),
        "tinyface": lambda embed: tinyface.run(embed, root),
    }
    print(json.dumps(_timed(protocols[kind], _NOISE[kind], subjects)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
