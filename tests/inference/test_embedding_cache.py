import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from adaface.data.image_list import ImageFiles, NoFaceError, PairSetImages
from adaface.data.pair_pickle import write_bin
from adaface.data.pair_sets import open_pair_set
from adaface.inference import embedding_cache, embedding_table
from adaface.inference.embedder import IMAGE, Embedder
from adaface.inference.embedding_cache import CachedEmbedding, ModelFile
from adaface.metrics.outcome import unreadable_note
from adaface.system.interrupt import STOP_SIGNALS
from tests.inference.test_embedder import faces, write_checkpoint
from tests.support.forked import environment_of_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelFile:
    return ModelFile(str(write_checkpoint(tmp_path_factory.mktemp("model") / "model.ckpt")))


@pytest.fixture
def files(tmp_path) -> ImageFiles:
    paths = []
    for number, image in enumerate(faces(21)):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), image)
    return ImageFiles("some", paths)


@pytest.fixture
def forked(monkeypatch) -> Iterator[None]:
    """Spares the processes that embed the seconds of their imports."""
    start = partial(torch.multiprocessing.start_processes, start_method="forkserver")
    monkeypatch.setattr(torch.multiprocessing, "spawn", start)
    with environment_of_server():
        forkserver.ensure_running()  # not while signals are held, which all its processes would go on doing
        yield


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def embed(model, folder, **options) -> CachedEmbedding:
    return CachedEmbedding(model, folder=folder, **options)


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".npy")


@pytest.mark.parametrize("folder", [True, False], ids=["kept", "not kept"])
def test_all_images_are_embedded_in_order(model, files, tmp_path, folder):
    got = embed(model, tmp_path / "cache" if folder else None, batch_size=4)(files)
    expected, norms = Embedder.load(model.path).embed(faces(21))
    np.testing.assert_allclose(got.embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(got.norms, norms, rtol=1e-4)
    assert got.norms.shape == (21, 1)
    assert got.readable.all()
    assert unreadable_note(got.readable) == ()


def test_the_second_time_nothing_is_embedded(model, files, tmp_path, monkeypatch):
    first = embed(model, tmp_path / "cache")(files)
    monkeypatch.setattr(Embedder, "embed", lambda *_, **__: pytest.fail("embedded again"))
    second = embed(model, tmp_path / "cache")(files)
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert len(kept(tmp_path / "cache")) == 1


def test_what_changes_is_embedded_again(model, files, tmp_path):
    cache = tmp_path / "cache"
    first = embed(model, cache)(files)
    cv2.imwrite(str(files.paths[3]), faces(1, seed=9)[0])
    os.utime(files.paths[3], ns=(1, 1))
    second = embed(model, cache)(files)
    differ = np.abs(first.embeddings - second.embeddings).max(axis=1) > 1e-3
    assert np.flatnonzero(differ).tolist() == [3]
    embed(model, cache)(files, IMAGE)
    embed(ModelFile(str(write_checkpoint(tmp_path / "other.ckpt", "ir_18"))), cache)(
        ImageFiles("some", files.paths[:1])
    )
    assert len(kept(cache)) == 4


def test_two_processes_give_what_one_gives(model, files, tmp_path):
    one = embed(model, tmp_path / "one", batch_size=4)(files)
    two = embed(model, tmp_path / "two", batch_size=4, processes=2)(files)
    np.testing.assert_allclose(one.embeddings, two.embeddings, atol=1e-5)
    np.testing.assert_allclose(one.norms, two.norms, rtol=1e-4)
    assert two.readable.all()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("processes", [1, 2])
def test_unreadable_images_are_counted_named_and_left_out(model, files, tmp_path, processes):
    files.paths[2].write_bytes(b"no image")
    files.paths[5].unlink()
    cv2.imwrite(str(files.paths[7]), np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"3 of 21 images of some cannot be read \(14.3 %, 0.1 % are allowed"
    ) as caught:
        embed(model, tmp_path / "cache", processes=processes)(files)
    for text in (
        "2.png is not a readable image (8 bytes that start with 6e 6f 20 69)",
        "5.png cannot be read: No such file",
        "7.png is 60x50 px",
    ):
        assert text in str(caught.value)
    got = embed(model, tmp_path / "cache", most_unreadable=0.2)(files)
    assert np.flatnonzero(~got.readable).tolist() == [2, 5, 7]
    assert not got.embeddings[2].any()
    assert got.norms[2] == 0
    assert unreadable_note(got.readable) == ("3 of 21 images could not be read and are left out",)


@pytest.fixture
def refused(monkeypatch) -> set[Path]:
    """Files that may not be read, to be changed; neither the permission nor its change shows in size and time."""
    read = Path.read_bytes
    refused: set[Path] = set()

    def read_if_allowed(path: Path) -> bytes:
        if path in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_if_allowed)
    return refused


@pytest.mark.parametrize("processes", [1, 2])
def test_what_could_not_be_read_is_tried_again_alone(model, files, tmp_path, monkeypatch, refused, processes):
    cache = tmp_path / "cache"
    refused |= {files.paths[4], files.paths[9]}
    with pytest.raises(
        ValueError, match=r"2 of 21 .*4\.png cannot be read; .*9\.png cannot be read: Permission denied"
    ):
        embed(model, cache)(files)
    left_out = embed(model, cache, processes=processes, most_unreadable=0.2)(files)
    assert np.flatnonzero(~left_out.readable).tolist() == [4, 9]
    refused.clear()
    tried, read = [], ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda images, index: tried.append(index) or read(images, index))
    again = embed(model, cache, processes=processes)(files)
    assert again.readable.all()
    np.testing.assert_allclose(again.embeddings, Embedder.load(model.path).embed(faces(21))[0], atol=1e-5)
    assert sorted(tried) == [4, 9]
    embed(model, cache)(files)
    assert sorted(tried) == [4, 9]
    assert sorted(cache.iterdir()) == kept(cache)  # no lock is left


def test_a_table_that_cannot_be_opened_again_keeps_its_embeddings(model, files, tmp_path, monkeypatch, refused):
    """It is as large as all embeddings, and is mapped a second time."""
    cache, read = tmp_path / "cache", embedding_table.read_array
    refused.add(files.paths[4])
    embed(model, cache, most_unreadable=0.2)(files)
    before = kept(cache)[0].read_bytes()

    def read_once(path: Path, *, writable: bool = False, **more) -> np.ndarray:
        if writable:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))
        return read(path, **more)

    monkeypatch.setattr(embedding_table, "read_array", read_once)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        embed(model, cache)(files)
    assert kept(cache)[0].read_bytes() == before
    assert sorted(cache.iterdir()) == kept(cache)


def test_what_can_be_read_a_moment_later_is_told(model, files, tmp_path, monkeypatch, refused):
    cache, load = tmp_path / "cache", embedding_cache.load_or_fill

    def back_again(*arguments, **options) -> np.ndarray:
        table = load(*arguments, **options)
        refused.clear()
        return table

    refused.add(files.paths[4])
    monkeypatch.setattr(embedding_cache, "load_or_fill", back_again)
    with pytest.raises(
        ValueError, match=r"--most_unreadable\): by now the first ones can be: run the same command again"
    ):
        embed(model, cache)(files)
    assert embed(model, cache)(files).readable.all()


def test_a_file_that_others_own_stays_as_it_is(model, files, tmp_path, monkeypatch, refused):
    refused.add(files.paths[4])
    embed(model, tmp_path / "cache", most_unreadable=0.2)(files)
    refused.clear()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).suffix != ".npy")
    got = embed(model, tmp_path / "cache", most_unreadable=0.2)(files)
    assert np.flatnonzero(~got.readable).tolist() == [4]


def test_a_photograph_without_a_face_is_looked_at_once(model, files, tmp_path):
    looked = []

    def look(image: np.ndarray, index: int) -> np.ndarray:
        looked.append(index)
        if index == 3:
            raise NoFaceError("no face was found in 3.png")
        return image

    images = ImageFiles("album", files.paths, look, "looked at")
    for _ in range(2):
        got = embed(model, tmp_path / "cache", most_unreadable=0.2)(images)
        assert np.flatnonzero(~got.readable).tolist() == [3]
    assert sorted(looked) == list(range(21))
    with pytest.raises(ValueError, match=r"1 of 21 images of album cannot be read .*: no face was found in 3\.png"):
        embed(model, tmp_path / "cache")(images)


@dataclass(frozen=True)
class SlowImages:
    """Images that take their time, and note that they were read."""

    log: str
    name: str = "slow"

    def __len__(self) -> int:
        return 40

    def read(self, index: int) -> np.ndarray:
        time.sleep(0.02)
        with Path(self.log).open("a") as file:
            file.write(f"{index}\n")
        return faces(1, seed=index)[0]

    def fingerprint(self) -> str:
        return "slow"


KILLED = """
import sys, time
sys.path[:0] = ["tests"]
from tests.inference.test_embedding_cache import ModelFile, SlowImages, embed
from pathlib import Path

class StuckImages(SlowImages):
    def read(self, index):
        if index >= 24:
            time.sleep(300)
        return super().read(index)

embed(ModelFile(sys.argv[1]), Path(sys.argv[2]), batch_size=2)(StuckImages(sys.argv[3]))
"""


def test_a_killed_evaluation_goes_on(model, tmp_path):
    log, cache = tmp_path / "log", tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", KILLED, model.path, str(cache), str(log)], cwd=ROOT)
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 16):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not kept(cache)
    log.unlink()
    got = embed(model, cache, batch_size=2)(SlowImages(str(log)))
    again = {int(line) for line in log.read_text().splitlines()}
    assert 0 not in again
    assert len(again) < 40
    assert got.readable.all()
    expected, _ = Embedder.load(model.path).embed(np.stack([faces(1, seed=index)[0] for index in range(40)]))
    np.testing.assert_allclose(got.embeddings, expected, atol=1e-5)
    assert [path.name for path in cache.iterdir()] == [kept(cache)[0].name]


@dataclass(frozen=True)
class DeadlyImages(SlowImages):
    """Images whose reading ends the process."""

    def read(self, index: int) -> np.ndarray:
        os._exit(3)


@dataclass(frozen=True)
class HugeImages(SlowImages):
    """Images for which there is no memory."""

    def read(self, index: int) -> np.ndarray:
        raise MemoryError("Unable to allocate 8 GiB")


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_lack_of_memory_is_not_the_fault_of_an_image(model, tmp_path, processes):
    with pytest.raises(MemoryError, match="Unable to allocate 8 GiB"):
        embed(model, tmp_path / "cache", processes=processes, most_unreadable=1)(HugeImages(str(tmp_path / "log")))
    assert not kept(tmp_path / "cache")


@pytest.mark.usefixtures("forked")
def test_the_death_of_a_process_is_told(model, tmp_path):
    with pytest.raises(RuntimeError, match="a process that embeds images died"):
        embed(model, tmp_path, processes=2)(DeadlyImages(str(tmp_path / "log")))


@dataclass(frozen=True)
class InterruptedImages(SlowImages):
    """Images during whose arrival in a process Ctrl-C is pressed; they note what the signals do when they are read."""

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__.update(state)
        os.kill(os.getpid(), signal.SIGINT)

    def read(self, index: int) -> np.ndarray:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS)
        effects = [signal.getsignal(number) for number in STOP_SIGNALS]
        with Path(self.log).open("a") as file:
            file.write(f"{effects == [signal.SIG_IGN, signal.SIG_DFL]} {sorted(blocked)}\n")
        return faces(1, seed=index)[0]


@pytest.mark.usefixtures("ctrl_c")
def test_a_process_that_starts_leaves_ctrl_c_to_its_parent(model, tmp_path):
    log = tmp_path / "log"
    assert embed(model, tmp_path / "cache", processes=2)(InterruptedImages(str(log))).readable.all()
    assert log.read_text().splitlines() == ["True []"] * 40
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS)


@dataclass(frozen=True)
class StuckImages(SlowImages):
    """Images whose reading takes a minute, which note the process."""

    def read(self, index: int) -> np.ndarray:
        with Path(self.log).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(60)
        return faces(1)[0]


@pytest.mark.usefixtures("forked", "ctrl_c")
def test_ctrl_c_ends_the_processes(model, tmp_path):
    log = tmp_path / "log"
    log.touch()

    def readers() -> set[int]:
        return {int(line) for line in log.read_text().splitlines()}

    over = threading.Event()

    def press() -> None:
        while len(readers()) < 2 and not over.wait(0.05):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            embed(model, tmp_path / "cache", processes=2)(StuckImages(str(log)))
    finally:
        over.set()
        finger.join()
    assert len(readers()) == 2
    assert not [pid for pid in readers() if Path(f"/proc/{pid}").exists()]


def test_a_damaged_file_of_embeddings_is_refused(model, files, tmp_path):
    embed(model, tmp_path / "cache")(files)
    np.save(kept(tmp_path / "cache")[0], np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"is damaged .*: delete it"):
        embed(model, tmp_path / "cache")(files)


@pytest.mark.parametrize(
    ("column", "value"), [(slice(100, 228), 0), (slice(512, 513), 0), (slice(513, 514), 0), (3, 2)]
)
def test_zeros_inside_of_a_file_of_embeddings_are_found(model, files, tmp_path, column, value):
    """A part of an embedding, a norm, a state; and a number that is not zero."""
    embed(model, tmp_path / "cache")(files)
    table = np.load(kept(tmp_path / "cache")[0], mmap_mode="r+")
    table[2, column] = value
    table.flush()
    with pytest.raises(ValueError, match="is damaged: its embeddings are no unit vectors, or missing; delete it"):
        embed(model, tmp_path / "cache")(files)


def test_images_of_a_pair_set(tmp_path, model):
    encoded = [cv2.imencode(".png", image)[1].tobytes() for image in faces(4)]
    write_bin(tmp_path / "lfw.bin", encoded, [True, False])
    images = PairSetImages(open_pair_set(tmp_path, "lfw"), tmp_path / "lfw.bin")
    assert len(images) == 4
    assert images.name == "lfw"
    np.testing.assert_array_equal(images.read(2), faces(4)[2])
    before = images.fingerprint()
    assert PairSetImages(open_pair_set(tmp_path, "lfw"), tmp_path / "lfw.bin").fingerprint() == before
    os.utime(tmp_path / "lfw.bin", ns=(1, 1))
    assert images.fingerprint() != before


def test_grey_images_have_three_equal_channels_and_red_stays_red(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((112, 112), 77, np.uint8))
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 2] = 255
    cv2.imwrite(str(tmp_path / "red.png"), red)
    images = ImageFiles("x", [tmp_path / "grey.png", tmp_path / "red.png"])
    assert (images.read(0) == 77).all()
    np.testing.assert_array_equal(images.read(1), red)


def test_images_are_prepared(tmp_path):
    cv2.imwrite(str(tmp_path / "large.png"), np.full((200, 300, 3), 9, np.uint8))
    paths = [tmp_path / "large.png"]
    images = ImageFiles("x", paths, prepare=lambda image, index: image[:112, :112], prepared_as="cut")
    assert images.read(0).shape == (112, 112, 3)
    assert images.fingerprint() != ImageFiles("x", paths).fingerprint()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_network_that_is_broken_is_refused_at_once(files, tmp_path, processes):
    path = write_checkpoint(tmp_path / "diverged.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    for weights in checkpoint["state_dict"].values():
        if weights.is_floating_point():
            weights.fill_(torch.nan)
    torch.save(checkpoint, path)
    with pytest.raises((ValueError, RuntimeError), match=r"the embeddings of .*diverged\.ckpt are not finite"):
        embed(ModelFile(str(path)), tmp_path / "cache", processes=processes, batch_size=4)(files)
    assert not kept(tmp_path / "cache")


def test_a_list_of_images_may_have_a_long_name(model, files, tmp_path):
    assert embed(model, tmp_path / "cache")(ImageFiles("n" * 250, files.paths[:2])).readable.all()
