"""The options of a resumed run: read from its checkpoint, overridden by the command line."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adaface.checkpoints.files import check_resumable, load_checkpoint
from adaface.checkpoints.folders import run_folder_of
from adaface.checkpoints.run_folder import CONFIG, LAST_CHECKPOINT
from adaface.config.options import ABOUT, OPTIONS, Config, RunOptions
from adaface.config.parsing import convert_value, finetune_defaults
from adaface.config.rules import check_combinations, check_head_options, check_optimizer
from adaface.training.finetuning import with_pretrained, with_whole_path

# if one option of a group is given at a resume, the others do not come from the checkpoint
_DECIDED_TOGETHER = ({"gpus", "accelerator", "devices"}, {"use_16bit", "precision"})
_SHOWN_NAMES = 3


def check_folders_agree(run: RunOptions) -> None:
    """Raise ValueError if the checkpoint to resume is not in the run folder.

    Args:
        run: options of the command line.
    """
    if not run.resume_from_checkpoint or not run.run_folder:
        return
    folder = run_folder_of(Path(run.resume_from_checkpoint))
    if folder.resolve() != Path(run.run_folder).resolve():
        raise ValueError(
            f"--resume_from_checkpoint resumes the run in its own folder, {folder}, which is not --run_folder "
            f"{run.run_folder}: omit one of them"
        )


def with_run_folder(config: Config) -> Config:
    """Resume from the newest checkpoint of ``--run_folder``, if there is one.

    Args:
        config: configuration of this command line.

    Returns:
        The configuration with the checkpoint to resume, and without the initial weights of the run.

    Raises:
        ValueError: the folder is a file, or contains other files than a run.
    """
    if not config.run.run_folder or config.run.resume_from_checkpoint:
        return config
    folder = Path(config.run.run_folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run_folder {folder} is a file: give the folder of a run, or a new one")
    # hidden files are unfinished files of killed runs
    others = [entry.name for entry in folder.iterdir() if entry.name[0] != "."] if folder.is_dir() else []
    if others and CONFIG not in others:
        raise ValueError(
            f"--run_folder {folder} contains other files than a run ({', '.join(sorted(others)[:_SHOWN_NAMES])}; no "
            f"{CONFIG}): give the folder of a run, or a new one"
        )
    newest = folder / LAST_CHECKPOINT
    if not newest.exists():
        return config
    return config.with_values({"resume_from_checkpoint": str(newest), "start_from_model_statedict": ""})


def check_still_new(folder: Path) -> None:
    """Raise RuntimeError if another process has written a checkpoint to the run folder since this run started.

    Args:
        folder: locked run folder.
    """
    newest = folder / LAST_CHECKPOINT
    if newest.exists():
        raise RuntimeError(
            f"another run has written a checkpoint to {folder} in the meantime: run the same command again to resume it"
        )


def with_checkpoint_options(config: Config) -> tuple[Config, list[str]]:
    """Complete the options from the checkpoint to resume, and the architecture from the checkpoint to start from.

    Args:
        config: configuration of this command line.

    Returns:
        The resulting configuration, and notes on the differences to the run that is resumed.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is damaged, not of this program, or of another model.
    """
    path = config.run.resume_from_checkpoint
    if path:
        checkpoint = load_checkpoint(path)
        saved = checkpoint.get("adaface")
        if saved is None:
            raise ValueError(
                f"{path} was not written by this program, so there is no run to resume; "
                "--start_from_model_statedict takes its backbone weights"
            )
        check_resumable(checkpoint, path)
        return _resumed(config, saved["config"], saved["given"])
    run = with_pretrained(config.run, arch_given="arch" in config.given)
    config = replace(config, run=run)
    return config, _finetune_notes(config)


def _finetune_notes(config: Config) -> list[str]:
    """Return a note on the defaults that differ for fine-tuning."""
    given = {name: config[name] for name in config.given}
    shown = " ".join(f"--{name} {value}" for name, value in finetune_defaults(given).items())
    return [f"--finetune changes these defaults: {shown}"] if shown else []


def _check_model_to_finetune(run: RunOptions, saved: str, *, given: bool) -> None:
    """Raise an error if the model to fine-tune is missing: it is needed for the comparison at the end."""
    if given and not saved:
        raise ValueError(
            f"--finetune {run.finetune}, but {run.resume_from_checkpoint} is not a fine-tuning run: omit "
            "--finetune, or give another --run_folder for a new run"
        )
    if not given and Path(saved).is_absolute() and not Path(saved).exists():
        raise FileNotFoundError(
            f"{saved}, which the run of {run.resume_from_checkpoint} fine-tunes and is compared with at its end, no "
            "longer exists: put it back, or give its new path with --finetune"
        )


def _resumed(config: Config, saved: dict[str, Any], given: list[str]) -> tuple[Config, list[str]]:
    """Return the options of the run to resume; those given now override them."""
    saved = {**Config().as_dict(), **saved}  # older checkpoints lack newer options
    if saved["gpus"] == 1 and "gpus" not in given:
        # the default was 1 before it became -1, and one GPU or, without any, the CPU was used
        saved["gpus"] = 1 if torch.cuda.device_count() else -1
    before = {name: convert_value(name, saved[name]) for name in OPTIONS}
    for name, about in ABOUT.items():
        if about.at_resume == "fixed" and name in config.given and before[name] != config[name]:
            raise ValueError(
                f"--{name} {config[name]}, but {config.run.resume_from_checkpoint} was trained with {saved[name]}: "
                f"omit --{name}, or start a new run with --start_from_model_statedict"
            )
    _check_model_to_finetune(config.run, before["finetune"], given="finetune" in config.given)
    config = replace(config, run=with_whole_path(config.run))
    changed = [name for name in OPTIONS if name in config.given and before[name] != config[name]]
    notes = [
        f"--{name} was {before[name]} in the resumed run and is now {config[name]}"
        for name in changed
        if ABOUT[name].changes_training
    ]
    kept = set(OPTIONS) - config.given - _replaced_with(config.given, changed)
    resumed = config.with_values({name: before[name] for name in kept})
    resumed = replace(resumed, given=config.given | (set(given) & kept))
    check_combinations(resumed)
    check_optimizer(resumed)
    check_head_options(resumed, config.given)
    if "epochs" in changed and resumed.optimizer.lr_schedule != "multistep":
        epochs, kind = resumed.optimizer.epochs, resumed.optimizer.lr_schedule
        notes.append(
            f"--epochs was {before['epochs']} in the resumed run and is now {epochs}: from here on, the "
            f"learning rate is that of a {kind} schedule over {epochs} epochs"
        )
    return resumed, notes


def _replaced_with(given: Collection[str], changed: Collection[str]) -> set[str]:
    """Return the options that do not come from the checkpoint because of related ones given now."""
    replaced = {name for name, about in ABOUT.items() if about.at_resume == "own"}
    for together in _DECIDED_TOGETHER:
        if together & set(given):
            replaced |= together
    return replaced | {name for name, about in ABOUT.items() if about.only_with and about.only_with[0] in changed}
