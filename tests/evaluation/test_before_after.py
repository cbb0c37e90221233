"""The comparison at the end of a fine-tuning, and what it says in words."""

import json

import numpy as np
import pytest

from adaface.data.pair_sets import PairSet
from adaface.evaluation.before_after import compare_before_after, verdict, write_before_after
from adaface.metrics.outcome import Embedded

PAIRS = 60


def direction(image: np.ndarray, blind: set[str], name: str) -> np.ndarray:
    """A model of two people, dark and light; where it is blind it sees nothing but noise."""
    if name in blind:
        noise = np.random.default_rng(int(image.astype(np.int64).sum())).standard_normal(4)
        return noise / np.linalg.norm(noise)
    return np.eye(4)[int(image.mean() > 127)]


def model(*blind: str):
    def embed(images, view="fused"):
        rows = [direction(images.read(place), set(blind), images.name) for place in range(len(images))]
        return Embedded(np.array(rows, np.float32), np.ones((len(rows), 1), np.float32), np.ones(len(rows), bool))

    return embed


@pytest.fixture(scope="module")
def pair_set() -> PairSet:
    """Pairs of a dark and a light person, each image a little different from all others."""
    rng = np.random.default_rng(0)
    issame = np.arange(PAIRS) % 2 == 0
    people = np.stack([np.zeros(PAIRS, int), np.where(issame, 0, 1)], axis=1)
    images = [
        (np.full((112, 112, 3), 40 + 170 * person) + rng.integers(0, 30)).astype(np.uint8) for person in people.ravel()
    ]
    for place, image in enumerate(images):
        image[0, 0] = place
    return PairSet("held_out", images, issame, people + 2 * np.arange(PAIRS)[:, None])


def compared(pair_set, tmp_path, before, after):
    return compare_before_after(before, after, {"held_out": pair_set}, tmp_path, seed=3)


def test_better_worse_and_unknown_are_said_by_condition(pair_set, tmp_path):
    lines = verdict(compared(pair_set, tmp_path, model("held_out"), model("held_out blurred")))
    assert lines[0].startswith("held_out: fine-tuning made it better (+")
    assert lines[1].startswith("held_out blurred: fine-tuning made it WORSE (-")
    assert lines[2].startswith("fine-tuning made the model worse on held_out blurred: use the pretrained one there")
    same = verdict(compared(pair_set, tmp_path, model(), model()))
    assert [line.partition(" (")[0] for line in same] == [
        "held_out: no significant difference", "held_out blurred: no significant difference",
    ]  # fmt: skip
    assert "+0.00 points of accuracy, 95 % interval [" in same[0]


def test_what_is_written_holds_everything(pair_set, tmp_path):
    comparison = compared(pair_set, tmp_path, model("held_out"), model())
    assert comparison.shown == ("accuracy", "AUC"), "30 impostor pairs are too few for a TAR at FAR 1e-2"
    assert any("blur of strength 1, seed 3" in note for note in comparison.notes)
    assert any("chosen on the same (clear) pairs" in note for note in comparison.notes)
    words = verdict(comparison)
    write_before_after(comparison, words, tmp_path)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["verdict"] == words
    assert [(row["model"], row["condition"]) for row in written["models"]] == [
        ("pretrained", "held_out"), ("fine-tuned", "held_out"),
        ("pretrained", "held_out blurred"), ("fine-tuned", "held_out blurred"),
    ]  # fmt: skip
    after = written["models"][1]
    assert after["numbers"]["accuracy"] == 100.0
    assert after["differences"]["accuracy"]["difference"] > 0
    assert not written["models"][0]["differences"]


def test_enough_impostors_give_a_tar_too(pair_set, tmp_path):
    four_times = PairSet(
        "many",
        list(pair_set.images) * 4,
        np.tile(pair_set.issame, 4),
        np.concatenate([pair_set.identities + 1000 * copy for copy in range(4)]),
    )
    comparison = compare_before_after(model(), model(), {"many": four_times}, tmp_path, seed=0)
    assert comparison.shown == ("accuracy", "AUC", "TAR at FAR 0.01")


def test_pairs_of_one_kind_are_refused(pair_set, tmp_path):
    genuine = PairSet("genuine", pair_set.images[:2], pair_set.issame[:1])
    with pytest.raises(
        ValueError, match=r"none of the verification sets \(genuine\) has both genuine and impostor pairs"
    ):
        compare_before_after(model(), model(), {"genuine": genuine}, tmp_path, seed=0)
