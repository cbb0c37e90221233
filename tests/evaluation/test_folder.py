import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import f1_score

from adaface.data.conversion_journal import Journal
from adaface.data.image_files import holds_images
from adaface.data.image_list import ImageList
from adaface.evaluation.degradation import DegradedImages
from adaface.evaluation.folder import FolderSplit, identify, run, run_and_show
from adaface.evaluation.identity_folder import open_identity_folder
from adaface.metrics.outcome import Embedded

# angles of the embeddings, in degrees; one of ann's is nearer to bob's first
PEOPLE = {"ann": (0, 10, 40), "bob": (60, 70, 65), "cat": (120, 110)}


def write_face(path: Path, angle_deg: int, side: int = 112) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((side, side, 3), angle_deg, dtype=np.uint8))


def write_people(root: Path, people: dict[str, tuple[int, ...]]) -> Path:
    for name, angles in people.items():
        for number, angle in enumerate(angles):
            write_face(root / name / f"{number:02d}.png", angle)
    return root


class Angles:
    """A model whose embedding of an even picture is (cos, sin) of its grey level in degrees.

    Attributes:
        asked: the lists that were embedded.
    """

    def __init__(self, offset_deg: float = 0.0) -> None:
        self.asked: list[ImageList] = []
        self._offset_deg = offset_deg

    def __call__(self, images: ImageList) -> Embedded:
        self.asked.append(images)
        angles, readable = np.zeros(len(images)), np.zeros(len(images), dtype=bool)
        for index in range(len(images)):
            try:
                angles[index] = images.read(index)[56, 56].mean() + self._offset_deg
            except ValueError:
                continue
            readable[index] = True
        embeddings = np.stack([np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))], axis=1) * readable[:, None]
        return Embedded(embeddings.astype(np.float32), (20.0 * readable[:, None]).astype(np.float32), readable)


def test_an_example_worked_by_hand(tmp_path):
    outcome = run(Angles(), write_people(tmp_path / "people", PEOPLE))
    assert (outcome.protocol, outcome.data) == ("folder", "people")
    # ann: 1 of 2 found; bob: both, and one of ann's; cat: its only one
    assert outcome.numbers["f1_score"] == pytest.approx(100 * (2 / 3 + 4 / 5 + 1) / 3)
    assert outcome.numbers["rank-1"] == outcome.numbers["accuracy"] == pytest.approx(80)
    assert math.isnan(outcome.numbers["rank-5"])  # of three people
    assert "3 identities in the gallery, 5 probes of them" in outcome.notes
    assert list(outcome.norms) == [20] * 5


def test_a_wrong_match_is_shown_beside_the_image_it_was_taken_for(tmp_path):
    outcome, wrong = run_and_show(Angles(), write_people(tmp_path / "people", PEOPLE))
    assert outcome.numbers["rank-1"] == pytest.approx(80)
    (pair,) = wrong.impostors  # ann at 40 degrees, taken for bob at 60
    assert wrong.genuine == ()
    assert pair.similarity == pytest.approx(np.cos(np.deg2rad(20)))
    assert pair.text == f"ann taken for bob; own similarity {np.cos(np.deg2rad(40)):.3f}, rank 2"
    shown = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[56, 56, 0] for jpeg in pair.pictures]
    assert shown == [40, 60]
    blurred_probes = run_and_show(Angles(), tmp_path / "people", degrade="blur", degraded_part="probe")[1]
    assert [pair.text for pair in blurred_probes.impostors] == [pair.text]


def test_the_gallery_is_the_mean_of_the_first_images(tmp_path):
    people = {"ann": (0, 60, 44), "bob": (80, 80, 60)}
    root = write_people(tmp_path, people)
    assert run(Angles(), root).numbers["rank-1"] == pytest.approx(50)  # 60 and 44 are nearer to 80 than to 0
    outcome = run(Angles(), root, FolderSplit(gallery_images=2))  # 30 and 80: 44 is ann, 60 is bob
    assert outcome.numbers["rank-1"] == 100


def test_macro_f1_is_that_of_scikit_learn(tmp_path):
    generator = np.random.default_rng(0)
    people = {f"p{n:02d}": tuple(generator.normal(8 * n + 10, 9, 5).clip(0, 255).astype(int)) for n in range(30)}
    root = write_people(tmp_path, people)
    folder = open_identity_folder(root)
    embedded = Angles()(folder.images)
    found = identify(folder, embedded, embedded)
    expected = 100 * f1_score(found.labels, found.predicted, average="macro")
    numbers = run(Angles(), root).numbers
    assert 10 < expected < 90
    assert numbers["f1_score"] == pytest.approx(expected)
    assert numbers["rank-1"] < numbers["rank-5"] < numbers["rank-10"]


def test_intervals_hold_their_numbers_and_need_people_not_images(tmp_path):
    outcome = run(Angles(), write_people(tmp_path, PEOPLE))
    for name, (low, high) in outcome.intervals.items():
        assert 0 <= low <= outcome.numbers[name] <= high <= 100
    assert set(outcome.intervals) == {"f1_score", "accuracy", "rank-1"}
    low, high = outcome.intervals["f1_score"]
    assert high - low > 50  # three people


def test_someone_with_one_image_is_in_the_gallery_and_is_told(tmp_path):
    outcome = run(Angles(), write_people(tmp_path, {**PEOPLE, "dan": (38,)}))
    assert "1 of 4 identities have no more than 1 image: they are in the gallery and have no probes" in outcome.notes
    # 40 is taken for dan now, which is no F1 of dan's: he has no probes
    assert outcome.numbers["f1_score"] == pytest.approx(100 * (2 / 3 + 1 + 1) / 3)


def test_separate_trees_with_people_who_are_not_in_the_gallery(tmp_path):
    gallery = {name: angles[:1] for name, angles in PEOPLE.items()}
    write_people(tmp_path / "gallery", gallery)
    write_people(tmp_path / "probe", {name: angles[1:] for name, angles in PEOPLE.items()})
    write_people(tmp_path / "probe", {"dan": (*[145] * 9, 62)})
    outcome = run(Angles(), tmp_path)
    assert outcome.numbers["f1_score"] == pytest.approx(100 * (2 / 3 + 4 / 5 + 1) / 3)
    # one of dan's ten is allowed, so that cos 25 degrees is the threshold; cos 40 degrees of ann's second is below
    assert outcome.numbers["TPIR at FPIR 0.1"] == pytest.approx(80)
    assert math.isnan(outcome.numbers["TPIR at FPIR 0.01"])  # of ten
    low, high = outcome.intervals["TPIR at FPIR 0.1"]
    assert low <= 80 <= high
    assert "3 identities in the gallery, 5 probes of them, 10 probes of others" in outcome.notes


def test_a_share_of_the_people_is_left_out_of_the_gallery(tmp_path):
    root = write_people(tmp_path, {f"p{n}": (20 * n, 20 * n + 1, 20 * n + 2) for n in range(10)})
    outcome = run(Angles(), root, FolderSplit(unknown_share=0.4, seed=1))
    assert outcome.numbers["rank-1"] == 100
    assert outcome.numbers["TPIR at FPIR 0.1"] == 100
    assert "6 identities in the gallery, 12 probes of them, 12 probes of others" in outcome.notes
    assert "4 of 10 identities, drawn by seed 1, have no gallery" in outcome.notes
    folder = open_identity_folder(root)
    embedded = Angles()(folder.images)
    drawn = [
        tuple(np.unique(identify(folder, embedded, embedded, unknown_share=0.4, seed=seed).unknown_labels))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_degraded_images_are_all_or_the_probes(tmp_path):
    root = write_people(tmp_path / "people", PEOPLE)
    embed = Angles()
    outcome = run(embed, root, FolderSplit(seed=4), degrade="blur", strength=0.5)
    assert [type(images) for images in embed.asked] == [DegradedImages]
    assert (embed.asked[0].seed, embed.asked[0].strength) == (4, 0.5)
    assert outcome.data == "people blurred"
    assert "gallery and probes degraded: blur of strength 0.5, seed 4" in outcome.notes
    embed = Angles()
    outcome = run(embed, root, degrade="blur", degraded_part="probe")
    assert {type(images).__name__ for images in embed.asked} == {"DegradedImages", "ImageFiles"}
    assert "the probes degraded: blur of strength 1, seed 0" in outcome.notes


def test_gallery_and_probes_are_taken_from_their_own_embeddings(tmp_path):
    folder = open_identity_folder(write_people(tmp_path, PEOPLE))
    turned = identify(folder, Angles(180)(folder.images), Angles()(folder.images))
    assert turned.mate_scores.max() < 0


def test_a_limit_keeps_whole_identities(tmp_path):
    root = write_people(tmp_path, PEOPLE)
    for limit, images, people in ((4, 6, 2), (6, 6, 2), (7, 8, 3), (100, 8, 3)):
        folder = open_identity_folder(root, limit)
        assert (len(folder.images), len(np.unique(folder.labels))) == (images, people)
    assert run(Angles(), root, FolderSplit(limit=4)).numbers["rank-1"] == pytest.approx(75)
    write_people(tmp_path / "trees" / "gallery", PEOPLE)
    write_people(tmp_path / "trees" / "probe", PEOPLE)
    assert run(Angles(), tmp_path / "trees", FolderSplit(limit=7)).numbers["rank-1"] > 0


def test_other_files_are_left_out_and_counted(tmp_path):
    root = write_people(tmp_path, PEOPLE)
    plain = run(Angles(), root)
    for name in ("ann/.hidden.png", "ann/notes.txt", "bob/Thumbs.db", "list.csv"):
        (root / name).write_text("no image")
    Journal(0, 0, False, images=8, done=8).save(root)
    (root / ".old").mkdir()
    (root / ".old" / "list.csv").touch()
    outcome = run(Angles(), root)
    assert outcome.numbers["f1_score"] == plain.numbers["f1_score"]
    assert "4 files are skipped" in outcome.notes


def test_unreadable_images_do_not_count(tmp_path):
    root = write_people(tmp_path, PEOPLE)
    (root / "ann" / "00.png").write_bytes(b"broken")  # ann's gallery is her second image then
    outcome = run(Angles(), root)
    assert "1 of 8 images could not be read and are left out" in outcome.notes
    assert "3 identities in the gallery, 4 probes of them" in outcome.notes


def test_probes_of_a_gallery_that_cannot_be_read_are_not_unknown_people(tmp_path):
    write_people(tmp_path / "gallery", {name: angles[:1] for name, angles in PEOPLE.items()})
    write_people(tmp_path / "probe", {name: angles[1:] for name, angles in PEOPLE.items()})
    (tmp_path / "gallery" / "ann" / "00.png").write_bytes(b"broken")
    outcome = run(Angles(), tmp_path)
    assert "TPIR at FPIR 0.1" not in outcome.numbers
    assert "1 identity has no readable gallery image: 2 probes are left out" in outcome.notes


# bad input


def test_images_that_are_not_aligned_are_refused_before_anything_is_embedded(tmp_path):
    root = write_people(tmp_path, PEOPLE)
    write_face(root / "bob" / "01.png", 70, side=224)
    embed = Angles()
    with pytest.raises(ValueError, match=r"01.png is 224x224 px, expected aligned faces of 112x112.*adaface align"):
        run(embed, root)
    assert not embed.asked


@pytest.mark.parametrize(
    ("people", "options", "message"),
    [
        (
            PEOPLE,
            {"split": FolderSplit(gallery_images=3)},
            "no identity of people has more than 3 images, so that none is left as a probe",
        ),
        (PEOPLE, {"split": FolderSplit(gallery_images=0)}, "got 0 gallery images and an unknown share of 0"),
        (PEOPLE, {"split": FolderSplit(unknown_share=1.0)}, "got 1 gallery images and an unknown share of 1"),
        (
            PEOPLE,
            {"split": FolderSplit(unknown_share=0.9)},
            "gallery of people has 0 identities, identification needs at least 2",
        ),
        ({"ann": (0, 10)}, {}, "gallery of people has 1 identity, identification needs at least 2"),
        (PEOPLE, {"split": FolderSplit(limit=0)}, "the limit must be at least 1 image, got 0"),
        (PEOPLE, {"degrade": "noise"}, "got the degradation 'noise' of 'all', expected None or one of blur"),
        (PEOPLE, {"degrade": "blur", "degraded_part": "gallery"}, "and one of all, probe"),
        (PEOPLE, {"degrade": "blur", "strength": 2.0}, "strength of a degradation"),
    ],
)
def test_options_and_folders_that_do_not_fit(people, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(Angles(), write_people(tmp_path / "people", people), **options)


def test_no_folder_and_no_people(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        run(Angles(), tmp_path / "absent")
    write_face(tmp_path / "flat" / "0.png", 0)
    with pytest.raises(FileNotFoundError, match=r"no class folders in .*flat; it holds 0.png"):
        run(Angles(), tmp_path / "flat")
    write_people(tmp_path / "people", PEOPLE)
    (tmp_path / "people" / "dan").mkdir()
    with pytest.raises(FileNotFoundError, match=r"1 of 4 class folders in .* hold no images: dan"):
        run(Angles(), tmp_path / "people")


def test_gallery_without_probes_is_refused(tmp_path):
    write_people(tmp_path / "gallery", PEOPLE)
    with pytest.raises(FileNotFoundError, match=r"gallery contains identities, but .*probe does not: expected"):
        run(Angles(), tmp_path)


def test_images_beside_gallery_and_probe_are_named(tmp_path, caplog):
    for part in ("gallery", "probe"):
        write_people(tmp_path / part, PEOPLE)
    write_people(tmp_path / "extra", {"dan": (0, 5)})
    write_face(tmp_path / "stray.png", 0)
    (tmp_path / "README.txt").write_text("of the data set")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.csv").touch()
    (tmp_path / ".DS_Store").touch()
    with caplog.at_level("INFO"):
        folder = open_identity_folder(tmp_path)
    assert (len(folder.images), folder.skipped) == (16, 4)
    lines = [record.message for record in caplog.records]
    assert lines[0] == "21 files: 16 images, 4 skipped, 1 system files"
    assert "  skipped extra: a folder beside gallery and probe" in lines
    assert "  skipped results: a folder beside gallery and probe" in lines
    assert not holds_images(tmp_path / "results") and holds_images(tmp_path / "extra")
    assert "  skipped stray.png: not in a folder of a class" in lines
    assert "  skipped README.txt: not an image" in lines


def test_probes_of_other_people_alone_are_refused(tmp_path):
    write_people(tmp_path / "x" / "gallery", {"ann": (0,), "bob": (60,)})
    write_people(tmp_path / "x" / "probe", {"Ann": (0,), "Bob": (60,)})
    with pytest.raises(ValueError, match=r"no identity of x/probe is in x/gallery.*names: Ann, Bob; ann, bob"):
        run(Angles(), tmp_path / "x")


def test_trees_do_not_take_options_of_the_other_layout(tmp_path):
    for part in ("gallery", "probe"):
        write_people(tmp_path / part, PEOPLE)
    with pytest.raises(ValueError, match="which define the roles: do not set the number of gallery images"):
        run(Angles(), tmp_path, FolderSplit(gallery_images=2))
