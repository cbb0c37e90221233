import math

import numpy as np
import pytest
from scipy.io import savemat

from adaface.evaluation import tinyface
from adaface.evaluation.matlab_file import read_texts
from adaface.metrics.outcome import Embedded
from tests.support import oracles_identification as oracle

FOLDERS = ("Gallery_Match", "Probe", "Gallery_Distractor")


def name_lists(root, gallery, probes):
    testing = root / "tinyface" / "Testing_Set"
    testing.mkdir(parents=True, exist_ok=True)
    for key, file, names in (("gallery_set", "gallery_match", gallery), ("probe_set", "probe", probes)):
        cells = np.array([[name] for name in names], dtype=object)
        savemat(testing / f"{file}_img_ID_pairs.mat", {key: cells, key.replace("set", "ids"): np.arange(len(names))})


@pytest.fixture
def make(tmp_path):
    """A root in the layout of TinyFace; the images are empty files that nobody opens."""

    def build(gallery, probes, distractors):
        name_lists(tmp_path, gallery, probes)
        for folder, names in zip(FOLDERS, (gallery, probes, distractors), strict=True):
            (tmp_path / "aligned_pad_0.1_pad_high" / folder).mkdir(parents=True)
            for name in names:
                (tmp_path / "aligned_pad_0.1_pad_high" / folder / name).touch()
        return tmp_path

    return build


def embedder(by_name, unreadable=()):
    def embed(images):
        readable = np.array([path.name not in unreadable for path in images.paths])
        vectors = np.stack([by_name[path.name] for path in images.paths]) * readable[:, None]
        return Embedded(vectors.astype(np.float32), np.ones((len(vectors), 1), np.float32), readable)

    return embed


def test_golden_rates(make, golden):
    reference = np.load(golden / "tinyface.npz")
    gallery, probes = (
        [f"{label}_{number}.jpg" for number, label in enumerate(reference[f"{kind}_labels"], start)]
        for kind, start in (("gallery", 0), ("probe", 1000))
    )
    distractors = [f"{number}.jpg" for number in range(len(reference["distractor"]))]
    vectors = np.concatenate([reference[kind] for kind in ("gallery", "probe", "distractor")])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    by_name = dict(zip([*gallery, *probes, *distractors], vectors, strict=True))
    outcome = tinyface.run(embedder(by_name), make(gallery, probes, distractors))
    expected = {
        f"rank-{k}": 100 * rate for k, rate in zip(reference["ranks"], reference["expected"].tolist(), strict=True)
    }
    assert dict(outcome.numbers) == pytest.approx(expected, abs=1e-4)
    assert outcome.notes == ("200 probes, gallery of 150 images and 600 distractors",)


def at(degrees):
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


BY_HAND = {"1_a.jpg": at(0), "1_b.jpg": at(90), "2_a.jpg": at(45), "x.jpg": at(20), "y.PNG": at(130)}
PROBES = {"1_p.jpg": at(85), "1_q.jpg": at(15), "2_p.jpg": at(-10), "2_q.jpg": at(44)}


def test_by_hand(make):
    root = make([*BY_HAND][:3], [*PROBES], [*BY_HAND][3:])
    (root / "aligned_pad_0.1_pad_high" / "Gallery_Distractor" / "Thumbs.db").touch()
    # ranks: 1 (1_b), 2 (x, then 1_a), 3 (1_a, x, then 2_a), 1
    assert tinyface.run(embedder(BY_HAND | PROBES), root).numbers == {"rank-1": 50, "rank-5": 100, "rank-20": 100}


def test_what_cannot_be_read_is_not_found_or_left_out(make):
    root = make([*BY_HAND][:3], [*PROBES], [*BY_HAND][3:])
    outcome = tinyface.run(embedder(BY_HAND | PROBES, unreadable=("1_p.jpg", "x.jpg")), root)
    assert outcome.numbers == {"rank-1": 50, "rank-5": 75, "rank-20": 75}  # without x, 1_q is of rank 1
    assert outcome.notes[1].startswith("2 images could not be read: 1 probes, which count as misses")
    lost_mate = tinyface.run(embedder(BY_HAND | PROBES, unreadable=("2_a.jpg",)), root)
    assert lost_mate.numbers == {"rank-1": 25, "rank-5": 50, "rank-20": 50}


def test_as_the_slow_oracle(make):
    generator = np.random.default_rng(0)
    gallery = [f"{label}_{number}.jpg" for number, label in enumerate(generator.integers(0, 12, 30))]
    labels = sorted({name.partition("_")[0] for name in gallery})
    probes = [f"{label}_p{number}.jpg" for number, label in enumerate(generator.choice(labels, 40))]
    distractors = [f"{number:03}.jpg" for number in range(50)]
    names = [*gallery, *probes, *distractors]
    vectors = oracle.random_units(len(names), 6, 1)
    outcome = tinyface.run(embedder(dict(zip(names, vectors, strict=True))), make(gallery, probes, distractors))
    scores = vectors[30:70].astype(np.float64) @ np.concatenate([vectors[:30], vectors[70:]]).T
    owners = [name.partition("_")[0] for name in gallery] + [""] * 50
    _, ranks, _, _ = oracle.searched(scores, [name.partition("_")[0] for name in probes], owners)
    assert dict(outcome.numbers) == pytest.approx({f"rank-{k}": 100 * (ranks <= k).mean() for k in (1, 5, 20)})


def test_what_is_missing_is_named_all_at_once(make):
    root = make(["1_a.jpg"], ["1_p.jpg"], ["x.jpg"])
    gone = [root / "tinyface" / "Testing_Set" / "probe_img_ID_pairs.mat"]
    gone[0].unlink()
    for folder in ("Probe", "Gallery_Distractor"):
        gone.append((root / "aligned_pad_0.1_pad_high" / folder).rename(root / folder).parent)
    with pytest.raises(FileNotFoundError) as error:
        tinyface.run(embedder(BY_HAND), root)
    for name in ("probe_img_ID_pairs.mat", "Probe", "Gallery_Distractor"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("gallery", "probes", "distractors", "message"),
    [
        (["1_a.jpg"], ["1_p.jpg", "3_p.jpg"], ["x.jpg"], "1 probes have no image of their identity .*: 3_p.jpg"),
        (["1_a.jpg", "nobody.jpg"], ["1_p.jpg"], ["x.jpg"], "1 file names have no identity before a `_`, .*nobody"),
        (["1_a.jpg"], ["1_p.jpg"], [], "Gallery_Distractor contains no images"),
        ([1.5], ["1_p.jpg"], ["x.jpg"], "`gallery_set` in .* must be a list of file names, got a float"),
    ],
)
def test_lists_that_do_not_fit(make, gallery, probes, distractors, message):
    root = make([name for name in gallery if isinstance(name, str)] or ["1_a.jpg"], probes, distractors)
    name_lists(root, gallery, probes)
    with pytest.raises(ValueError, match=message):
        tinyface.run(embedder(BY_HAND | PROBES), root)


@pytest.mark.parametrize("content", [b"", b"no matrix at all", b"MATLAB 7.3 MAT-file" + bytes(105) + b"\x00\x02IM"])
def test_files_that_are_not_of_matlab(make, content):
    root = make(["1_a.jpg"], ["1_p.jpg"], ["x.jpg"])
    (root / "tinyface" / "Testing_Set" / "probe_img_ID_pairs.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"probe_img_ID_pairs\.mat is not a MATLAB file"):
        tinyface.run(embedder(BY_HAND | PROBES), root)


def test_a_file_that_crashes_its_reader(make, monkeypatch):
    root = make(["1_a.jpg"], ["1_p.jpg"], ["x.jpg"])
    monkeypatch.setattr("adaface.evaluation.matlab_file._READER", "import os; os.abort()")
    with pytest.raises(
        ValueError, match=r"\.mat is not a MATLAB file of version 4 to 7.2: it is damaged: its reader end"
    ):
        tinyface.run(embedder(BY_HAND | PROBES), root)


def test_a_file_that_announces_more_names_than_fit_into_memory(make):
    root = make(["1_a.jpg"], ["1_p.jpg"], ["x.jpg"])
    path = root / "tinyface" / "Testing_Set" / "probe_img_ID_pairs.mat"
    rows_and_columns = np.array([1, 1], "<i4").tobytes()
    assert path.read_bytes().count(rows_and_columns)  # of the list, then of each name
    damaged = path.read_bytes().replace(rows_and_columns, np.array([150_000_000, 1], "<i4").tobytes(), 1)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"probe_img_ID_pairs\.mat is not a MATLAB file .*: Memory") as error:
        read_texts(path, "probe_set")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_list_as_long_as_that_of_the_distractors(tmp_path, compressed):
    names = [f"{number}_{7 * number}.jpg" for number in range(153_428)]
    path = tmp_path / "names.mat"
    cells = np.array([[name] for name in names], dtype=object)
    savemat(path, {"probe_set": cells}, do_compression=compressed)
    assert read_texts(path, "probe_set") == names


def test_modules_of_the_working_folder_are_not_run(make, tmp_path, monkeypatch):
    root = make(["1_a.jpg"], ["1_p.jpg"], ["x.jpg"])
    (tmp_path / "json.py").write_text("import os; os._exit(3)")
    monkeypatch.chdir(tmp_path)
    assert read_texts(root / "tinyface" / "Testing_Set" / "probe_img_ID_pairs.mat", "probe_set") == ["1_p.jpg"]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_of_a_matlab_file(make, seed):
    root = make(["1_a.jpg"], ["1_p.jpg"], ["x.jpg"])
    path = root / "tinyface" / "Testing_Set" / "probe_img_ID_pairs.mat"
    whole, rng = path.read_bytes(), np.random.default_rng(seed)
    content = bytearray(whole)
    for place in rng.integers(128, len(content), 4):
        content[place] = rng.integers(256)
    path.write_bytes(content)
    try:
        names = read_texts(path, "probe_set")
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(name, str) for name in names)


def test_a_matlab_file_of_something_else(make):
    root = make(["1_a.jpg"], ["1_p.jpg"], ["x.jpg"])
    savemat(root / "tinyface" / "Testing_Set" / "probe_img_ID_pairs.mat", {"other": np.arange(3)})
    with pytest.raises(ValueError, match="has no `probe_set`"):
        tinyface.run(embedder(BY_HAND | PROBES), root)


def test_features_of_another_count_are_refused(make):
    root = make(["1_a.jpg"], ["1_p.jpg"], ["x.jpg"])
    with pytest.raises(ValueError, match="got 2 embeddings for the 3 images of TinyFace"):
        tinyface.run(lambda images: Embedded(np.eye(2), np.ones((2, 1)), np.ones(2, dtype=bool)), root)


def test_a_quick_look_takes_some_probes_and_distractors(make):
    gallery, probes = (["1_a.jpg", "2_a.jpg"], [f"{1 + number % 2}_p{number}.jpg" for number in range(10)])
    distractors = [f"{number}.jpg" for number in range(100)]
    asked = []

    def embed(images):
        asked.extend(path.name for path in images.paths)
        return Embedded(
            np.eye(len(images), 300, dtype=np.float32), np.ones((len(images), 1)), np.ones(len(images), bool)
        )

    outcome = tinyface.run(embed, make(gallery, probes, distractors), limit=5)
    assert len(asked) == 2 + 5 + 5
    assert any("quick test" in note for note in outcome.notes)
