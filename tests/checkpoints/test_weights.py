"""Weights in checkpoints: of which architecture they are, and whether they fit."""

import pytest
import torch

from adaface.checkpoints.files import load_checkpoint
from adaface.checkpoints.weights import backbone_state, check_fits, identify_architecture, load_backbone
from adaface.models.registry import build_model
from tests.support.checkpoint_files import SMALL, official, write


def test_an_official_checkpoint_loads(tmp_path):
    state = official(SMALL)
    file = write(tmp_path / "a.ckpt", {"state_dict": {**state, "head.kernel": torch.zeros(512, 3)}})
    model = build_model(SMALL)
    load_backbone(model, load_checkpoint(file), file, SMALL)
    assert all(torch.equal(value, state[f"model.{key}"]) for key, value in model.state_dict().items())


def test_a_checkpoint_without_a_backbone():
    with pytest.raises(ValueError, match=r"has no `model\.\*` weights; its keys begin with \['backbone\.a'\]"):
        backbone_state({"state_dict": {"backbone.a": torch.zeros(1)}}, "x.ckpt")


@pytest.mark.parametrize("arch", ["ir_18", "ir_se_50", SMALL])
def test_architectures_are_recognized(arch):
    with torch.device("meta"):
        weights = build_model(arch).state_dict()
    assert identify_architecture(weights) == arch
    weights.popitem()
    assert identify_architecture(weights) is None


def test_weights_of_another_architecture_are_named(tmp_path):
    file = write(tmp_path / "a.ckpt", {"state_dict": official(SMALL)})
    with pytest.raises(ValueError, match=f"holds weights of {SMALL}, the run uses --arch ir_18: give --arch {SMALL}"):
        load_backbone(build_model("ir_18"), load_checkpoint(file), file, "ir_18")


def test_missing_and_extra_weights_are_listed(tmp_path):
    state = official(SMALL)
    state.pop("model.input_layer.0.weight")
    state["model.extra"] = torch.zeros(1)
    file = write(tmp_path / "a.ckpt", {"state_dict": state})
    with pytest.raises(ValueError, match=r"1 entries missing .*input_layer\.0\.weight.*1 entries unexpected.*extra"):
        load_backbone(build_model(SMALL), load_checkpoint(file), file, SMALL)


def test_weights_of_a_run_that_is_resumed_are_checked_before_anything_is_written():
    expected = {"head.kernel": (8, 3)}
    check_fits({"state_dict": {"head.kernel": torch.zeros(8, 3)}}, expected, "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt has a head of 5 classes, the training data has 3"):
        check_fits({"state_dict": {"head.kernel": torch.zeros(8, 5)}}, expected, "x.ckpt")
    with pytest.raises(ValueError, match=r"does not fit this run: 1 entries differ, the first are \['head\.t'\]"):
        check_fits({"state_dict": {"head.kernel": torch.zeros(8, 3), "head.t": torch.zeros(1)}}, expected, "x.ckpt")
    for without in ({}, {"head.kernel": torch.zeros(8)}):
        with pytest.raises(
            ValueError, match=r"does not fit this run: 1 entries differ, the first are \['head\.kernel'\]"
        ):
            check_fits({"state_dict": without}, expected, "x.ckpt")
