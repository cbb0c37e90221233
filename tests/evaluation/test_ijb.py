import json
import pickle
import shutil

import cv2
import numpy as np
import pytest

from adaface.alignment.warp import warp_face
from adaface.config.choices import POOLINGS
from adaface.evaluation import ijb
from adaface.evaluation.ijb_metadata import metadata_files, read_metadata, template_subjects
from adaface.metrics.outcome import Embedded
from adaface.metrics.verification import fuse_flip
from tests.support import oracles_identification as oracle

SHARE = 100  # percent


@pytest.fixture
def root(golden, tmp_path):
    """The golden set, with its folder of photographs, which nobody opens."""
    shutil.copytree(golden / "ijb" / "IJBC", tmp_path / "IJBC")
    (tmp_path / "IJBC" / "loose_crop").mkdir()
    return tmp_path


@pytest.fixture
def features(golden):
    return np.load(golden / "ijb" / "IJBC" / "features.npy")


def embedded(features, unreadable=()):
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    readable = ~np.isin(np.arange(len(features)), unreadable)
    return Embedded(np.where(readable[:, None], features / norms, 0), norms * readable[:, None], readable)


def edit(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def test_golden_numbers(root, features, golden):
    outcome = ijb.run(lambda images: embedded(features), root, "IJBC")
    expected = json.loads((golden / "ijb" / "IJBC" / "expected.json").read_text())
    scores = np.load(golden / "ijb" / "IJBC" / "expected.npz")["pair_scores"]
    wanted = {f"TAR at FAR {float(far):.0e}".replace("e-0", "e-"): rate for far, rate in expected["tpr_at_fpr"].items()}
    wanted |= {f"rank-{k}": expected[f"rank{k}"] for k in (1, 5, 10)}
    wanted |= {f"TPIR at FPIR {fpir}": rate for fpir, rate in expected["tpir_at_fpir"].items()}
    assert dict(outcome.numbers) == pytest.approx({name: SHARE * rate for name, rate in wanted.items()}, abs=1e-4)
    assert list(outcome.numbers)[:2] == ["TAR at FAR 1e-6", "TAR at FAR 1e-5"]
    np.testing.assert_allclose(outcome.similarity, scores, rtol=0, atol=1e-6)
    labels = np.loadtxt(root / "IJBC" / "meta" / "ijbc_template_pair_label.txt", dtype=int)[:, 2]
    assert np.array_equal(outcome.issame, labels == 1)
    assert (outcome.protocol, outcome.data) == ("ijbc", "IJB-C")


def test_a_quick_look_takes_some_pairs_and_the_images_of_their_templates(root, features):
    metadata, asked = read_metadata(root, "IJBC"), []

    def embed(images):
        asked.extend(path.name for path in images.paths)
        return embedded(features[np.isin(metadata.file_names, asked)])

    whole = ijb.run(lambda images: embedded(features), root, "IJBC")
    some = ijb.run(embed, root, "IJBC", limit=40)
    chosen = np.linspace(0, len(metadata.issame) - 1, 40).round().astype(int)
    np.testing.assert_allclose(some.similarity, whole.similarity[chosen], atol=1e-6)
    assert np.array_equal(some.issame, metadata.issame[chosen])
    assert not any(name.startswith("rank") for name in some.numbers)
    assert f"quick test: 40 of {len(metadata.issame):,} pairs, no 1:N" in some.notes
    assert len(asked) < len(features)


def test_rates_have_intervals_by_subject(root, features):
    metadata = read_metadata(root, "IJBC")
    subjects = template_subjects(metadata)
    known = np.unique(metadata.template_ids)
    assert len(subjects) == len(known)
    for part in (metadata.gallery, metadata.probes):
        assert np.array_equal(subjects[np.searchsorted(known, part.template_ids)], part.subject_ids)
    outcome = ijb.run(lambda images: embedded(features), root, "IJBC")
    assert set(outcome.intervals) == {name for name in outcome.numbers if not name.startswith("TPIR")}
    for name, (low, high) in outcome.intervals.items():
        assert 0 <= low <= outcome.numbers[name] <= high <= 100
        assert high - low > 0.1


def test_ijb_b_has_other_file_names(root, features):
    numbers = ijb.run(lambda images: embedded(features), root, "IJBC").numbers
    (root / "IJBC").rename(root / "IJBB")
    for path in (root / "IJBB" / "meta").iterdir():
        path.rename(path.with_name(path.name.replace("ijbc", "ijbb").replace("_G", "_S")))
    outcome = ijb.run(lambda images: embedded(features), root, "IJBB")
    assert outcome.numbers == numbers
    assert (outcome.protocol, outcome.data) == ("ijbb", "IJB-B")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_as_the_slow_oracle(root, features, pooling):
    metadata = read_metadata(root, "IJBC")
    mirrored = features + np.random.default_rng(0).standard_normal(features.shape).astype(np.float32)
    e1, e2 = embedded(features), embedded(mirrored)

    def embed(images, view="fused"):
        both = fuse_flip(e1.embeddings, e1.norms, e2.embeddings, e2.norms)
        return {"image": e1, "mirror": e2, "fused": Embedded(*both, np.ones(len(features), dtype=bool))}[view]

    outcome = ijb.run(embed, root, "IJBC", pooling=pooling)
    of_images = np.array(
        [
            oracle.image_feature(pooling, *side)
            for side in zip(e1.embeddings, e1.norms, e2.embeddings, e2.norms, strict=True)
        ]
    )
    templates = np.stack(list(oracle.pooled(of_images, metadata.template_ids, metadata.media_ids).values()))
    scores = [float(templates[first] @ templates[second]) for first, second in metadata.pairs.T]
    np.testing.assert_allclose(outcome.similarity, scores, rtol=0, atol=1e-6)
    assert f"template pooling: {pooling}" in outcome.notes


def test_a_pooling_that_is_not_known_is_refused(root, features):
    with pytest.raises(ValueError, match="got the pooling 'mean', expected one of pre_norm_vector_add"):
        ijb.run(lambda images: embedded(features), root, "IJBC", pooling="mean")


def test_unreadable_images_are_left_out_of_their_templates(root, features):
    metadata = read_metadata(root, "IJBC")
    _, places, counts = np.unique(metadata.template_ids, return_index=True, return_counts=True)
    lost = places[counts > 1][:5]
    outcome = ijb.run(lambda images: embedded(features, lost), root, "IJBC")
    assert outcome.notes[1].startswith("5 of 465 images could not be read")
    kept = np.setdiff1d(np.arange(len(features)), lost)
    templates = oracle.pooled(features[kept], metadata.template_ids[kept], metadata.media_ids[kept])
    templates = np.stack(list(templates.values()))
    scores = [float(templates[first] @ templates[second]) for first, second in metadata.pairs.T]
    np.testing.assert_allclose(outcome.similarity, scores, rtol=0, atol=1e-6)


def test_a_template_of_which_nothing_can_be_read_is_an_error(root, features):
    templates = read_metadata(root, "IJBC").template_ids
    lost = np.flatnonzero(np.isin(templates, (101, 320)))
    with pytest.raises(ValueError, match="no image of 2 templates of IJB-C could be read: 101, 320"):
        ijb.run(lambda images: embedded(features, lost), root, "IJBC")


def test_features_of_another_count_are_refused(root, features):
    with pytest.raises(ValueError, match=r"got 464 embeddings, 464 norms and 464 readable flags .* the 465 images"):
        ijb.run(lambda images: embedded(features[1:]), root, "IJBC")


@pytest.mark.parametrize("block_bytes", [1, 3000, 10**9])
def test_pair_scores_however_they_are_cut(block_bytes):
    templates = oracle.random_units(30, 8, 0)
    pairs = np.random.default_rng(1).integers(0, 30, (2, 500))
    pairs[:, :3] = [[4, 4, 29], [4, 7, 0]]
    expected = [float(templates[a].astype(np.float64) @ templates[b]) for a, b in pairs.T]
    np.testing.assert_allclose(ijb.pair_scores(templates, pairs, block_bytes=block_bytes), expected, atol=1e-6)


def test_images_are_aligned_by_their_landmarks_in_any_process(root):
    metadata = read_metadata(root, "IJBC")
    photograph = np.random.default_rng(0).integers(0, 256, (140, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(root / "IJBC" / "loose_crop" / metadata.file_names[3]).replace(".jpg", ".png"), photograph)
    (root / "IJBC" / "loose_crop" / metadata.file_names[3].replace(".jpg", ".png")).rename(
        root / "IJBC" / "loose_crop" / metadata.file_names[3]
    )
    images = pickle.loads(pickle.dumps(ijb.aligned_images(metadata)))
    assert len(images) == 465
    assert np.array_equal(images.read(3), warp_face(photograph, metadata.landmarks[3]))
    assert [path.name for path in images.paths[2:4]] == metadata.file_names[2:4].tolist()
    with pytest.raises(ValueError, match=f"{metadata.file_names[4]} cannot be read"):
        images.read(4)


@pytest.mark.parametrize(
    ("scale", "told"),
    [(0.5, "refused"), (1, ""), (1.3, "is this their original size"), (2, "refused"), (3, "refused")],
)
def test_crops_of_another_scale_than_the_landmarks_are_told(root, features, scale, told):
    metadata = read_metadata(root, "IJBC")
    for name, points in zip(metadata.file_names, metadata.landmarks, strict=True):
        width, height = (2 * scale * points.mean(axis=0)).round().astype(int).tolist()
        encoded = cv2.imencode(".png", np.zeros((height, width, 3), np.uint8))[1]
        (root / "IJBC" / "loose_crop" / name).write_bytes(encoded.tobytes())
    if told == "refused":
        with pytest.raises(ValueError, match="loose_crop have another scale than the landmark file: the middle of the"):
            ijb.run(lambda images: embedded(features), root, "IJBC")
    else:
        notes = ijb.run(lambda images: embedded(features), root, "IJBC").notes
        assert any("original size" in note for note in notes) == bool(told)


def test_landmarks_in_reverse_order_are_told(root, features):
    metadata = read_metadata(root, "IJBC")
    for name in metadata.file_names:
        encoded = cv2.imencode(".png", np.zeros((120, 110, 3), np.uint8))[1]
        (root / "IJBC" / "loose_crop" / name).write_bytes(encoded.tobytes())

    def reverse(line):
        name, *numbers, score = line.split(" ")
        points = [numbers[start : start + 2] for start in range(8, -1, -2)]
        return " ".join([name, *(number for point in points for number in point), score])

    edit(metadata_files(root, "IJBC")["landmarks"], lambda lines: list(map(reverse, lines)))
    with pytest.raises(ValueError, match=r"loose_crop are turned by 1\d\d degrees"):
        ijb.run(lambda images: embedded(features), root, "IJBC")


def test_a_wrong_coordinate_of_the_landmarks_is_told(root, features):
    metadata = read_metadata(root, "IJBC")
    for name in metadata.file_names:
        encoded = cv2.imencode(".png", np.zeros((120, 110, 3), np.uint8))[1]
        (root / "IJBC" / "loose_crop" / name).write_bytes(encoded.tobytes())

    def higher(line):
        name, *numbers, score = line.split(" ")
        moved = [f"{float(number) - 40 * (place % 2)}" for place, number in enumerate(numbers)]
        return " ".join([name, *moved, score])

    edit(metadata_files(root, "IJBC")["landmarks"], lambda lines: list(map(higher, lines)))
    with pytest.raises(ValueError, match=r"the y of the landmark file does not fit .*loose_crop: \d\d % of"):
        ijb.run(lambda images: embedded(features), root, "IJBC")


def test_fingerprints_change_with_the_landmarks_and_the_side(root):
    images = ijb.aligned_images(read_metadata(root, "IJBC"))
    edit(metadata_files(root, "IJBC")["landmarks"], lambda lines: [lines[0].replace(" 38.5781 ", " 38.6 "), *lines[1:]])
    moved = ijb.aligned_images(read_metadata(root, "IJBC"))
    assert images.fingerprint() != moved.fingerprint()


@pytest.mark.parametrize("gone", [["probes"], ["gallery G1", "gallery G2", "probes"]])
def test_without_lists_of_1n_there_are_the_numbers_of_1_to_1(root, features, gone):
    whole = ijb.run(lambda images: embedded(features), root, "IJBC")
    files = [metadata_files(root, "IJBC")[key] for key in gone]
    for file in files:
        file.unlink()
    outcome = ijb.run(lambda images: embedded(features), root, "IJBC")
    assert dict(outcome.numbers) == {name: x for name, x in whole.numbers.items() if name.startswith("TAR")}
    assert outcome.notes[-1] == (
        f"no 1:N, and intervals by template instead of subject: missing {', '.join(map(str, files))}"
    )


def test_missing_files_are_named_all_at_once(root):
    files = metadata_files(root, "IJBC")
    gone = [files["pairs"], files["gallery G2"]]
    for path in gone:
        path.unlink()
    (root / "IJBC" / "loose_crop").rmdir()
    with pytest.raises(FileNotFoundError) as error:
        read_metadata(root, "IJBC")
    assert all(str(path) in str(error.value) for path in (*gone, root / "IJBC" / "loose_crop"))
    with pytest.raises(ValueError, match="got the set 'IJBA', expected IJBB or IJBC"):
        read_metadata(root, "IJBA")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "pairs",
            lambda ls: [*ls[:7], "101 999 1", *ls[7:]],
            "line 8: the pair 101 and 999 refers to a template without",
        ),
        ("pairs", lambda ls: [*ls[:2], "", "101 102 2"], "line 4: the label must be 0 or 1, got 2"),
        ("pairs", lambda ls: [*ls[:2], "101 102"], "line 3: got 2 fields, expected 3"),
        ("pairs", lambda ls: [], "lists no pairs"),
        ("landmarks", lambda ls: ["a.jpg 1 2 3", *ls], "line 1: got 4 fields, expected 12"),
        ("landmarks", lambda ls: [], "lists no images"),
        ("templates", lambda ls: ls[:-1], "lists 464 images, .* 465: expected the same number"),
        ("templates", lambda ls: [*ls, "last.jpg 320 1"], "lists 466 images, .* 465: expected the same number"),
        ("templates", lambda ls: [ls[1], ls[0], *ls[2:]], "line 1: got 380.jpg, expected 463.jpg as in"),
        ("templates", lambda ls: [*ls[:4], ls[4].replace(" ", " x", 1), *ls[5:]], "line 5: template must be a whole"),
        ("gallery G1", lambda ls: [*ls, "5000,1000,x"], "1 templates have no images: 5000"),
        ("gallery G1", lambda ls: ls[:1], "lists no templates"),
        ("gallery G1", lambda ls: [*ls, "101,1001,x"], "templates with several subjects, expected one each: 101"),
        ("gallery G2", lambda ls: [*ls, "102,1000,x"], "probes have several of them, expected exactly one"),
        (
            "gallery G2",
            lambda ls: [line for line in ls if ",1003," not in line],
            "no gallery template of their subject",
        ),
        ("probes", lambda ls: ls[1:], "line 1: expected a header"),
        ("probes", lambda ls: [*ls, "103"], "line 97: got 1 fields"),
    ],
)
def test_metadata_that_does_not_fit(root, file, change, message):
    edit(metadata_files(root, "IJBC")[file], change)
    with pytest.raises(ValueError, match=message):
        read_metadata(root, "IJBC")


def test_templates_count_once_however_often_they_are_named(root):
    metadata = read_metadata(root, "IJBC")
    assert len(metadata.probes.template_ids) == len(set(metadata.probes.template_ids.tolist())) == 95
    assert sorted(metadata.gallery.subject_ids.tolist()) == list(range(1000, 1019))
