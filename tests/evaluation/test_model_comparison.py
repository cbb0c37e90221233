import csv
import io
from dataclasses import replace

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from adaface.data.image_list import ImageList
from adaface.evaluation import model_comparison
from adaface.evaluation.degradation import DegradedImages
from adaface.evaluation.folder import run
from adaface.evaluation.model_comparison import (
    CONDITIONS,
    SHOWN_NUMBERS,
    ModelComparison,
    compare_models,
    comparison_csv,
    comparison_text,
    model_names,
    plot_comparison,
    write_comparison,
)
from adaface.metrics.comparison import Comparison
from adaface.metrics.outcome import Embedded, Outcome
from tests.evaluation.test_folder import PEOPLE, Angles, write_people
from tests.support.drawn_figures import figures_saved_by


class LostWhereBlurred(Angles):
    """A model that gives one embedding to all blurred images."""

    def __call__(self, images: ImageList) -> Embedded:
        embedded = super().__call__(images)
        if isinstance(images, DegradedImages):
            embedded.embeddings[:] = [1.0, 0.0]
        return embedded


@pytest.fixture
def comparison(tmp_path) -> ModelComparison:
    root = write_people(tmp_path / "people", PEOPLE)
    return compare_models({"pretrained": LostWhereBlurred(), "fine-tuned": Angles()}, root, conditions=CONDITIONS)


def with_numbers(values: dict[tuple[str, str], tuple[float, float]]) -> ModelComparison:
    """A comparison with given f1_score and rank-1."""
    outcomes = {
        place: Outcome("folder", "vn", {"f1_score": f1, "rank-1": rank}, {"f1_score": (f1 - 1.5, f1 + 1)})
        for place, (f1, rank) in values.items()
    }
    models, conditions = (tuple(dict.fromkeys(names)) for names in zip(*values, strict=True))
    differences = {}
    for model in models[1:]:
        for condition in conditions:
            pairs = zip(values[models[0], condition], values[model, condition], strict=True)
            for number, (first, second), p_value in zip(SHOWN_NUMBERS, pairs, (0.0312, 0.00001), strict=True):
                change = (second - first) / 100
                ends = change - 0.02, change + 0.02
                differences[model, condition, number] = Comparison(first, second, change, ends, p_value, "by hand")
    return ModelComparison("vn", models, conditions, outcomes, differences, ("a note",))


USERS_TABLE = {
    ("pretrained", "clear"): (88.61, 90.5),
    ("pretrained", "blurred"): (85.27, 86.0),
    ("fine-tuned", "clear"): (86.69, 88.25),
    ("fine-tuned", "blurred"): (91.55, 92.0),
}


def test_numbers_are_those_of_the_folder_protocol(comparison, tmp_path):
    root = tmp_path / "people"
    expected = {
        "clear": run(Angles(), root),
        "blurred": run(Angles(), root, degrade="blur"),
        "blurred probes": run(Angles(), root, degrade="blur", degraded_part="probe"),
    }
    for condition in CONDITIONS:
        assert comparison.outcomes["fine-tuned", condition].numbers == pytest.approx(
            expected[condition].numbers, nan_ok=True
        )
    assert comparison.outcomes["fine-tuned", "clear"].numbers["rank-1"] == pytest.approx(80)
    # all are taken for ann: 2 of 5 probes are hers, her F1 is 4 / 7
    lost = comparison.outcomes["pretrained", "blurred"].numbers
    assert (lost["rank-1"], lost["f1_score"]) == (pytest.approx(40), pytest.approx(100 * 4 / 7 / 3))
    # the first of ann's is at 0 degrees, where the lost embeddings are
    assert comparison.outcomes["pretrained", "blurred probes"].numbers["rank-1"] == pytest.approx(40)
    assert "blurred: gallery and probes degraded: blur of strength 1, seed 0" in comparison.notes
    assert "blurred probes: the probes degraded: blur of strength 1, seed 0" in comparison.notes


def test_models_embed_what_the_conditions_need_and_the_same(tmp_path):
    root = write_people(tmp_path, PEOPLE)
    for conditions, lists in ((("clear",), 1), (("blurred",), 1), (("blurred probes",), 2), (CONDITIONS, 2)):
        models = {name: Angles() for name in "abc"}
        compared = compare_models(models, root, conditions=conditions, seed=5, strength=0.5)
        asked = [[images.fingerprint() for images in model.asked] for model in models.values()]
        assert len(asked[0]) == lists
        assert asked[0] == asked[1] == asked[2]
        assert list(compared.outcomes) == [(model, condition) for model in "abc" for condition in conditions]


def test_the_users_table_as_text():
    assert comparison_text(with_numbers(USERS_TABLE)).splitlines() == [
        "folder: vn, percent, 95 % intervals",
        "-" * 87,
        "f1_score                 clear                           blurred",
        "-" * 87,
        "pretrained               88.61 [87.11, 89.61]            85.27 [83.77, 86.27]",
        "fine-tuned               86.69 [85.19, 87.69]            91.55 [90.05, 92.55]",
        "fine-tuned - pretrained  -1.92 [-3.92, +0.08] p = 0.031  +6.28 [+4.28, +8.28] p = 0.031",
        "-" * 87,
        "rank-1                   clear                           blurred",
        "-" * 87,
        "pretrained               90.50                           86.00",
        "fine-tuned               88.25                           92.00",
        "fine-tuned - pretrained  -2.25 [-4.25, -0.25] p < 0.001  +6.00 [+4.00, +8.00] p < 0.001",
        "-" * 87,
        "a note",
    ]


def test_one_model_has_no_differences():
    text = comparison_text(with_numbers({("only", "clear"): (88.61, 90.5)}))
    assert "only" in text
    assert " - " not in text


def test_csv_holds_every_number(comparison):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert [(row["model"], row["condition"]) for row in rows] == list(comparison.outcomes)
    row = rows[list(comparison.outcomes).index(("fine-tuned", "clear"))]
    assert float(row["rank-1"]) == 80
    assert float(row["f1_score"]) == pytest.approx(100 * (2 / 3 + 4 / 5 + 1) / 3, abs=1e-5)
    assert float(row["f1_score_low"]) < float(row["f1_score"]) < float(row["f1_score_high"])
    assert (row["rank-5"], row["rank-5_low"]) == ("", "")  # three people
    before = comparison.outcomes["pretrained", "clear"].numbers
    for number in SHOWN_NUMBERS:
        assert float(row[f"{number}_difference"]) == pytest.approx(float(row[number]) - before[number], abs=1e-5)
        assert 0 <= float(row[f"{number}_p_value"]) <= 1
        assert rows[0][f"{number}_difference"] == rows[0][f"{number}_p_value"] == ""  # the first model itself


def test_names_that_a_spreadsheet_would_execute(comparison):
    (outcome, *_) = comparison.outcomes.values()
    names = ("=cmd|'/c calc'!A1", "@SUM(1)")  # of a checkpoint, and of a verification set
    odd = replace(comparison, outcomes={names: outcome}, differences={})
    (row,) = csv.DictReader(io.StringIO(comparison_csv(odd)))
    assert (row["model"], row["condition"]) == tuple(f"'{name}" for name in names)


def test_chart_shows_every_value_and_interval(comparison, tmp_path, monkeypatch):
    figures: list[Figure] = []
    save = model_comparison.save_figure
    monkeypatch.setattr(
        model_comparison, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))
    )
    path = tmp_path / "chart.png"
    plot_comparison(with_numbers(USERS_TABLE), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    image = cv2.imread(str(path))
    assert min(image.shape[:2]) > 500
    assert (image < 128).any(axis=2).mean() > 0.05
    f1_axes = figures[0].axes[0]
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["percent", ""]  # without ticks, no label
    assert sorted(bar.get_height() for bar in f1_axes.patches) == sorted(f1 for f1, _ in USERS_TABLE.values())
    assert all(bar.get_y() == 0 for bar in f1_axes.patches)
    segments = [s for c in f1_axes.findobj(matplotlib.collections.LineCollection) for s in c.get_segments()]
    assert {tuple(segment[:, 1].round(6)) for segment in segments} == {
        (round(f1 - 1.5, 6), round(f1 + 1, 6)) for f1, _ in USERS_TABLE.values()
    }
    texts = {text.get_text() for text in figures[0].findobj(matplotlib.text.Text)}
    assert {
        "88.6",
        "85.3",
        "86.7",
        "91.5",
        "pretrained",
        "fine-tuned",
        "clear",
        "blurred",
        "f1_score",
        "rank-1",
    } <= texts


def test_chart_of_many_models_has_a_look_for_each(tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(model_comparison, "save_figure", lambda figure, path: figures.append(figure))
    plot_comparison(with_numbers({(f"m{n}", "clear"): (50.0 + n, 60.0) for n in range(9)}), tmp_path / "chart.png")
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in figures[0].axes[0].patches}
    assert len(looks) == 9


def test_names_are_no_formulas_and_need_no_font(tmp_path, recwarn):
    name = "張 $張$"
    chart = with_numbers({(name, name): (50.0, 60.0), ("b", name): (50.0, 60.0)})
    plot_comparison(chart, tmp_path / "chart.png")
    assert not recwarn.list


def test_three_files_are_written(comparison, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    write_comparison(comparison, folder)
    assert {path.name for path in folder.iterdir()} == {"comparison.txt", "comparison.csv", "comparison.png"}
    assert (folder / "comparison.txt").read_text() == comparison_text(comparison) + "\n"
    assert (folder / "comparison.csv").read_text() == comparison_csv(comparison)


@pytest.mark.parametrize(
    ("given", "title"),
    [("", "Identification on my $faces, with 95 % intervals"), ("Before and after", "Before and after, with 95 %")],
)
def test_the_title_of_the_chart(comparison, tmp_path, monkeypatch, given, title):
    drawn = figures_saved_by(model_comparison, monkeypatch)
    plot_comparison(replace(comparison, data="my $faces", title=given), tmp_path / "chart.png")
    assert drawn[0].get_suptitle().replace("\\", "").startswith(title)


def test_an_interval_beside_its_number_can_be_drawn(tmp_path):
    """At 0 and 100 an interval may end at the number itself."""
    outcome = Outcome("folder", "x", {"f1_score": 100.0, "rank-1": 0.0}, {"f1_score": (97.0, 100.0)})
    one = with_numbers({("a", "clear"): (1.0, 1.0)})
    plot_comparison(replace(one, outcomes={("a", "clear"): outcome}), tmp_path / "chart.png")
    assert cv2.imread(str(tmp_path / "chart.png")) is not None


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.ckpt", "b.ckpt"], ["a.ckpt", "b.ckpt"]),
        (["x/best.ckpt", "y/best.ckpt"], ["x/best.ckpt", "y/best.ckpt"]),
        (["a/x/best.ckpt", "b/x/best.ckpt", "c/last.ckpt"], ["a/x/best.ckpt", "b/x/best.ckpt", "last.ckpt"]),
        (["best.ckpt", "x/best.ckpt"], None),
    ],
)
def test_model_names_tell_files_apart(paths, names, tmp_path):
    found = model_names([tmp_path / path for path in paths])
    assert len(set(found)) == len(paths)
    assert names is None or found == names


def test_the_same_file_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a.ckpt is given twice: a comparison needs different models"):
        model_names([tmp_path / "a.ckpt", tmp_path / "x" / ".." / "a.ckpt"])


@pytest.mark.parametrize(
    ("models", "conditions", "message"),
    [
        ({}, ("clear",), "got 0 models and the conditions clear"),
        ({"a": Angles()}, ("foggy",), "got 1 models and the conditions foggy: expected at least one model, and some"),
        ({"a": Angles()}, (), "got 1 models and the conditions none"),
    ],
)
def test_nothing_to_compare_is_refused(models, conditions, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare_models(models, tmp_path, conditions=conditions)


def test_even_pictures_survive_their_degradation(tmp_path):
    """What the other tests rely on: the model of angles reads blurred even pictures as well as clear ones."""
    root = write_people(tmp_path, PEOPLE)
    embed = Angles()
    run(embed, root)
    clear, blurred = embed(embed.asked[0]), embed(DegradedImages(embed.asked[0], 0))
    assert np.abs(clear.embeddings - blurred.embeddings).max() < 0.06
