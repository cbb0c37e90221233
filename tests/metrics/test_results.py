import csv
import json
import math

import numpy as np
import pytest

from adaface.metrics.results import SetResult, evaluate_set, results_table, write_results
from adaface.metrics.verification import auc, evaluate, pair_similarities, tar_at_far
from tests.support.oracles_evaluate import pairs_at, random_pairs


def result_of(pairs: int, issame: np.ndarray | None = None, name: str = "lfw", noise: float = 1.0) -> SetResult:
    embeddings, random_issame = random_pairs(pairs, noise=noise, seed=pairs)
    return evaluate_set(name, embeddings, random_issame if issame is None else issame)


def test_numbers_are_those_of_evaluate_utils_in_percent():
    embeddings, issame = random_pairs(300, noise=1.5)
    result = evaluate_set("lfw", embeddings, issame)
    _, _, accuracy, thresholds = evaluate(embeddings, issame)
    similarity = pair_similarities(embeddings, issame)
    assert result.accuracy == pytest.approx(100 * accuracy.mean())
    assert result.accuracy_std == pytest.approx(100 * accuracy.std())
    assert result.threshold == pytest.approx(thresholds.mean())
    assert result.cosine_threshold == pytest.approx(1 - thresholds.mean() / 2)
    assert result.auc == pytest.approx(100 * auc(similarity, issame))
    assert result.tar_at_far[1e-2] == pytest.approx(100 * tar_at_far(similarity, issame, [1e-2])[1e-2])
    assert (result.pairs, result.genuine, result.folds) == (300, issame.sum(), 10)
    assert result.notes == ()
    np.testing.assert_array_equal(result.similarity, similarity)


def test_a_pair_at_the_threshold_has_the_cosine_of_the_threshold():
    # squared distance 1 is cosine 0.5
    result = evaluate_set("x", pairs_at([0.995, 1.5] * 10), np.array([True, False] * 10))
    assert result.threshold == pytest.approx(1.0)
    assert result.cosine_threshold == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("impostors", "reached"), [(9, []), (10, [1e-1]), (999, [1e-1, 1e-2]), (1000, [1e-1, 1e-2, 1e-3])]
)
def test_tar_is_given_only_where_one_impostor_pair_is_that_rare(impostors, reached):
    issame = np.arange(impostors + 20) < 20
    result = result_of(impostors + 20, issame)
    assert [far for far, tar in result.tar_at_far.items() if not math.isnan(tar)] == reached


def test_few_pairs_take_fewer_folds_and_say_so():
    result = result_of(4, np.array([True, False, True, False]))
    assert result.folds == 4
    assert 0 <= result.accuracy <= 100
    assert result.notes == ("4 folds instead of 10, because there are only 4 pairs",)


@pytest.mark.parametrize(
    ("issame", "single"),
    [
        ([True] * 36 + [False] * 11, 9),  # folds of 5 and 4 pairs: the eighth has both kinds
        ([True] * 36 + [False] * 5, 9),
        (([True] * 5 + [False] * 5) * 6, 0),
        (([True] * 300 + [False] * 300) * 10, 0),  # as LFW and AgeDB
        (([True] * 350 + [False] * 350) * 10, 0),  # as CFP-FP
        ([True] * 4 + [False] + [True] * 42, 0),  # one impostor pair can only be in one fold
        ([True] * 8 + [False] * 8, 0),  # folds of a single pair
    ],
)
def test_folds_of_one_kind_of_pairs_are_noted(issame, single):
    notes = [note for note in result_of(len(issame), np.array(issame)).notes if "folds have" in note]
    assert len(notes) == (single > 0)
    assert all(note.startswith(f"{single} of 10 folds have genuine or impostor pairs only") for note in notes)


def test_a_single_pair_has_no_accuracy():
    result = result_of(1, np.array([True]))
    assert math.isnan(result.accuracy)
    assert "1 pair is too few for an accuracy" in result.notes
    assert "lfw: 1 pair is too few" in results_table([result])


@pytest.mark.parametrize(("kind", "missing", "there"), [(True, "impostor", "genuine"), (False, "genuine", "impostor")])
def test_pairs_of_one_kind_have_an_accuracy_but_no_error_rates(kind, missing, there):
    result = result_of(30, np.full(30, kind))
    assert not math.isnan(result.accuracy)
    assert math.isnan(result.auc)
    assert math.isnan(result.eer)
    assert all(math.isnan(tar) for tar in result.tar_at_far.values())
    assert result.notes == (
        f"no {missing} pairs: no error rates, and the accuracy tells only how {there} pairs are decided",
    )


def test_embeddings_that_are_all_the_same_are_told():
    same = np.arange(40) % 2 == 0
    result = evaluate_set("x", np.tile(np.float32([[0.6, 0.8]]), (80, 1)), same, intervals=True)
    assert result.notes == (
        "all similarities are equal: the embeddings do not depend on the images, the network is broken",
    )
    for name in ("accuracy", "auc", "eer"):
        low, high = result.intervals[name]
        assert low <= getattr(result, name) <= high


def test_errors_name_the_set():
    embeddings, issame = random_pairs(20)
    with pytest.raises(ValueError, match="verification set cfp_fp: 1 of 40 embeddings are not finite"):
        evaluate_set("cfp_fp", np.where(np.arange(40)[:, None] == 7, np.nan, embeddings), issame)
    with pytest.raises(ValueError, match="verification set lfw: it has no pairs"):
        evaluate_set("lfw", np.empty((0, 8)), np.empty(0, dtype=bool))


def test_the_table_is_aligned_and_ends_with_the_mean():
    results = [result_of(1200, name="lfw"), result_of(700, name="agedb_30", noise=2.0), result_of(8, name="tiny")]
    lines = results_table(results).splitlines()
    assert lines[-1].startswith("tiny: 8 folds")
    rows = [line for line in lines if line.startswith(("lfw", "agedb_30", "tiny ", "mean"))]
    end = lines[2].index("acc") + len("acc")
    mean = np.mean([result.accuracy for result in results])
    for row, accuracy in zip(rows, [*(result.accuracy for result in results), mean], strict=True):
        assert row[:end].endswith(f" {accuracy:.2f}")
    assert " @1e-2" in lines[2]
    assert " @1e-3" not in lines[2]  # no set has a thousand impostor pairs
    assert max(len(line) for line in lines) <= 80
    assert not any(line != line.rstrip() for line in lines)


def test_the_table_with_all_columns_fits_100_columns():
    tars = dict.fromkeys((1e-1, 1e-2, 1e-3, 1e-4), 100.0)
    result = SetResult("agedb_30", 30_000, 30_000, 10, 100.0, 10.0, 1.0, tars, 100.0, 0.0)
    table = results_table([result])
    assert " @1e-4" in table
    assert "60,000" in table
    assert max(len(line) for line in table.splitlines()) <= 100


def test_the_table_fits_80_columns_with_intervals_and_a_name_of_12_letters():
    tars = {**dict.fromkeys((1e-1, 1e-2, 1e-3), 100.0), 1e-4: math.nan}
    ends = {"accuracy": (99.12, 100.0)}
    result = SetResult("twelve_chars", 3000, 3000, 10, 99.9, 0.1, 1.0, tars, 100.0, 0.0, intervals=ends)
    table = results_table([result])
    assert " 99.12-100.00 " in table
    assert max(len(line) for line in table.splitlines()) <= 80


def test_intervals_are_given_on_request_and_hold_the_numbers():
    embeddings, issame = random_pairs(300, noise=1.5)
    assert evaluate_set("lfw", embeddings, issame).intervals == {}
    result = evaluate_set("lfw", embeddings, issame, intervals=True)
    assert list(result.intervals) == ["accuracy", "auc", "eer", "tar_at_far_0.1", "tar_at_far_0.01"]
    values = [result.accuracy, result.auc, result.eer, result.tar_at_far[1e-1], result.tar_at_far[1e-2]]
    for value, (low, high) in zip(values, result.intervals.values(), strict=True):
        assert 0 <= low < value < high <= 100
    for few in (np.array([True]), np.array([True, True]), np.array([True, False])):
        result = evaluate_set("few", random_pairs(len(few))[0], few, intervals=True)
        assert all(0 <= low <= high <= 100 for low, high in result.intervals.values())


def test_no_sets_no_table():
    assert results_table([]) == "no verification sets, no results"


def test_files_hold_the_numbers_and_nothing_else_is_left(tmp_path):
    results = [
        evaluate_set("lfw", *random_pairs(300, seed=300), intervals=True),
        result_of(6, np.ones(6, dtype=bool), name="mine, private"),
    ]
    write_results(tmp_path, results)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.csv", "results.json"]
    with (tmp_path / "results.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["set"], second["set"]) == ("lfw", "mine, private")
    assert float(first["accuracy"]) == pytest.approx(results[0].accuracy, abs=1e-6)
    assert float(first["tar_at_far_0.1"]) == pytest.approx(results[0].tar_at_far[1e-1], abs=1e-6)
    assert float(first["accuracy_low"]) == pytest.approx(results[0].intervals["accuracy"][0], abs=1e-6)
    assert float(first["tar_at_far_0.1_high"]) == pytest.approx(results[0].intervals["tar_at_far_0.1"][1], abs=1e-6)
    assert second["accuracy_low"] == second["eer_high"] == ""
    assert second["auc"] == second["tar_at_far_0.1"] == first["tar_at_far_0.0001"] == ""
    assert second["notes"].count(";") == 1
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["mean"]["accuracy"] == pytest.approx((results[0].accuracy + results[1].accuracy) / 2, abs=1e-6)
    assert content["mean"]["auc"] == pytest.approx(results[0].auc, abs=1e-6)  # of the set that has one
    assert content["sets"][1]["tar_at_far"]["0.1"] is None
    assert content["sets"][0] == results[0].as_dict()


def test_a_failed_write_leaves_the_older_files(tmp_path, monkeypatch):
    write_results(tmp_path, [result_of(20, name="older")])
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_results(tmp_path, [result_of(20, name="newer")])
    assert "older" in (tmp_path / "results.csv").read_text()
    assert len(list(tmp_path.iterdir())) == 2
