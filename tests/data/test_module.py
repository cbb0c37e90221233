"""Training and validation data: order, labels, batches and errors, from folders and from `.rec` files."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from adaface.augmentation.paper import Augmenter
from adaface.commands.train import draw_sample_grid
from adaface.config.options import DataOptions
from adaface.data.conversion_journal import Journal
from adaface.data.datasets import TrainingDataset, ValidationDataset, WaitingLoader, as_it_is
from adaface.data.module import FaceDataModule
from adaface.data.pair_pickle import write_bin
from adaface.data.pair_sets import PairSet
from adaface.data.pair_writers import write_memfile
from adaface.data.sampler import EpochBatchSampler, RandomStreams, ShardedBatchSampler
from adaface.data.sources import selection
from adaface.data.sources.finder import open_training_source
from adaface.data.sources.folder import FolderSource
from adaface.data.sources.records import RecordSource
from adaface.data.sources.selection import SUBSET_LIST, read_subset_list, select_subset
from adaface.records.reader import ImageHeader, RecordWriter, pack
from adaface.system.lightning_setup import pl
from tests.support.opened_data import data_module

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 105


def face(number: int) -> np.ndarray:
    """A smooth color image that says its number."""
    rng = np.random.default_rng(number)
    return cv2.resize(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), (112, 112), interpolation=cv2.INTER_LINEAR)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


def write_rec(folder: Path, labels_of_keys: dict[int, Any], images: dict[int, bytes] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / "train.rec") as writer:
        for key, label in labels_of_keys.items():
            holds_image = not isinstance(label, np.ndarray)
            payload = (images or {}).get(key) or (jpeg(face(key)) if holds_image else b"")
            writer.write(key, pack(ImageHeader(label, key), payload))
    return folder / "train.rec"


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.rec` of 105 identities, and beside it the folder that `convert.py` makes of it."""
    root = tmp_path_factory.mktemp("both") / "faces"
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), [1 + c % 6 for c in range(CLASSES)]))
    labels_of_keys = {int(key): float(label) for key, label in enumerate(labels, start=1)}
    write_rec(root, labels_of_keys)
    for key, label in labels_of_keys.items():
        write_folder(root / "imgs", {f"{int(label)}/{key}.jpg": jpeg(face(key))})
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three identities of four images each: `<tmp>/imgs/<name>/<n>.jpg`."""
    files = {f"{name}/{n}.jpg": jpeg(face(10 * c + n)) for c, name in enumerate("abc") for n in range(4)}
    write_folder(tmp_path / "imgs", files)
    return tmp_path


def module(root: Path, **options: Any) -> FaceDataModule:
    return data_module(root, **{"train_data_path": "imgs", **options})


# --- sources --------------------------------------------------------------------------------------------------


def test_folder_and_record_are_the_same_data(both: Path) -> None:
    folder, record = FolderSource(both / "imgs"), RecordSource(both / "train.rec")
    assert len(folder) == len(record) > 300
    assert folder.class_names == record.class_names == sorted(map(str, range(CLASSES)))
    assert np.array_equal(folder.labels, record.labels)
    assert len(np.unique(folder.labels)) == CLASSES
    for i in range(len(folder)):
        assert folder.read(i) == record.read(i)
        assert Path(folder.describe(i)).stem == record.describe(i).split("key ")[1].split(",")[0]


def test_folder_order_is_that_of_torchvision(both: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    expected = datasets.ImageFolder(str(both / "imgs"))
    source = FolderSource(both / "imgs")
    assert source.class_names == expected.classes
    assert [(source.path(i), int(source.labels[i])) for i in range(len(source))] == expected.samples


def test_folder_leaves_out_what_is_no_image(small: Path) -> None:
    extra = {".hidden/1.jpg": b"", "a/.x.jpg": b"", "a/notes.txt": b"", "b/9.PNG": b"", "stray.jpg": b""}
    write_folder(small / "imgs", extra)
    source = FolderSource(small / "imgs")
    assert source.class_names == ["a", "b", "c"]
    assert [Path(source.path(i)).name for i in range(len(source))][4:9] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "9.PNG"]
    assert source.labels.tolist() == [0] * 4 + [1] * 5 + [2] * 4


def test_folder_keeps_any_file_name(tmp_path: Path) -> None:
    names = ["ü.jpg", "z.jpg", "ß" * 60 + ".jpg", "a b.jpg"]
    write_folder(tmp_path, {f"é/{name}": name.encode() for name in names})
    source = FolderSource(tmp_path)
    assert [source.read(i).decode() for i in range(4)] == sorted(names)


def test_empty_class_folders_are_named(small: Path) -> None:
    (small / "imgs" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 class folders in .* hold no images: empty"):
        FolderSource(small / "imgs")


def test_unfinished_conversion_is_refused(small: Path) -> None:
    journal = small / "imgs" / ".convert.json"
    Journal(0, 0, False, images=12, done=7).save(small / "imgs")
    with pytest.raises(ValueError, match=r"not complete \(7 of 12 images\).*convert.py --rec_path"):
        FolderSource(small / "imgs")
    Journal(0, 0, False, images=12, done=12).save(small / "imgs")
    assert len(FolderSource(small / "imgs")) == 12
    journal.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        FolderSource(small / "imgs")


def test_sources_hold_few_bytes_per_sample(both: Path) -> None:
    record, folder = RecordSource(both / "train.rec"), FolderSource(both / "imgs")
    arrays = [*vars(record).values(), *vars(record._records.files[0]).values()]
    assert sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) <= 24 * len(record._records)
    assert folder.labels.nbytes + folder._ends.nbytes + len(folder._names) <= 24 * len(folder)


def test_real_faces_open(lfw112: Path) -> None:
    source = RecordSource(lfw112 / "train.rec")
    identities = int((lfw112 / "property").read_text().split(",")[0])
    assert len(source) == 4527 and len(source.class_names) == identities == int(source.labels.max()) + 1
    image = TrainingDataset(source, Augmenter(0, 0, 0, 0), seed=0)[0, 1000][0].float().mean(dim=(0, 1))
    assert image[2] > image[0]  # skin is red, not blue


# --- labels of a .rec -----------------------------------------------------------------------------------------


def test_labels_with_gaps_are_refused_with_the_way_out(tmp_path: Path) -> None:
    rec = write_rec(tmp_path, {1: 0.0, 2: 2.0, 3: 5.0})
    with pytest.raises(ValueError, match=r"labels up to 5 but only 3 identities; .* example 1, 3\. .*convert.py"):
        RecordSource(rec)


def test_a_huge_label_is_a_gap_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels up to 2000000000 but only 2 identities"):
        RecordSource(write_rec(tmp_path, {1: 0.0, 2: 2e9}))


@pytest.mark.parametrize(
    ("label", "shown"),
    [(1.5, "1.5"), (-1.0, "-1"), (float("nan"), r"nan \(a damaged image header\)"), (float("inf"), "inf")],
)
def test_labels_that_are_no_class_numbers_are_refused(tmp_path: Path, label: float, shown: str) -> None:
    with pytest.raises(ValueError, match=f"label of key 2 is {shown}, expected an integer from 0 on"):
        RecordSource(write_rec(tmp_path, {1: 0.0, 2: label}))


def test_labels_above_the_declared_number_are_refused(tmp_path: Path) -> None:
    rec = write_rec(tmp_path, {1: 0.0, 2: 1.0, 3: 2.0})
    (tmp_path / "property").write_text("2,112,112\n")
    with pytest.raises(ValueError, match=r"label of key 3 is 2, but .*property declares 2 identities"):
        RecordSource(rec)
    (tmp_path / "property").write_text("3,112,112\n")
    assert len(RecordSource(rec)) == 3
    (tmp_path / "property").write_text("what,112,112\n")
    with pytest.raises(ValueError, match="expected `identities,height,width`"):
        RecordSource(rec)


def test_header_record_and_identity_records_hold_no_images(tmp_path: Path) -> None:
    header = {0: np.array([4, 6], np.float32), 1: 0.0, 2: 0.0, 3: 1.0}
    identities = {4: np.array([1, 3], np.float32), 5: np.array([3, 4], np.float32)}
    source = RecordSource(write_rec(tmp_path / "good", header | identities))
    assert len(source) == 3 and source.class_names == ["0", "1"]
    with pytest.raises(ValueError, match="label of key 3 is 7, but its header record declares 2 identities"):
        RecordSource(write_rec(tmp_path / "bad", header | {3: 7.0} | identities))


# --- finding the data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["faces", "faces/imgs"])
def test_both_paths_find_the_image_folder(both: Path, path: str) -> None:
    source = open_training_source(both.parent, path)
    assert isinstance(source, FolderSource) and source.root == both / "imgs"


@pytest.mark.parametrize("path", ["faces", "faces/imgs"])
def test_use_mxrecord_forces_the_record(both: Path, path: str) -> None:
    source = open_training_source(both.parent, path, use_mxrecord=True)
    assert isinstance(source, RecordSource) and source.location == str(both / "train.rec")


@pytest.mark.parametrize("path", ["d", "d/imgs", "d/train.rec"])
def test_a_record_without_image_folder_is_found(tmp_path: Path, path: str) -> None:
    write_rec(tmp_path / "d", {1: 0.0, 2: 0.0})
    (tmp_path / "d" / "lfw" / "data").mkdir(parents=True)  # a converted validation set is no class folder
    assert isinstance(open_training_source(tmp_path, path), RecordSource)


def test_a_plain_folder_of_classes_is_found(small: Path) -> None:
    (small / "imgs").rename(small / "my_faces")
    assert len(open_training_source(small, "my_faces")) == 12


def test_wrong_root_says_what_was_looked_for_and_found(small: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"looked for imgs/<class>/<image>.*does not exist; .* holds imgs\. Check"
    ):
        open_training_source(small, "faces_emore/imgs")
    (small / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it holds nothing. Check --data_root and --train_data_path"):
        open_training_source(small, "empty")
    with pytest.raises(FileNotFoundError, match=r"looked for train.rec in it or in the folder above"):
        open_training_source(small, "imgs", use_mxrecord=True)


def test_a_misspelled_folder_does_not_fall_back_to_its_parents_record(both: Path) -> None:
    with pytest.raises(FileNotFoundError, match="faces_misspelled"):
        open_training_source(both, "faces_misspelled")


# --- the subset list ------------------------------------------------------------------------------------------


def test_subset_is_the_same_on_both_sources(both: Path) -> None:
    folder, record = FolderSource(both / "imgs"), RecordSource(both / "train.rec")
    positions = np.random.default_rng(1).permutation(len(folder))[:330]
    first, second = select_subset(folder, positions), select_subset(record, positions)
    assert first.class_names == second.class_names and np.array_equal(first.labels, second.labels)
    assert [first.read(i) for i in range(len(first))] == [second.read(i) for i in range(len(second))]
    # by hand, with loops
    old = folder.labels[positions].tolist()
    kept = sorted({label for label in old if old.count(label) >= 5})
    assert 0 < len(kept) < CLASSES
    expected = [(int(p), kept.index(label)) for p, label in zip(positions, old, strict=True) if label in kept]
    assert [(int(p), int(label)) for p, label in zip(first._indices, first.labels, strict=True)] == expected
    assert first.class_names == [folder.class_names[label] for label in kept]


def test_subset_list_is_found_beside_the_data(both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_ASSETS", tmp_path / "assets")
    with pytest.raises(FileNotFoundError) as refused:
        read_subset_list(both.parent, "faces/imgs")
    message = str(refused.value)
    expected = f"{SUBSET_LIST}, expected in {both / 'imgs'} or {both} or {both.parent}. Copy it from the folder"
    assert f"{expected} assets of the official AdaFace repository" in message
    assert str(tmp_path / "assets") not in message, "an installed package has no such folder"
    for folder in (
        tmp_path / "data" / "faces" / "imgs",
        tmp_path / "data" / "faces",
        tmp_path / "data",
        tmp_path / "assets",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUBSET_LIST).write_text("3,1,\n12\n")
        assert read_subset_list(tmp_path / "data", "faces/imgs").tolist() == [3, 1, 12]
        (folder / SUBSET_LIST).unlink()


def test_bad_subset_lists_are_refused(small: Path) -> None:
    source = FolderSource(small / "imgs")
    with pytest.raises(ValueError, match="positions 0 to 12, the training data has 12 images"):
        select_subset(source, np.array([0, 12]))
    with pytest.raises(ValueError, match="no identity has 5 images"):
        select_subset(source, np.arange(12))
    (small / SUBSET_LIST).write_text("1,two,3")
    with pytest.raises(ValueError, match="expected integers separated by commas"):
        read_subset_list(small, "imgs")


# --- randomness and batches -----------------------------------------------------------------------------------


def test_streams_are_fresh_philox_generators() -> None:
    streams = RandomStreams(2**32 - 1)
    for epoch, sample in [(0, 0), (3, 5_822_652), (3, 0), (2**32 - 1, 2**40)]:
        key = np.array([(2**32 - 1) * 2**32 + epoch, sample], np.uint64)
        fresh = np.random.Generator(np.random.Philox(key=key))
        reused = streams.at(epoch, sample)
        assert reused.integers(7, size=3).tolist() == fresh.integers(7, size=3).tolist()
        assert reused.random(5).tolist() == fresh.random(5).tolist()
    with pytest.raises(ValueError, match="seed must be in"):
        RandomStreams(2**32)


def batches_of(**options: Any) -> list[list[tuple[int, int]]]:
    epoch = options.pop("epoch", 0)
    sampler = EpochBatchSampler(**{"seed": 1, **options})
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) - (
        options.get("start_batch", 0) if epoch == options.get("start_epoch", 0) else 0
    )
    return batches


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 70), st.integers(2, 9), st.integers(1, 5))
def test_every_process_takes_the_same_steps_and_every_sample_comes(count: int, batch_size: int, world: int) -> None:
    share = -(-count // world)
    if share < 2:
        with pytest.raises(ValueError, match="at least two images per batch"):
            batches_of(count=count, batch_size=batch_size, world_size=world)
        return
    ranks = [batches_of(count=count, batch_size=batch_size, rank=r, world_size=world) for r in range(world)]
    assert len({tuple(map(len, batches)) for batches in ranks}) == 1
    assert all(2 <= len(batch) <= batch_size for batch in ranks[0])
    seen = [sample for batches in ranks for _, sample in itertools.chain(*batches)]
    dropped = world if share % batch_size == 1 else 0
    assert len(seen) == share * world - dropped
    assert len(seen) - len(set(seen)) <= world - 1
    assert len(set(seen)) >= count - dropped


def test_remainder_of_one_sample_is_dropped_and_of_two_kept() -> None:
    assert list(map(len, batches_of(count=9, batch_size=4))) == [4, 4]
    assert list(map(len, batches_of(count=10, batch_size=4))) == [4, 4, 2]
    assert list(map(len, batches_of(count=17, batch_size=4, world_size=2))) == [4, 4]


def test_batches_of_one_image_are_refused() -> None:
    with pytest.raises(ValueError, match="10 training images in batches of 1 for each of 1 process"):
        EpochBatchSampler(10, 1, seed=0)


@pytest.mark.parametrize(
    ("count", "start_batch", "sizes"), [(10, 0, [4, 4]), (10, 1, [4]), (3, 0, [3]), (8, 0, [4, 4])]
)
def test_an_epoch_of_equal_batches_ends_with_the_last_full_one(count, start_batch, sizes):
    sampler = EpochBatchSampler(count, 4, seed=0, start_batch=start_batch)
    sampler.equal = True
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == start_batch + len(sizes)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first, again, other, seed = (
        [s for _, s in itertools.chain(*batches_of(count=40, batch_size=8, epoch=e, seed=s))]
        for e, s in [(0, 1), (0, 1), (1, 1), (0, 2)]
    )
    assert first == again and sorted(first) == sorted(other) == sorted(seed) == list(range(40))
    assert first != other and first != seed and other != seed
    assert all(epoch == 1 for epoch, _ in itertools.chain(*batches_of(count=40, batch_size=8, epoch=1)))


def test_total_batches_do_not_depend_on_the_number_of_processes() -> None:
    alone = batches_of(count=48, batch_size=12)
    three = [batches_of(count=48, batch_size=4, rank=r, world_size=3) for r in range(3)]
    for batch, *parts in zip(alone, *three, strict=True):
        assert sorted(batch) == sorted(itertools.chain(*parts))


def test_start_batch_leaves_out_what_was_seen_in_its_epoch_alone() -> None:
    options = {"count": 41, "batch_size": 4, "rank": 1, "world_size": 2, "start_epoch": 2, "start_batch": 3}
    whole = {"count": 41, "batch_size": 4, "rank": 1, "world_size": 2}
    assert batches_of(**options, epoch=2) == batches_of(**whole, epoch=2)[3:]
    assert batches_of(**options, epoch=3) == batches_of(**whole, epoch=3)
    assert EpochBatchSampler(41, 4, seed=1, start_batch=3).epoch == 0


@settings(max_examples=150, deadline=None)
@given(
    st.integers(8, 90), st.integers(2, 6), st.integers(1, 4), st.integers(0, 40), st.integers(2, 6), st.integers(1, 4)
)
def test_the_rest_of_an_epoch_comes_once_on_another_number_of_processes(
    count: int, old_size: int, old_world: int, done: int, new_size: int, new_world: int
) -> None:
    before = [batches_of(count=count, batch_size=old_size, rank=r, world_size=old_world) for r in range(old_world)]
    done = min(done, len(before[0]) - 1)
    seen = [sample for batches in before for _, sample in itertools.chain(*batches[:done])]
    start = {"start_batch": done, "start_sample": done * old_size * old_world}
    after = [
        batches_of(count=count, batch_size=new_size, rank=r, world_size=new_world, **start) for r in range(new_world)
    ]
    assert len({tuple(map(len, batches)) for batches in after}) == 1
    rest = [sample for batches in after for _, sample in itertools.chain(*batches)]
    share = -(-(count - len(seen)) // new_world)
    dropped = new_world if share % new_size == 1 else 0
    assert len(seen) == len(set(seen)), "nothing is padded before an epoch's end"
    assert len(rest) == share * new_world - dropped
    missing = set(range(count)) - set(seen) - set(rest)
    assert len(missing) <= dropped
    padding = len(seen) + len(rest) - len(set(seen) | set(rest))
    assert padding <= new_world - 1
    again = batches_of(count=count, batch_size=new_size, rank=0, world_size=new_world, epoch=1, **start)
    assert again == batches_of(count=count, batch_size=new_size, rank=0, world_size=new_world, epoch=1)


def training_batches(data: FaceDataModule, epoch: int, loader: DataLoader | None = None) -> list[tuple]:
    loader = loader or data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
    return list(loader)


def equal(first: list[tuple], second: list[tuple]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


PROBABILITIES = {
    "low_res_augmentation_prob": 0.4,
    "crop_augmentation_prob": 0.4,
    "photometric_augmentation_prob": 0.4,
}


def test_batches_do_not_depend_on_workers(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    alone, helped = module(small, **PROBABILITIES), module(small, num_workers=2, **PROBABILITIES)
    assert helped.num_workers == 2
    loader = helped.train_dataloader()  # one loader for both epochs: its workers stay
    epochs = [training_batches(alone, epoch) for epoch in (0, 1)]
    assert equal(epochs[0], training_batches(helped, 0, loader))
    assert equal(epochs[1], training_batches(helped, 1, loader))
    assert not equal(*epochs)
    images, labels = epochs[0][0]
    assert images.shape == (4, 112, 112, 3) and images.dtype == torch.uint8 and labels.dtype == torch.int64


def test_ctrl_c_does_not_end_the_workers(small: Path) -> None:
    loader = module(small, num_workers=1).train_dataloader()
    batches = iter(loader)
    first = next(batches)
    os.kill(loader._iterator._workers[0].pid, signal.SIGINT)
    assert equal([first, *batches], training_batches(module(small), 0))


def test_sigterm_does_not_end_a_worker_that_starts(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after PyTorch has set its handler, which would end the worker, and before the worker ignores it."""
    set_handlers = torch.utils.data._utils.signal_handling._set_worker_signal_handlers

    def stopped() -> None:
        set_handlers()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_set_worker_signal_handlers", stopped)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert equal(training_batches(module(small, num_workers=1), 0), training_batches(module(small), 0))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_program_that_ends_with_a_loader_in_use_does_not_wait_for_its_workers(small: Path) -> None:
    """As after an error whose traceback holds the loader."""
    program = f"""
import torch
from data import FaceDataModule
from adaface.config.options import DataOptions
data = FaceDataModule(DataOptions({str(small.parent)!r}, {small.name!r}, "none", num_workers=1), batch_size=4)
data.open()
loader = data.train_dataloader()
batches = iter(loader)
next(batches)
print(loader._iterator._workers[0].pid)
class Kept:
    def __init__(self): self.itself, self.loader, self.batches = self, loader, batches
kept = Kept()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    worker = int(ended.stdout.split()[-1])
    assert not ended.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


BREAKS = {
    "the second worker does not start": """
start, started = torch.multiprocessing.Process.start, []
def broken(self):
    started.append(self)
    if len(started) == 2:
        raise OSError(12, "broken")
    start(self)
torch.multiprocessing.Process.start = broken
""",
    "no thread sends the workers their first batch": """
start = threading.Thread.start
def broken(self):
    if self.name == "QueueFeederThread":
        raise RuntimeError("broken")
    start(self)
threading.Thread.start = broken
""",
    "the workers are not watched": """
def broken(*_):
    raise RuntimeError("broken")
torch.utils.data._utils.signal_handling._set_worker_pids = broken
""",
    "a worker cannot send its batch": """
def broken(tensor):
    raise RuntimeError("broken")
from multiprocessing.reduction import ForkingPickler
ForkingPickler.register(torch.Tensor, broken)
""",
}


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("point", BREAKS)
def test_an_error_while_workers_start_ends_the_program(small: Path, point: str, is_kept: bool) -> None:
    """As with a limit of memory; the error's traceback can hold the loader until the end."""
    program = f"""
import sys, threading
import torch
from data import FaceDataModule
from adaface.config.options import DataOptions
data = FaceDataModule(DataOptions({str(small.parent)!r}, {small.name!r}, "none", num_workers=2), batch_size=4)
data.num_workers = 2
data.open()
{BREAKS[point]}
try:
    next(iter(data.train_dataloader()))
except Exception as error:
    kept = error if {is_kept} else None
    print(str(error).splitlines()[-1])
sys.exit(2)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, errors) == (2, "")
    assert output.endswith("broken\n")


def test_augmentation_differs_between_epochs_and_samples(small: Path) -> None:
    dataset = TrainingDataset(FolderSource(small / "imgs"), Augmenter(1.0, 0.0, 0.0, 0.0), seed=3)
    black = [(dataset[epoch, 0][0].numpy() == 0).all(axis=2).sum() for epoch in range(4)]
    assert len(set(black)) > 1
    assert torch.equal(dataset[2, 5][0], dataset[2, 5][0])


def test_folder_and_record_give_the_same_batches(both: Path) -> None:
    options = {"batch_size": 32, **PROBABILITIES}
    folder = module(both.parent, train_data_path="faces", **options)
    record = module(both.parent, train_data_path="faces", use_mxrecord=True, **options)
    assert equal(training_batches(folder, 1), training_batches(record, 1))
    assert folder.fingerprint() == record.fingerprint()
    assert folder.num_classes == record.num_classes == CLASSES


class Listener(pl.LightningModule):
    """A module that only notes the batches that it gets, and saves a checkpoint inside the second epoch."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self.weight, self.checkpoint = torch.nn.Parameter(torch.zeros(1)), checkpoint
        self.seen: list[tuple[int, int, list[int]]] = []

    def training_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch[0].sum(dim=(1, 2, 3)).tolist()))
        return self.weight.sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == (1, 0):
            self.trainer.save_checkpoint(self.checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trainer.datamodule.resume_at(1, 1)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_tells_the_epoch_and_resumes_inside_it(
    small: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    runs = []
    for checkpoint in (None, small / "inside.ckpt"):
        listener = Listener(small / "inside.ckpt")
        trainer = pl.Trainer(accelerator="cpu", max_epochs=3, use_distributed_sampler=False, **quiet)
        trainer.fit(listener, module(small, num_workers=num_workers, **PROBABILITIES), ckpt_path=checkpoint)
        runs.append(listener.seen)
    plain = module(small, **PROBABILITIES)
    expected = [
        (epoch, number, images.sum(dim=(1, 2, 3)).tolist())
        for epoch in range(3)
        for number, (images, _) in enumerate(training_batches(plain, epoch))
    ]
    assert runs[0] == expected
    assert runs[1] == expected[4:]  # from the second batch of the second epoch on


# --- classes, sizes, colors ----------------------------------------------------------------------------------


def test_custom_num_class_overrides_upward_only(small: Path) -> None:
    assert module(small).num_classes == 3
    assert module(small, custom_num_class=3).num_classes == 3
    assert module(small, custom_num_class=10).num_classes == 10
    with pytest.raises(ValueError, match="--custom_num_class 2, but the training data has 3 identities"):
        module(small, custom_num_class=2)


def test_one_identity_is_noted(tmp_path: Path) -> None:
    write_folder(tmp_path / "imgs", {f"ann/{number}.jpg": jpeg(face(number)) for number in range(4)})
    assert "the training data has one identity: there is nothing to tell apart" in module(tmp_path).summary()
    assert "training data: 4 images of 1 identity," in module(tmp_path).summary()


def test_a_set_of_one_kind_of_pairs_is_warned_of(small: Path) -> None:
    for name, same in (("all_same", True), ("all_different", False)):
        write_memfile(small, name, [face(number) for number in range(8)], [same] * 4)
    write_memfile(small, "lfw", [face(number) for number in range(8)], [True, False] * 2)
    data = module(small)
    assert sorted(data.warnings) == [
        "all_different has no genuine pairs: its accuracy says nothing about the model",
        "all_same has no impostor pairs: its accuracy says nothing about the model",
    ]
    assert all(f"warning: {warning}" in data.summary() for warning in data.warnings)


def test_batch_size_must_divide() -> None:
    with pytest.raises(ValueError, match=r"--batch_size 256 .* is not divisible by 3: use 255 or 258"):
        FaceDataModule(DataOptions(), batch_size=256, devices=3)
    with pytest.raises(ValueError, match=r"is not divisible by 3: use 3, or another number of devices"):
        FaceDataModule(DataOptions(), batch_size=2, devices=3)
    assert FaceDataModule(DataOptions(), batch_size=256, devices=4).batch_size_per_process == 64


def test_too_few_images_are_refused_when_opened(small: Path) -> None:
    with pytest.raises(ValueError, match="12 training images in batches of 2 for each of 16 process"):
        module(small, batch_size=32, devices=16)


def test_workers_are_capped_with_a_note(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    data = module(small, num_workers=16, devices=2)
    assert data.num_workers == 3
    assert "3 data worker(s) per device instead of 16: this machine has 6 cores" in data.summary()
    assert module(small, num_workers=0).num_workers == 0
    data.sharing = 1
    data.open()
    assert data.num_workers == 6
    assert "6 data worker(s) per device instead of 16: each process has 6 cores" in data.summary()


def red_folder(root: Path) -> Path:
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 2] = 200
    write_folder(root / "imgs", {f"{label}/{n}.jpg": jpeg(red) for label in range(2) for n in range(2)})
    write_rec(root, {1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0}, {key: jpeg(red) for key in range(1, 5)})
    return root


@pytest.mark.parametrize("use_mxrecord", [False, True])
def test_red_stays_red_through_reader_batch_and_grid(tmp_path: Path, use_mxrecord: bool) -> None:
    data = module(red_folder(tmp_path), use_mxrecord=use_mxrecord)
    images, _ = training_batches(data, 0)[0]
    means = images.float().mean(dim=(0, 1, 2))
    assert means[2] > 190 and means[0] < 10 and means[1] < 10
    grid = draw_sample_grid(data.dataset, data.seed, 3)
    assert grid.shape == (228, 228, 3) and grid.dtype == np.uint8
    assert grid[50, 50, 2] > 190 and grid[50, 50, 0] < 10
    assert grid[150, 150].tolist() == [255, 255, 255]  # the fourth cell is empty


def test_swap_color_channel_swaps_red_and_blue(tmp_path: Path) -> None:
    images, _ = training_batches(module(red_folder(tmp_path), swap_color_channel=True), 0)[0]
    means = images.float().mean(dim=(0, 1, 2))
    assert means[0] > 190 and means[2] < 10


def test_classes_can_be_numbered_in_another_order(small: Path) -> None:
    data = module(small)
    names, labels = list(data.class_names), data.dataset.source.labels.tolist()
    data.order_classes_as(names[::-1])
    assert data.class_names == names[::-1]
    source = data.dataset.source
    assert source.labels.tolist() == [len(names) - 1 - label for label in labels]
    assert [source.class_names[label] for label in source.labels] == [names[label] for label in labels]
    assert [source.describe(index) for index in range(3)] == [str(small / "imgs" / "a" / f"{n}.jpg") for n in range(3)]


# --- bad images -----------------------------------------------------------------------------------------------


def test_bad_images_are_named(small: Path) -> None:
    (small / "imgs" / "b" / "1.jpg").write_bytes(b"\xff\xd8 no jpeg")
    (small / "imgs" / "b" / "2.jpg").write_bytes(cv2.imencode(".jpg", face(1)[..., 0])[1].tobytes())
    (small / "imgs" / "b" / "3.jpg").write_bytes(jpeg(face(1)[:96]))
    dataset = module(small).dataset
    for sample, reason in [
        (5, r"1.jpg is not a readable image"),
        (6, r"2.jpg: a grayscale image"),
        (7, "3.jpg: 112x96"),
    ]:
        with pytest.raises(ValueError, match=rf"imgs/b/{reason}"):
            dataset[0, sample]


def test_bad_records_are_named_by_key_and_class(tmp_path: Path) -> None:
    rec = write_rec(tmp_path, {5: 0.0, 7: 1.0, 8: 1.0}, {7: b"broken"})
    dataset = TrainingDataset(RecordSource(rec), Augmenter(0, 0, 0), seed=0)
    with pytest.raises(ValueError, match=r"train.rec, key 7, class 1 is not a readable image"):
        dataset[0, 1]


@pytest.mark.usefixtures("training_screen")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_bad_images_counts_and_replaces(
    small: Path, num_workers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    for name in ("a/3.jpg", "b/0.jpg", "c/3.jpg"):
        (small / "imgs" / name).write_bytes(b"broken")
    data = module(small, skip_bad_images=True, num_workers=num_workers)
    images = torch.cat([images for images, _ in training_batches(data, 0)])
    assert len(images) == 12
    assert data.dataset.bad_samples() == [3, 4, 11]
    assert [Path(name).parent.name + "/" + Path(name).name for name in data.bad_images()] == [
        "a/3.jpg",
        "b/0.jpg",
        "c/3.jpg",
    ]
    assert int(data.dataset[0, 3][1]) == 1  # the next readable one is b/1.jpg, with its own label
    assert int(data.dataset[0, 11][1]) == 0  # after the last one comes the first
    data.teardown("fit")
    assert "3 bad training image(s) replaced by the next readable one" in capsys.readouterr().out


def test_skipping_ends_where_nothing_is_good(small: Path) -> None:
    for path in (small / "imgs").glob("*/*.jpg"):
        path.write_bytes(b"broken")
    data = module(small, skip_bad_images=True)
    with pytest.raises(
        ValueError, match=r"100 consecutive images cannot be used; the last error: .*not a readable image"
    ):
        data.dataset[0, 0]


# --- validation -----------------------------------------------------------------------------------------------


def pair_set(name: str, pairs: int, first: int = 0) -> PairSet:
    return PairSet(name, [face(first + i) for i in range(2 * pairs)], np.arange(pairs) % 2 == 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 5))
def test_validation_shares_cover_everything_in_equal_steps(count: int, batch_size: int, world: int) -> None:
    shares = [ShardedBatchSampler(count, batch_size, rank=r, world_size=world) for r in range(world)]
    assert len({tuple(map(len, share)) for share in shares}) == 1
    assert all(len(share) == len(list(share)) for share in shares)
    samples = list(itertools.chain(*itertools.chain(*shares)))
    assert sorted(set(samples)) == list(range(count)) and samples == sorted(samples)


def test_validation_images_come_in_order_with_set_and_place() -> None:
    sets = {"lfw": pair_set("lfw", 3), "mine": pair_set("mine", 2, first=50)}
    dataset = ValidationDataset(sets)
    loader = DataLoader(dataset, batch_sampler=ShardedBatchSampler(len(dataset), 4), collate_fn=as_it_is)
    images, numbers, places = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert numbers.tolist() == [0] * 6 + [1] * 4 and places.tolist() == [*range(6), *range(4)]
    assert images.dtype == torch.uint8
    for image, number, place in zip(images, numbers.tolist(), places.tolist(), strict=True):
        assert np.array_equal(image.numpy(), face(place + 50 * number))


@pytest.fixture
def with_sets(small: Path) -> Iterator[Path]:
    for name, pairs in [("mine", 2), ("lfw", 3)]:
        found = pair_set(name, pairs)
        write_memfile(small, name, found.images, found.issame)
    yield small


def test_present_sets_are_used_and_missing_ones_named_once(with_sets: Path) -> None:
    data = module(with_sets)
    assert list(data.pair_sets) == ["lfw", "mine"]
    assert data.missing_sets == ["agedb_30", "cfp_fp", "cplfw", "calfw"]
    assert data.summary().count("cplfw") == 1 and "lfw (3 pairs), mine (2 pairs)" in data.summary()
    images, numbers, places = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    assert len(images) == 10 and numbers.tolist() == [0] * 6 + [1] * 4 and places.tolist()[-1] == 3
    assert len(data.test_dataloader()) == 3


def test_data_of_another_program_are_noted_once(both: Path, small: Path) -> None:
    noted = module(both.parent, train_data_path="faces").summary()
    assert noted.count(f"note: {both / 'imgs'} was written by another program") == 1
    images = [face(number) for number in range(4)]
    write_memfile(small, "lfw", images, [True, False])
    write_bin(small / "lfw.bin", [jpeg(image) for image in images], [True, False])
    assert module(small).summary().count(f"note: the set {small / 'lfw'} was written by another program") == 1


def test_swapping_leaves_validation_images_alone(with_sets: Path) -> None:
    images = next(iter(module(with_sets, swap_color_channel=True).val_dataloader()))[0]
    assert np.array_equal(images[0].numpy(), face(0))


def test_without_sets_training_goes_on_and_says_so(small: Path) -> None:
    data = module(small)
    assert data.pair_sets == {} and data.val_dataloader() == []
    assert data.summary().count("training without validation") == 1
    assert "no such folder" in module(small, val_data_path="nowhere").summary()


def test_evaluation_needs_sets_but_no_training_data(with_sets: Path) -> None:
    data = module(with_sets, train_data_path="nowhere", evaluate_only=True)
    assert data.num_classes == 0 and data.class_names == [] and data.fingerprint() == ""
    assert len(data.test_dataloader()) == 3
    data.teardown("fit")
    with pytest.raises(RuntimeError, match="no training data"):
        data.train_dataloader()
    with pytest.raises(FileNotFoundError, match=r"no validation sets in .*no such folder"):
        module(with_sets, val_data_path="nowhere", evaluate_only=True)


def test_fingerprint_knows_names_labels_and_pixels(small: Path) -> None:
    before = module(small).fingerprint()
    assert before == module(small).fingerprint() and len(before) == 64
    image = small / "imgs" / "a" / "0.jpg"
    image.write_bytes(jpeg(face(99)))
    changed = module(small).fingerprint()
    image.rename(small / "imgs" / "b" / "00.jpg")
    moved = module(small).fingerprint()
    (small / "imgs" / "c").rename(small / "imgs" / "d")
    assert len({before, changed, moved, module(small).fingerprint()}) == 4


def test_a_loader_knows_how_long_it_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time between two batches, in which the model works, is not counted."""
    now = [0.0]
    monkeypatch.setattr("adaface.data.datasets.time.monotonic", lambda: now[0])

    class Slow:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> int:
            now[0] += 2
            return index

    loader = WaitingLoader(Slow(), batch_size=None)
    for expected in (2, 4, 6):
        now[0] += 100
        if expected == 2:
            batches = iter(loader)
        next(batches)
        assert loader.waited_sec == expected
