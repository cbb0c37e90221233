"""Several data sets trained together: samples, classes, batches and what a run notes of them."""

import hashlib
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaface.augmentation.paper import Augmenter
from adaface.commands.train import draw_sample_grid
from adaface.data.datasets import TrainingDataset
from adaface.data.module import FaceDataModule
from adaface.data.sources.base import fingerprint_of
from adaface.data.sources.combined import CombinedSource
from adaface.data.sources.finder import open_training_source
from adaface.data.sources.folder import FolderSource
from adaface.data.sources.records import RecordSource
from tests.support.opened_data import data_module
from tests.support.sharded_records import face, write_chunks, write_parts

B_LABELS = [[0, 0, 0, 1], [1, 2, 2]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`a`: three people in folders, images 100 to 105; `b`: three in two `.rec`, 0 to 6; `c`: one in a `.rec`, 0, 1."""
    for person, images in {"x": [100, 101], "y": [102], "z": [103, 104, 105]}.items():
        (tmp_path / "a" / "imgs" / person).mkdir(parents=True)
        for number in images:
            (tmp_path / "a" / "imgs" / person / f"{number}.jpg").write_bytes(face(number))
    write_chunks(tmp_path / "b", B_LABELS)
    write_parts(tmp_path / "c", [[0, 0]])
    for suffix in ("rec", "idx"):
        (tmp_path / "c" / f"train_0.{suffix}").rename(tmp_path / "c" / f"train.{suffix}")
    return tmp_path


def module(root: Path, **options: Any) -> FaceDataModule:
    return data_module(root, **{"train_data_path": "a,b,c", **options})


def test_classes_follow_each_other_and_have_names_of_their_own(root: Path) -> None:
    source = open_training_source(root, "a,b,c")
    assert isinstance(source, CombinedSource)
    assert list(source.class_names) == ["a/x", "a/y", "a/z", "b/0", "b/1", "b/2", "c/0"]
    assert source.labels.tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6]
    assert source.labels.dtype == np.int32
    assert [source.label(i) for i in range(len(source))] == source.labels.tolist()
    images = [*range(100, 106), *range(7), 0, 1]
    assert [source.read(i) for i in range(15)] == list(map(face, images))


def test_samples_say_which_set_they_are_of(root: Path) -> None:
    source = open_training_source(root, "a,b,c")
    assert source.describe(5) == f"data set a: {root}/a/imgs/z/105.jpg"
    assert source.describe(6) == f"data set b: {root}/b/train_0.rec, key 0, class 0"
    assert source.describe(12) == f"data set b: {root}/b/train_1.rec, key 6, class 2"
    assert source.describe(14) == f"data set c: {root}/c/train.rec, key 2, class 0"
    for part in (
        "a (6 images of 3 identities, ",
        "b (7 images of 3 identities, ",
        "train_1.rec (2 files))",
        "c (2 images",
    ):
        assert part in source.location


def test_order_of_the_sets_is_that_of_the_command_line(root: Path) -> None:
    one, other = open_training_source(root, "a,c"), open_training_source(root, "c,a")
    assert list(other.class_names) == ["c/0", "a/x", "a/y", "a/z"]
    assert [other.read(i) for i in range(8)] == [one.read((i + 6) % 8) for i in range(8)]
    assert fingerprint_of(one) != fingerprint_of(other)


def in_child(source: CombinedSource) -> tuple[list[bytes], list[int], list[str]]:
    every = range(len(source))
    return [source.read(i) for i in every], [source.label(i) for i in every], list(source.class_names)


def test_a_spawned_worker_reads_the_same(root: Path) -> None:
    source = open_training_source(root, "a,b,c")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(in_child, (source,)) == in_child(source)


def test_nothing_is_held_beside_the_sets(root: Path) -> None:
    parts = [("a", FolderSource(root / "a" / "imgs")), ("c", RecordSource(root / "c" / "train.rec"))]
    assert len(pickle.dumps(CombinedSource(parts))) < sum(len(pickle.dumps(part)) for _, part in parts) + 1000


def test_all_sets_are_augmented_and_labeled_alike(root: Path) -> None:
    """A sample is what it is in its own set, but for its number: that is the key of its randomness."""
    together = TrainingDataset(open_training_source(root, "c,b"), Augmenter(0, 0, 0, 0), seed=1)
    alone = TrainingDataset(open_training_source(root, "b"), Augmenter(0, 0, 0, 0), seed=1)
    for i in range(7):
        image, label = together[0, 2 + i]
        assert torch.equal(image, alone[0, i][0]) and label == alone[0, i][1] + 1


# --- the data module ------------------------------------------------------------------------------------------


def test_a_run_counts_names_and_fingerprints_all_of_them(root: Path) -> None:
    data = module(root)
    assert data.num_classes == 7 and list(data.class_names)[:4] == ["a/x", "a/y", "a/z", "b/0"]
    assert "training data: 15 images of 7 identities, a (6 images" in data.summary()
    assert draw_sample_grid(data.dataset, data.seed, 9).shape == (342, 342, 3)
    fingerprints = {data.fingerprint(), module(root, train_data_path="a,b").fingerprint()}
    (root / "a").rename(root / "d")
    fingerprints.add(module(root, train_data_path="d,b,c").fingerprint())
    assert len(fingerprints) == 3
    with pytest.raises(ValueError, match="--custom_num_class 6, but the training data has 7 identities"):
        module(root, train_data_path="d,b,c", custom_num_class=6)


def test_the_fingerprint_is_that_of_all_names_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaface.data.sources.base._NAMES_AT_ONCE", 3)
    source = open_training_source(root, "a,b,c")
    digest = hashlib.sha256(b"15\na/x\na/y\na/z\nb/0\nb/1\nb/2\nc/0" + source.labels.tobytes())
    for i in range(15):
        digest.update(hashlib.sha256(source.read(i)).digest())
    assert fingerprint_of(source) == digest.hexdigest()


def test_batches_hold_all_samples_whatever_the_workers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    plain, helped = ([*module(root, num_workers=n).train_dataloader()] for n in (0, 2))
    assert sorted(torch.cat([labels for _, labels in plain]).tolist()) == [0, 0, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6]
    for (images, labels), (same_images, same_labels) in zip(plain, helped, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)


def test_bad_images_are_named_with_their_set(root: Path) -> None:
    (root / "a" / "imgs" / "y" / "102.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"data set a: .*a/imgs/y/102.jpg is not a readable image"):
        module(root).dataset[0, 2]
    data = module(root, skip_bad_images=True)
    assert int(data.dataset[0, 2][1]) == 2  # of the next readable one
    assert data.bad_images() == [f"data set a: {root}/a/imgs/y/102.jpg"]


def test_the_subset_list_is_of_one_set(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--train_data_path names 2 data sets \(b, a\): the list .* is for MS1MV2 only"
    ):
        module(root, train_data_path="b, a", train_data_subset=True)
