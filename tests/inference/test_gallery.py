import os
from dataclasses import replace

import numpy as np
import pytest

from adaface.inference.gallery import NamedEmbeddings, read_embeddings, write_embeddings
from adaface.system.files import FileState, state_of


def some_faces(count: int = 5) -> NamedEmbeddings:
    vectors = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"ánna/{number}.jpg" for number in range(count)]
    return NamedEmbeddings(names, vectors, np.arange(count, dtype=np.float32), "ir_mini-1", "ir_mini")


def test_what_is_written_is_read(tmp_path):
    faces = some_faces()
    write_embeddings(tmp_path / "x.npz", faces)
    read = read_embeddings(tmp_path / "x.npz", "ir_mini-1")
    assert (read.names, read.model, read.arch, len(read)) == (faces.names, faces.model, faces.arch, 5)
    np.testing.assert_array_equal(read.embeddings, faces.embeddings)
    np.testing.assert_array_equal(read.norms, faces.norms)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_images_that_have_changed_since_are_known(tmp_path):
    files = [tmp_path / f"{number}.jpg" for number in range(5)]
    for file in files:
        file.write_bytes(file.name.encode())
    states = [state_of(file) for file in files]
    faces = replace(some_faces(), names=[file.name for file in files], folder=str(tmp_path), states=states)
    write_embeddings(tmp_path / "x.npz", faces)
    read = read_embeddings(tmp_path / "x.npz")
    assert (read.folder, read.states, read.changed()) == (str(tmp_path), states, [])
    os.utime(files[0], ns=(1, 1))  # a copy of the same content
    files[1].write_bytes(b"9.jpg")  # of the same size
    os.utime(files[1], ns=(states[1].modified_ns, states[1].modified_ns + 10**9))
    files[2].unlink()
    assert read.changed() == ["1.jpg", "2.jpg"]
    assert replace(read, folder=str(tmp_path / "gone")).changed() == []
    for unknown in (replace(faces, folder="", states=()), replace(faces, folder="a\0b")):
        write_embeddings(tmp_path / "x.npz", unknown)
        assert read_embeddings(tmp_path / "x.npz").changed() == []


def test_a_file_of_an_earlier_version_knows_no_images(tmp_path):
    write_embeddings(tmp_path / "x.npz", some_faces())
    with np.load(tmp_path / "x.npz") as arrays:
        kept = {name: arrays[name] for name in ("names", "embeddings", "norms", "model", "arch", "version")}
    np.savez(tmp_path / "old.npz", **kept)
    assert read_embeddings(tmp_path / "old.npz").changed() == []


def test_embeddings_of_another_model_are_refused(tmp_path):
    write_embeddings(tmp_path / "x.npz", some_faces())
    with pytest.raises(ValueError, match=r"another model \(ir_mini, fingerprint ir_mini-1; this model has ir_50-2\)"):
        read_embeddings(tmp_path / "x.npz", "ir_50-2")


def test_files_that_are_none_of_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_embeddings(tmp_path / "none.npz")
    whole = tmp_path / "whole.npz"
    write_embeddings(whole, some_faces())
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "objects.npz", names=np.array([{}], dtype=object))
    for name in ("cut", "text", "empty", "other", "objects"):
        with pytest.raises(ValueError, match=rf"{name}\.npz is not a file of `adaface embed`"):
            read_embeddings(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((5, 8), np.float32)}, "not all of its embeddings are unit vectors"),
        ({"norms": np.full(5, np.nan, np.float32)}, "is damaged"),
        ({"names": ["a"]}, r"\(1,\) names"),
        ({"states": [FileState(1, 1, "")]}, "1 states of images for 5 embeddings"),
        ({"embeddings": np.ones(5, np.float32)}, "is not a file of `adaface embed`"),
    ],
)
def test_damaged_arrays(tmp_path, change, message):
    write_embeddings(tmp_path / "x.npz", replace(some_faces(), **change))
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "x.npz")


def test_a_text_of_no_characters_is_damage(tmp_path):
    write_embeddings(tmp_path / "x.npz", some_faces())
    with np.load(tmp_path / "x.npz") as arrays:
        kept = dict(arrays)
    kept["folder"] = np.array([0x7FFFFFFF], np.uint32).view("U1")[0:1].reshape(())
    np.savez(tmp_path / "x.npz", **kept)
    with pytest.raises(ValueError, match="is not a file of `adaface embed`"):
        read_embeddings(tmp_path / "x.npz")


def test_an_empty_gallery(tmp_path):
    write_embeddings(tmp_path / "x.npz", some_faces(0))
    with pytest.raises(ValueError, match="contains no embeddings"):
        read_embeddings(tmp_path / "x.npz")


def test_a_gallery_that_names_a_device_is_compared_at_once():
    """It has no end, and the size that its state announces."""
    faces = replace(some_faces(1), names=["zero"], folder="/dev", states=[FileState(0, 1, "0" * 64)])
    assert faces.changed() == ["zero"]
