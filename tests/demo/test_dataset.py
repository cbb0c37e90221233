import json
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from adaface.data.images import decode_image
from adaface.data.pair_sets import PAPER_SETS, open_pair_set, read_bin
from adaface.demo import dataset
from adaface.demo.camera import Camera, photograph
from adaface.demo.dataset import (
    CONDITIONS,
    SET_CONDITIONS,
    TRAINING_CONDITIONS,
    DemoSize,
    Picture,
    draw_picture,
    pair_pictures,
    training_pictures,
    write_demo_data,
)
from adaface.demo.faces import draw_face
from adaface.demo.person import LANDMARKS_PX, Identity, Painter, Scene, draw_identity
from adaface.records.reader import RecordFile

TINY = {"identities": 6, "images_per_identity": 4, "pairs": 10, "seed": 3}
REPOSITORY = Path(dataset.__file__).parents[2]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_data(tmp_path_factory.mktemp("demo") / "faces", **TINY)


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_records_are_in_the_insightface_layout(tiny: Path) -> None:
    records = RecordFile(tiny / "train.rec")
    assert records.keys.tolist() == list(range(1 + 24 + 6))
    assert np.asarray(records.header(0).label).tolist() == [25, 31]
    assert records.num_identities() == 6
    positions = np.arange(*records.image_range())
    assert records.keys[positions].tolist() == list(range(1, 25))
    assert records.labels[positions].tolist() == np.repeat(np.arange(6), 4).tolist()
    spans = [np.asarray(records.header(25 + person).label).tolist() for person in range(6)]
    assert spans == [[1 + 4 * person, 5 + 4 * person] for person in range(6)]
    assert records.read_image(25) == b""
    assert (tiny / "property").read_text() == "6,112,112\n"


def test_every_record_holds_a_color_jpeg_of_its_picture(tiny: Path) -> None:
    records = RecordFile(tiny / "train.rec")
    for position, picture in zip(np.arange(*records.image_range()), training_pictures(DemoSize(**TINY)), strict=True):
        encoded = records.read_image(position)
        assert encoded[:2] == b"\xff\xd8"
        image = decode_image(encoded, f"record {position}")
        drawn = draw_picture(picture)
        assert np.abs(image.astype(int) - drawn).mean() < 6
        assert np.any(image[..., 0] != image[..., 2])


def test_the_five_sets_are_there_and_balanced(tiny: Path) -> None:
    for name in PAPER_SETS:
        images, issame = read_bin(tiny / f"{name}.bin")
        assert len(images) == 20
        assert len(set(images)) == 20  # no picture twice
        assert issame.tolist() == [True, False] * 5
        assert open_pair_set(tiny, name).images[0].shape == (112, 112, 3)


@pytest.mark.parametrize("pairs", [20, 60, 300])
def test_each_tenth_holds_as_many_same_as_different_pairs(pairs: int) -> None:
    _, issame = pair_pictures(replace(DemoSize(), pairs=pairs), "lfw")
    tenths = issame.reshape(10, -1)
    if pairs // 10 % 2 == 0:
        assert (tenths.sum(axis=1) * 2 == pairs // 10).all()
    assert issame.sum() * 2 == pairs


@pytest.mark.parametrize("pairs", [10, 11, 300])
def test_issame_is_what_the_pictures_say(pairs: int) -> None:
    for name in PAPER_SETS:
        pictures, issame = pair_pictures(replace(DemoSize(), pairs=pairs), name)
        people = np.array([picture.person for picture in pictures]).reshape(-1, 2)
        assert ((people[:, 0] == people[:, 1]) == issame).all()
        assert len({(picture.person, picture.number) for picture in pictures}) == 2 * pairs


def test_pairs_of_both_kinds_are_taken_alike() -> None:
    for name in PAPER_SETS:
        pictures, _ = pair_pictures(DemoSize(), name)
        taken = {(a.conditions, b.conditions) for a, b in zip(pictures[::2], pictures[1::2], strict=True)}
        assert taken == {SET_CONDITIONS[name]}


def test_no_person_is_in_two_sets() -> None:
    size = DemoSize()
    people = [{picture.person for picture in training_pictures(size)}]
    people += [{picture.person for picture in pair_pictures(size, name)[0]} for name in PAPER_SETS]
    assert sum(len(some) for some in people) == len(set().union(*people))
    assert [len(some) for some in people[1:]] == [size.pairs // 2] * 5


def test_training_sees_every_condition_of_the_sets() -> None:
    needed = {name for both in SET_CONDITIONS.values() for name in both}
    assert needed <= set(TRAINING_CONDITIONS) <= set(CONDITIONS)
    seen = {picture.conditions for picture in training_pictures(DemoSize(identities=2, images_per_identity=8))}
    assert seen == set(TRAINING_CONDITIONS)


def test_same_seed_same_bytes_other_seed_other_faces(tiny: Path, tmp_path: Path) -> None:
    again = write_demo_data(tmp_path / "again", **TINY)
    assert file_bytes(again) == file_bytes(tiny)
    other = file_bytes(write_demo_data(tmp_path / "other", **{**TINY, "seed": 4}))
    assert all(other[name] != data for name, data in file_bytes(tiny).items() if name.endswith((".rec", ".bin")))


def test_a_larger_training_set_contains_the_smaller_one() -> None:
    small, large = DemoSize(3, 4, 10, 7), DemoSize(5, 6, 20, 7)
    assert set(training_pictures(small)) <= set(training_pictures(large))
    assert set(pair_pictures(replace(small, identities=9), "lfw")[0]) == set(pair_pictures(small, "lfw")[0])


def test_processes_do_not_change_the_result(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_FEWEST_PICTURES_PER_PROCESS", 10)
    assert file_bytes(write_demo_data(tmp_path / "two", processes=2, **TINY)) == file_bytes(tiny)


@pytest.mark.usefixtures("screen")
def test_a_finished_folder_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_demo_data(tmp_path / "faces", **TINY)
    (folder / "imgs").mkdir()  # what convert.py adds
    before = (folder / "train.rec").stat().st_mtime_ns
    assert write_demo_data(folder, **TINY) == folder
    assert "kept" in capsys.readouterr().out
    assert (folder / "train.rec").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other parameters.*choose another --output or remove"):
        write_demo_data(folder, **{**TINY, "seed": 4})


def test_foreign_folders_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a finished demo data set"):
        write_demo_data(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    for damaged in ("[" * 100_000, "[1]"):
        (tmp_path / "demo.json").write_text(damaged)
        with pytest.raises(ValueError, match="not a finished demo data set"):
            write_demo_data(tmp_path, **TINY)


def test_a_killed_run_leaves_no_folder_and_is_redone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(dataset, "write_bin", full)
        with pytest.raises(OSError, match="no space"):
            write_demo_data(tmp_path / "faces", **TINY)
    assert not (tmp_path / "faces").exists()
    assert file_bytes(write_demo_data(tmp_path / "faces", **TINY)) == file_bytes(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


@pytest.mark.parametrize(("name", "value"), [("identities", 1), ("images_per_identity", 0), ("pairs", 9), ("seed", -1)])
def test_sizes_out_of_range_are_refused(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        write_demo_data(tmp_path / "faces", **{**TINY, name: value})
    assert not list(tmp_path.iterdir())


def test_the_landmarks_lie_on_the_template() -> None:
    person = draw_identity(generator(1))
    for yaw, most_px in ((0.0, 4.0), (0.8, 16.0)):
        painter = Painter(np.zeros((112, 112, 3), np.uint8), person, Scene(yaw=yaw))
        eyes = painter.place([(-17.6, -9.5), (17.6, -9.5)])
        assert np.abs(eyes - LANDMARKS_PX[:2]).max() < most_px
    moved = Painter(painter.image, person, Scene(yaw=0.8, shift=(3.0, -2.0)))
    assert np.allclose(moved.place([(0.0, 0.0)]) - painter.place([(0.0, 0.0)]), [[3.0, -2.0]])


def test_every_factor_of_a_person_is_visible() -> None:
    """Each factor alone, at its largest, changes the picture of some person with hair, bun, beard and marks."""
    base = replace(
        draw_identity(generator(2)),
        baldness=-5.0, bun=8.0, beard=0.3, moustache=2.0, freckles=8.0, mark_size=1.5, curl=0.02,
        hair_length=40.0, ear_size=7.0, hairline=-30.0, fringe_left=0.0, fringe_right=0.0,
    )  # fmt: skip
    reference = draw_face(base, Scene(), generator(0)).astype(int)
    for factor in fields(Identity):
        old = getattr(base, factor.name)
        changed = replace(base, **{factor.name: old * 0.5 if isinstance(old, np.ndarray) else old + 1.5})
        difference = np.abs(draw_face(changed, Scene(), generator(0)) - reference)
        if factor.name != "baldness":
            assert difference.max() > 10, factor.name
    bald = draw_face(replace(base, baldness=1.0), Scene(), generator(0))
    assert np.abs(bald - reference).mean() > 3


def test_every_part_of_a_scene_changes_the_picture() -> None:
    person = replace(draw_identity(generator(5)), baldness=-5.0)
    plain = draw_face(person, Scene(), generator(0))
    other = {
        "yaw": 0.5, "pitch": 0.3, "roll": 0.2, "shift": (4.0, 0.0), "zoom": 1.1, "smile": 1.0, "mouth_open": 1.0,
        "eyes_open": 0.2, "brow_raise": 1.0, "gaze": 1.0, "age": 1.0, "glasses": True, "hat": True,
        "occlusion": 0.5,
    }  # fmt: skip
    assert set(other) == {part.name for part in fields(Scene)}
    for name, value in other.items():
        assert np.abs(draw_face(person, Scene(**{name: value}), generator(0)).astype(int) - plain).max() > 20, name


def test_every_setting_of_the_camera_changes_the_picture() -> None:
    image = draw_face(draw_identity(generator(5)), Scene(), generator(0))
    before = image.copy()
    plain = photograph(image, Camera(), generator(0)).astype(int)
    assert np.abs(plain - image).mean() < 4  # the default is the lens blur alone
    other = {
        "light_angle": 1.0, "light_strength": 0.5, "exposure": 0.7, "contrast": 0.6, "cast": (0.8, 1.0, 1.2),
        "faded": 0.6, "blur_px": 1.5, "low_res_share": 0.3, "noise": 12.0, "jpeg_quality": 20,
    }  # fmt: skip
    assert set(other) == {setting.name for setting in fields(Camera)}
    for name, value in other.items():
        camera = replace(Camera(light_strength=0.3), **{name: value})
        basis = plain if name != "light_angle" else photograph(image, Camera(light_strength=0.3), generator(0))
        assert np.abs(photograph(image, camera, generator(0)) - basis.astype(int)).mean() > 0.5, name
    assert (image == before).all()


def test_a_red_cast_is_red_in_bgr() -> None:
    grey = np.full((112, 112, 3), 100, np.uint8)
    blue, _, red = photograph(grey, Camera(cast=(0.5, 1.0, 1.5)), generator(0)).reshape(-1, 3).mean(axis=0)
    assert (blue, red) == pytest.approx((50, 150), abs=1)


def test_people_differ_more_than_pictures_of_one_person() -> None:
    def small(person: int, number: int) -> np.ndarray:
        return cv2.resize(draw_picture(Picture(1, person, number, "frontal")), (14, 14)).ravel().astype(float)

    faces = [[small(person, number) for number in range(4)] for person in range(12)]
    means = np.array([np.mean(some, axis=0) for some in faces])
    within = np.mean([np.var(some, axis=0).mean() for some in faces])
    between = means.var(axis=0).mean()
    assert between > 0.3 * within
    assert all(np.abs(a - b).max() > 5 for a, b in pairwise(means))


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adaface.demo.dataset", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


def test_the_command_line(tiny: Path, tmp_path: Path) -> None:
    sizes = [f"--{name}={value}" for name, value in TINY.items()]
    done = run_script("--output", str(tmp_path / "faces"), *sizes)
    assert done.returncode == 0, done.stderr
    assert file_bytes(tmp_path / "faces") == file_bytes(tiny)
    assert json.loads((tmp_path / "faces" / "demo.json").read_text())["pairs"] == 10
    refused = run_script("--output", str(tmp_path / "faces"), "--pairs", "20")
    assert refused.returncode == 2
    assert "other parameters" in refused.stderr
    assert "Traceback" not in refused.stderr
