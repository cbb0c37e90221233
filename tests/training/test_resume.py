import pytest
import torch

from adaface.commands.train_options import check_files
from adaface.config.options import Config
from adaface.config.parsing import parse
from adaface.models.registry import build_model
from adaface.training import resume
from tests.checkpoints.test_files import resumable


def test_a_run_goes_on_with_other_hardware():
    saved = {**Config().as_dict(), "gpus": 2, "use_16bit": True, "devices": 0, "arch": "ir_50"}
    given = ["gpus", "use_16bit", "arch"]
    on_cpu, _ = parse(["--accelerator", "cpu", "--devices", "2", "--precision", "32"])
    resumed, notes = resume._resumed(on_cpu, saved, given)
    assert not notes
    assert (resumed["accelerator"], resumed["devices"], resumed["use_16bit"], resumed["arch"]) == (
        "cpu",
        2,
        False,
        "ir_50",
    )
    assert "gpus" not in resumed.given
    same, _ = parse(["--epochs", "30", "--seed", "7"])
    resumed, notes = resume._resumed(same, saved, given)
    assert (resumed["gpus"], resumed["use_16bit"], resumed["epochs"]) == (2, True, 30)
    assert {"gpus", "epochs"} <= resumed.given
    assert notes == ["--seed was 42 in the resumed run and is now 7"]


@pytest.mark.parametrize(("there", "expected"), [(0, -1), (1, 1), (4, 1)])
def test_an_older_run_without_gpus_stays_on_one_gpu_or_the_cpu(there, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    saved = {**Config().as_dict(), "gpus": 1}
    resumed, notes = resume._resumed(parse([])[0], saved, ["arch"])
    assert (resumed["gpus"], notes) == (expected, [])
    assert resume._resumed(parse([])[0], saved, ["gpus"])[0]["gpus"] == 1, "it was given, so it is strict"
    assert resume._resumed(parse(["--gpus", "2"])[0], saved, [])[0]["gpus"] == 2


def test_another_optimizer_is_refused():
    resumed, _ = parse(["--optimizer", "adamw", "--lr", "1e-3"])
    with pytest.raises(ValueError, match="--optimizer adamw, but  was trained with sgd: omit --optimizer"):
        resume._resumed(resumed, Config().as_dict(), [])


def test_another_length_of_a_schedule_is_said():
    saved = {**Config().as_dict(), "lr_schedule": "poly", "lr_power": 3.0}
    config, _ = parse(["--epochs", "30"])
    resumed, notes = resume._resumed(config, saved, ["lr_schedule", "lr_power"])
    assert (resumed["lr_schedule"], resumed["lr_power"]) == ("poly", 3.0)
    assert notes == [
        "--epochs was 24 in the resumed run and is now 30: from here on, the learning rate is that of a poly schedule "
        "over 30 epochs"
    ]
    assert resume._resumed(config, Config().as_dict(), [])[1] == [], "milestones stay where they are"


def test_another_schedule_lets_go_of_the_first_ones_options():
    saved = {**Config().as_dict(), "lr_milestones": [12, 20, 24], "lr_gamma": 0.2}
    given = ["lr_milestones", "lr_gamma"]
    resumed, notes = resume._resumed(parse(["--lr_schedule", "cosine"])[0], saved, given)
    assert not {"lr_milestones", "lr_gamma"} & resumed.given
    assert notes == ["--lr_schedule was multistep in the resumed run and is now cosine"]
    same, notes = resume._resumed(parse(["--lr_schedule", "multistep", "--lr_gamma", "0.3"])[0], saved, given)
    assert (same["lr_milestones"], same["lr_gamma"]) == ((12, 20, 24), 0.3)
    assert notes == ["--lr_gamma was 0.2 in the resumed run and is now 0.3"]


def test_options_of_the_checkpoint_and_the_command_line_are_checked_together(tmp_path):
    file = tmp_path / "last.ckpt"
    saved = {**Config().as_dict(), "lr_schedule": "poly", "epochs": 40}
    checkpoint = resumable()
    checkpoint["adaface"] |= {"config": saved, "given": ["lr_schedule", "epochs"]}
    torch.save(checkpoint, file)
    goes_on = ["--resume_from_checkpoint", str(file)]
    resumed, _ = resume.with_checkpoint_options(parse([*goes_on, "--lr_power", "1", "--warmup_epochs", "30"])[0])
    assert (resumed["lr_schedule"], resumed["lr_power"], resumed["warmup_epochs"]) == ("poly", 1.0, 30.0)
    for words, message in (
        (["--lr_gamma", "0.2"], "--lr_gamma requires --lr_schedule multistep"),
        (["--warmup_epochs", "40"], "must be below --epochs 40"),
    ):
        with pytest.raises(ValueError, match=message):
            resume.with_checkpoint_options(parse([*goes_on, *words])[0])


def test_a_run_that_lacks_the_newest_options_has_their_defaults():
    saved = Config().as_dict()
    for name in ("optimizer", "lr_schedule", "warmup_epochs"):
        del saved[name]
    resumed, notes = resume._resumed(parse(["--warmup_epochs", "1"])[0], saved, [])
    assert (resumed["optimizer"], resumed["lr_schedule"]) == ("sgd", "multistep")
    assert notes == ["--warmup_epochs was 0.0 in the resumed run and is now 1.0"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("m", "0.3"), ("s", "32"), ("sample_rate", "0.5"), ("gradient_clip_val", "1"), ("crop_augmentation_prob", "0.5")],
)
def test_another_loss_is_said_too(name, value):
    _, notes = resume._resumed(parse([f"--{name}", value])[0], Config().as_dict(), [])
    was = Config()[name]
    assert notes == [f"--{name} was {was} in the resumed run and is now {float(value)}"]


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
    assert resume.with_checkpoint_options(parse(words)[0])[0]["arch"] == "ir_mini"
    assert resume.with_checkpoint_options(parse([*words, "--arch", "ir_50"])[0])[0]["arch"] == "ir_50"


def of_folder(folder, *words):
    return resume.with_run_folder(parse(["--run_folder", str(folder), *words])[0])


def test_a_run_folder_without_a_checkpoint_is_begun_in(tmp_path):
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.yaml.part").touch()  # what a kill leaves
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    for name in ("new", "killed", "begun"):
        config = of_folder(tmp_path / name, "--start_from_model_statedict", str(tmp_path / "begun" / "config.yaml"))
        assert not config["resume_from_checkpoint"]
        assert config["start_from_model_statedict"]
    assert not (tmp_path / "new").exists(), "made when it is certain that the run can start"


def test_a_run_folder_with_a_checkpoint_is_gone_on_with(tmp_path):
    (tmp_path / "config.yaml").touch()
    newest = tmp_path / "last.ckpt"
    newest.mkdir()  # a checkpoint may be a folder
    config = of_folder(tmp_path, "--start_from_model_statedict", str(tmp_path / "config.yaml"))
    assert (config["resume_from_checkpoint"], config["start_from_model_statedict"]) == (str(newest), "")
    assert of_folder(tmp_path, "--resume_from_checkpoint", str(newest))["resume_from_checkpoint"] == str(newest)


def test_a_run_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ValueError, match=r"contains other files than a run \(photo\.jpg; no config\.yaml\)"):
        of_folder(tmp_path)
    with pytest.raises(ValueError, match=r"photo\.jpg is a file"):
        of_folder(tmp_path / "photo.jpg")


def test_the_run_folder_is_that_of_this_start_not_of_the_checkpoint():
    saved = {**Config().as_dict(), "run_folder": "elsewhere", "collective_timeout_sec": 60.0}
    resumed, _ = resume._resumed(parse([])[0], saved, ["run_folder", "collective_timeout_sec"])
    assert (resumed["run_folder"], resumed["collective_timeout_sec"]) == ("", 60.0)
    assert "run_folder" not in resumed.given
    resumed, _ = resume._resumed(parse(["--run_folder", "here"])[0], saved, ["run_folder"])
    assert resumed["run_folder"] == "here"


def check_paths(*words):
    config, _ = parse(words)
    resume.check_folders_agree(config.run)
    check_files(config.run, config.data.train_data_index)
    return config


def test_what_does_not_exist_is_refused_before_anything_is_read(tmp_path):
    file = tmp_path / "a.ckpt"
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"resumes the run in its own folder, .*, which is not --run_folder elsewhere"):
        check_paths("--resume_from_checkpoint", str(file), "--run_folder", "elsewhere")
    assert check_paths("--resume_from_checkpoint", str(file), "--run_folder", str(tmp_path / "x" / "..")).run.run_folder
    step = tmp_path / "checkpoints" / "step-0000001-0"
    step.mkdir(parents=True)
    assert check_paths("--resume_from_checkpoint", str(step), "--run_folder", str(tmp_path)).run.run_folder
    with pytest.raises(FileNotFoundError, match=r"--resume_from_checkpoint: there is no file nowhere\.ckpt"):
        check_paths("--resume_from_checkpoint", "nowhere.ckpt")
