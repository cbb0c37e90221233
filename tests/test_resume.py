import pytest
import torch

import resume
from config import Config, parse
from net import build_model


def test_a_run_goes_on_with_other_hardware():
    saved = {**Config().as_dict(), "gpus": 2, "use_16bit": True, "devices": 0, "arch": "ir_50"}
    given = ["gpus", "use_16bit", "arch"]
    on_cpu, _ = parse(["--accelerator", "cpu", "--devices", "2", "--precision", "32"])
    resumed, notes = resume._resumed(on_cpu, saved, given)
    assert not notes
    assert (resumed.accelerator, resumed.devices, resumed.use_16bit, resumed.arch) == ("cpu", 2, False, "ir_50")
    assert "gpus" not in resumed.given
    same, _ = parse(["--epochs", "30", "--seed", "7"])
    resumed, notes = resume._resumed(same, saved, given)
    assert (resumed.gpus, resumed.use_16bit, resumed.epochs) == (2, True, 30)
    assert {"gpus", "epochs"} <= resumed.given
    assert notes == ["--seed was 42 in the run that is resumed, now 7"]


def test_a_checkpoint_that_no_run_wrote_cannot_be_resumed(tmp_path):
    file = tmp_path / "official.ckpt"
    torch.save({"state_dict": {"model.a": torch.zeros(1)}}, file)
    config, _ = parse(["--resume_from_checkpoint", str(file)])
    with pytest.raises(ValueError, match=r"was not written by this program.*--start_from_model_statedict takes"):
        resume.with_checkpoint_options(config)


def test_the_architecture_to_evaluate_is_read_from_the_checkpoint(tmp_path):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in build_model("ir_mini").state_dict().items()}}, file)
    words = ["--evaluate", "--start_from_model_statedict", str(file)]
    assert resume.with_checkpoint_options(parse(words)[0])[0].arch == "ir_mini"
    assert resume.with_checkpoint_options(parse([*words, "--arch", "ir_50"])[0])[0].arch == "ir_50"
