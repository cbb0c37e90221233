"""The options of a resumed run: those of its checkpoint, overridden by the command line."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaface.checkpoints.files import check_resumable, load_checkpoint
from adaface.checkpoints.folders import run_folder_of
from adaface.checkpoints.published import published_by_name
from adaface.checkpoints.run_folder import CONFIG, LAST_CHECKPOINT
from adaface.config.options import ABOUT, OPTIONS, Config, RunOptions
from adaface.config.parsing import convert_value, finetune_defaults
from adaface.config.rules import check_combinations, check_head_options, check_optimizer
from adaface.training.finetuning import with_pretrained, with_whole_path

# an option of such a group overrides the others when a run resumes on other hardware
_DECIDED_TOGETHER = ({"gpus", "accelerator", "devices"}, {"use_16bit", "precision"})
_SHOWN_NAMES = 3


def check_paths(run: RunOptions, train_data_index: str) -> None:
    """Refuse checkpoints, models and lists that do not exist, before anything else is read.

    Args:
        run: of the command line.
        train_data_index: file of the images to use; empty for all.

    Raises:
        FileNotFoundError: there is no such file, and no published model of this name.
        ValueError: the checkpoint to resume is in another folder than the run's.
    """
    if run.resume_from_checkpoint and run.run_folder:
        _check_same_folder(run)
    for name, path in (("resume_from_checkpoint", run.resume_from_checkpoint), ("train_data_index", train_data_index)):
        if path and not Path(path).exists():
            raise FileNotFoundError(f"--{name}: there is no file {path}")
    _check_model("start_from_model_statedict", run.start_from_model_statedict)
    _check_model("finetune", run.finetune)


def _check_same_folder(run: RunOptions) -> None:
    folder = run_folder_of(Path(run.resume_from_checkpoint))
    if folder.resolve() != Path(run.run_folder).resolve():
        raise ValueError(
            f"--resume_from_checkpoint resumes the run in its own folder, {folder}, which is not --run_folder "
            f"{run.run_folder}: leave one of them out"
        )


def _check_model(option: str, word: str) -> None:
    """Refuse a word that is neither a file nor the name of a published model."""
    if not word or word.startswith("hf:") or Path(word).exists():
        return
    if "/" in word or "\\" in word:
        raise FileNotFoundError(f"--{option}: there is no file {word}")
    try:
        published_by_name(word)
    except ValueError as error:
        raise FileNotFoundError(f"--{option}: there is no file {word}, and {error}") from None


def with_run_folder(config: Config) -> Config:
    """Resume from the newest checkpoint of ``--run_folder``, if there is one.

    Args:
        config: of this command line.

    Returns:
        The same, with the checkpoint to resume; the weights that such a run once started from no longer count.

    Raises:
        ValueError: the folder is a file, or holds something else than a run.
    """
    if not config.run.run_folder or config.run.resume_from_checkpoint:
        return config
    folder = Path(config.run.run_folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run_folder {folder} is a file: give the folder of a run, or a new one")
    # hidden names are files that a killed run was writing
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
        folder: of the run, locked.
    """
    newest = folder / LAST_CHECKPOINT
    if newest.exists():
        raise RuntimeError(
            f"another run has written a checkpoint to {folder} in the meantime: run the same command again to resume it"
        )


def with_checkpoint_options(config: Config) -> tuple[Config, list[str]]:
    """Take the options that were not given from the checkpoint to resume, the architecture from that to start from.

    Args:
        config: of this command line.

    Returns:
        The options to run with, and notes for the user on what differs from the run that is resumed.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a damaged checkpoint, one that no run of this program wrote, or one of another model.
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
    """Say which defaults a fine-tuning has that other runs do not have."""
    given = {name: config[name] for name in config.given}
    shown = " ".join(f"--{name} {value}" for name, value in finetune_defaults(given).items())
    return [f"--finetune has defaults of its own: {shown}"] if shown else []


def _check_model_to_finetune(run: RunOptions, saved: str, *, given: bool) -> None:
    """Refuse a run without the model that it fine-tunes, which is needed again for the comparison at its end."""
    if given and not saved:
        raise ValueError(
            f"--finetune {run.finetune}, but {run.resume_from_checkpoint} is no run of a fine-tuning: leave "
            "--finetune out, or give another --run_folder for a new run"
        )
    if not given and Path(saved).is_absolute() and not Path(saved).exists():
        raise FileNotFoundError(
            f"{saved}, which the run of {run.resume_from_checkpoint} fine-tunes and is compared with at its end, is "
            "no longer there: put it back, or give --finetune with its new place"
        )


def _resumed(config: Config, saved: dict[str, Any], given: list[str]) -> tuple[Config, list[str]]:
    """Return the options of the run to resume; those of this command line win."""
    saved = {**Config().as_dict(), **saved}  # an older run may lack the newest options
    before = {name: convert_value(name, saved[name]) for name in OPTIONS}
    for name, about in ABOUT.items():
        if about.at_resume == "fixed" and name in config.given and before[name] != config[name]:
            raise ValueError(
                f"--{name} {config[name]}, but {config.run.resume_from_checkpoint} is a run of {saved[name]}: "
                f"leave --{name} out, or start a new run with --start_from_model_statedict"
            )
    _check_model_to_finetune(config.run, before["finetune"], given="finetune" in config.given)
    config = replace(config, run=with_whole_path(config.run))
    changed = [name for name in OPTIONS if name in config.given and before[name] != config[name]]
    notes = [
        f"--{name} was {before[name]} in the run that is resumed, now {config[name]}"
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
            f"--epochs was {before['epochs']} in the run that is resumed, now {epochs}: from here on the "
            f"learning rate is that of a {kind} schedule over {epochs} epochs"
        )
    return resumed, notes


def _replaced_with(given: Collection[str], changed: Collection[str]) -> set[str]:
    """Return the options that do not come from the checkpoint, because of others that are given now."""
    replaced = {name for name, about in ABOUT.items() if about.at_resume == "own"}
    for together in _DECIDED_TOGETHER:
        if together & set(given):
            replaced |= together
    return replaced | {name for name, about in ABOUT.items() if about.only_with and about.only_with[0] in changed}
