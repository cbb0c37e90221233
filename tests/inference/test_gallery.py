from dataclasses import replace

import numpy as np
import pytest

from adaface.inference.gallery import NamedEmbeddings, read_embeddings, write_embeddings


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
        ({"embeddings": np.ones(5, np.float32)}, "is not a file of `adaface embed`"),
    ],
)
def test_damaged_arrays(tmp_path, change, message):
    write_embeddings(tmp_path / "x.npz", replace(some_faces(), **change))
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "x.npz")


def test_an_empty_gallery(tmp_path):
    write_embeddings(tmp_path / "x.npz", some_faces(0))
    with pytest.raises(ValueError, match="contains no embeddings"):
        read_embeddings(tmp_path / "x.npz")
