"""IJB-C and TinyFace of full size, from features to all numbers: memory, time; template pooling against a loop.

    python -m bench.ijb_scale

Writes synthetic metadata in the layout of the real sets (IJB-C: 469,375 images, 23,124 templates, 15,658,489 pairs;
TinyFace: 3,728 probes, 4,443 images of the gallery, 153,428 distractors) to a temporary folder, and evaluates random
features of 512 numbers in a process of its own, whose peak memory is the kernel's count: interpreter, libraries and the
features themselves included. The baseline of the memory rows is what the evaluation may take, 4 and 2 GB. The
baseline of template pooling is a loop over templates and their media, as IJB evaluations are usually written.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.io import savemat

from adaface.evaluation.ijb_metadata import metadata_files
from adaface.evaluation.template_pooling import fused_features, pool_templates
from adaface.metrics.outcome import Embedded
from bench._ijb_scale_process import D, random_embedded
from bench.timing import Side, compare, compare_memory, options, report

_FULL = {"images": 469_375, "templates": 23_124, "pairs": 15_658_489, "subjects": 3_531}
_SMALL = {"images": 3_000, "templates": 300, "pairs": 5_000, "subjects": 60}
_TINY_FULL = {"probes": 3_728, "match": 4_443, "distractors": 153_428, "identities": 2_569}
_TINY_SMALL = {"probes": 40, "match": 60, "distractors": 300, "identities": 20}
_ALLOWED_BYTES = {"ijbc": 4e9, "tinyface": 2e9}
_SHARE = 5  # the loop over templates takes a fifth of them
_TOLERANCE = 1e-6


def write_ijbc(root: Path, images: int, templates: int, pairs: int, subjects: int) -> None:
    """Write the metadata of a synthetic IJB-C: each subject has one gallery template, the other templates are probes.

    As in the real set, pairs join gallery templates with probes, sizes of templates differ widely and some images of a
    template are of one medium.
    """
    rng = np.random.default_rng(0)
    (root / "IJBC" / "meta").mkdir(parents=True)
    (root / "IJBC" / "loose_crop").mkdir()
    files = metadata_files(root, "IJBC")
    ids = np.sort(rng.choice(10 * templates, templates, replace=False)) + 1
    subject = rng.permutation(np.concatenate((np.arange(subjects), rng.integers(0, subjects, templates - subjects))))
    gallery = np.unique(subject, return_index=True)[1]  # the first template of each subject
    probes = np.setdiff1d(np.arange(templates), gallery)

    weights = rng.lognormal(0, 1.3, templates)  # sizes of templates: many of a few images, a few of very many
    template = np.sort(
        np.concatenate((np.arange(templates), rng.choice(templates, images - templates, p=weights / weights.sum())))
    )
    names = np.char.add(np.arange(1, images + 1).astype(str), ".jpg")
    media = rng.integers(1, 150_000, images) // 3 * 3 if images > 100_000 else rng.integers(1, 9, images)
    media[1:] = np.where((template[1:] == template[:-1]) & (rng.random(images - 1) < 0.7), media[:-1], media[1:])
    _write(files["templates"], {"name": names, "template": ids[template], "media": media}, " ")
    points = rng.uniform(30, 90, (images, 10)).round(4)
    columns = {str(place): points[:, place] for place in range(10)}
    _write(files["landmarks"], {"name": names, **columns, "score": rng.random(images).round(4)}, " ")

    first, second = rng.choice(gallery, pairs), rng.choice(probes, pairs)
    mated = rng.random(pairs) < 0.00125  # 19,557 of the real 15,658,489
    first[mated] = gallery[subject[second[mated]]]
    same = (subject[first] == subject[second]).astype(int)
    _write(files["pairs"], {"first": ids[first], "second": ids[second], "same": same}, " ")
    halves = np.array_split(gallery, 2)
    for path, part in ((files["gallery G1"], halves[0]), (files["gallery G2"], halves[1]), (files["probes"], probes)):
        part = np.repeat(part, 3)  # a template is named once for each of its images
        table = {"TEMPLATE_ID": ids[part], "SUBJECT_ID": subject[part], "FILENAME": np.full(len(part), "img/1.jpg")}
        _write(path, table, ",")
    np.save(root / "ijbc_subjects.npy", subject[template])


def write_tinyface(root: Path, probes: int, match: int, distractors: int, identities: int) -> None:
    """Write the lists of a synthetic TinyFace, and empty files in place of the distractors."""
    rng = np.random.default_rng(0)
    of_match = np.concatenate((np.arange(identities), rng.integers(0, identities, match - identities)))
    of_probes = rng.integers(0, identities, probes)
    testing, aligned = root / "tinyface" / "Testing_Set", root / "aligned_pad_0.1_pad_high"
    testing.mkdir(parents=True)
    for folder in ("Gallery_Match", "Probe", "Gallery_Distractor"):
        (aligned / folder).mkdir(parents=True)
    for file, key, subjects in (("gallery_match", "gallery_set", of_match), ("probe", "probe_set", of_probes)):
        names = [[f"{subject}_{number}.jpg"] for number, subject in enumerate(subjects)]
        savemat(testing / f"{file}_img_ID_pairs.mat", {key: np.array(names, dtype=object)})
    for number in range(distractors):
        (aligned / "Gallery_Distractor" / f"{number}.jpg").touch()
    others = identities + np.arange(distractors)
    np.save(root / "tinyface_subjects.npy", np.concatenate((of_match, of_probes, others)))


def _write(path: Path, columns: dict[str, Any], separator: str) -> None:
    pd.DataFrame(columns).to_csv(path, sep=separator, header=separator == ",", index=False)


def measure(kind: str, row: str, root: Path, output: Path) -> None:
    """Evaluate in a process of its own, and report its memory against what is allowed."""
    words = [sys.executable, "-m", "bench._ijb_scale_process", kind, str(root)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], check=True)
    measured = json.loads(done.stdout)
    numbers = ", ".join(f"{name} {value:.2f}" for name, value in measured["numbers"].items())
    result = compare_memory(
        row,
        ("allowed", _ALLOWED_BYTES[kind]),
        ("peak of the process, features included", measured["peak_bytes"]),
        target=1,
        details={
            "seconds from files and features to all numbers": round(measured["seconds"], 1),
            "seconds of processor, all threads": round(measured["processor_seconds"], 1),
            "images": measured["images"],
            "pairs": measured["pairs"],
            "numbers of the random features": numbers,
        },
    )
    report(result, __file__, output)


def loop_over_templates(embedded: Embedded, template_ids: np.ndarray, media_ids: np.ndarray) -> np.ndarray:
    """Pool images into templates one by one, (T, D) unit vectors, ascending by id."""
    features = embedded.embeddings * embedded.norms
    pooled = []
    for template in np.unique(template_ids):
        rows = np.flatnonzero(template_ids == template)
        of_template, media = features[rows], media_ids[rows]
        means = [of_template[media == medium].mean(axis=0) for medium in np.unique(media)]
        total = np.sum(means, axis=0)
        pooled.append(total / np.linalg.norm(total))
    return np.stack(pooled)


def same_templates(baseline: np.ndarray, candidate: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Raise unless both pooled to the same features."""
    difference = float(np.abs(baseline - candidate[1]).max())
    if not difference < _TOLERANCE:
        raise AssertionError(f"the template features differ by up to {difference:.1e}")
    return {"largest difference": f"{difference:.1e}"}


def measure_pooling(quick: bool, repeats: int, output: Path) -> None:
    """Time the loop against the pooling here, on a share of the templates of an IJB-C."""
    size = _SMALL if quick else _FULL
    images, templates = size["images"] // _SHARE, size["templates"] // _SHARE
    rng = np.random.default_rng(0)
    template_ids, media_ids = np.sort(rng.integers(0, templates, images)), rng.integers(0, 6, images)
    embedded = random_embedded(template_ids, 5.0)
    features_of = fused_features("pre_norm_vector_add", embedded.embeddings, embedded.norms)
    result = compare(
        f"template pooling, {templates:,} templates of {images:,} images, D={D}",
        Side("loop over templates and media", lambda: loop_over_templates(embedded, template_ids, media_ids)),
        Side("template_pooling", lambda: pool_templates(features_of, template_ids, media_ids)),
        count=images,
        unit="images",
        target=2,
        check=same_templates,
        repeats=repeats,
    )
    report(result, __file__, output)


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size, tiny = (_SMALL, _TINY_SMALL) if chosen.quick else (_FULL, _TINY_FULL)
        write_ijbc(root, **size)
        write_tinyface(root, **tiny)
        described = f"{size['images']:,} images, {size['templates']:,} templates, {size['pairs']:,} pairs"
        measure("ijbc", f"memory of IJB-C, {described}", root, chosen.output)
        described = f"{tiny['probes']:,} probes, {tiny['distractors']:,} distractors"
        measure("tinyface", f"memory of TinyFace, {described}", root, chosen.output)
    measure_pooling(chosen.quick, chosen.repeats, chosen.output)


if __name__ == "__main__":
    main()
