"""Which options a run goes on with: those of its checkpoint, unless the command line says otherwise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints import check_resumable, load_checkpoint
from config import OPTIONS, Config, convert_value, finetune_defaults
from finetuning import with_pretrained, with_whole_path
from more_augmentations import MORE_AUGMENTATIONS
from option_rules import check_head_options, check_optimisation
from run_folder import CONFIG, LAST_CHECKPOINT

# of these one option overrides the others when a run goes on with other hardware
_DECIDED_TOGETHER = ({"gpus", "accelerator", "devices"}, {"use_16bit", "precision"})
_OF_ONE_SCHEDULE = {"lr_milestones", "lr_gamma", "lr_power"}
_OF_THIS_START = {"start_from_model_statedict", "resume_from_checkpoint", "run_folder"}
_SHOWN_NAMES = 3
# another value changes what the rest of the run computes
_NOTED = (
    "seed", "batch_size", "num_nodes", "accumulate_grad_batches", "lr", "lr_base_batch_size", "lr_schedule",
    "lr_milestones", "lr_gamma", "lr_power", "warmup_epochs", "momentum", "weight_decay", "gradient_clip_val",
    "ema_decay", "m", "h",
    "s", "t_alpha", "batch_statistics", "l_margin", "u_margin", "l_a", "u_a", "lambda_g", "m1", "m2", "m3",
    "sample_rate", "low_res_augmentation_prob", "crop_augmentation_prob",
    "photometric_augmentation_prob", *(f"{name}_augmentation_prob" for name in MORE_AUGMENTATIONS),
)  # fmt: skip


def with_run_folder(config: Config) -> Config:
    """Go on from the newest checkpoint of ``--run_folder``, where there is one.

    Args:
        config: of this command line.

    Returns:
        The same, with the checkpoint to resume; the weights that such a run once started from no longer count.

    Raises:
        ValueError: the folder is a file, or holds something else than a run.
    """
    if not config.run_folder or config.resume_from_checkpoint:
        return config
    folder = Path(config.run_folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run_folder {folder} is a file: give the folder of a run, or a new one")
    # hidden names are files that a killed run was writing
    others = [entry.name for entry in folder.iterdir() if entry.name[0] != "."] if folder.is_dir() else []
    if others and CONFIG not in others:
        raise ValueError(
            f"--run_folder {folder} holds something else than a run ({', '.join(sorted(others)[:_SHOWN_NAMES])}; no "
            f"{CONFIG}): give the folder of a run, or a new one"
        )
    newest = folder / LAST_CHECKPOINT
    if not newest.exists():
        return config
    return replace(config, resume_from_checkpoint=str(newest), start_from_model_statedict="")


def check_still_new(folder: Path) -> None:
    """Raise RuntimeError where a run folder, that had no checkpoint when this start looked, has one now.

    Args:
        folder: of the run, locked.
    """
    newest = folder / LAST_CHECKPOINT
    if newest.exists():
        raise RuntimeError(
            f"{folder} has a checkpoint since this start began, of another one: the same command goes on"
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
    if config.resume_from_checkpoint:
        checkpoint = load_checkpoint(config.resume_from_checkpoint)
        saved = checkpoint.get("adaface")
        if saved is None:
            raise ValueError(
                f"{config.resume_from_checkpoint} was not written by this program, so there is no run to go on with; "
                "--start_from_model_statedict takes its backbone weights"
            )
        check_resumable(checkpoint, config.resume_from_checkpoint)
        return _resumed(config, saved["config"], saved["given"])
    config = with_pretrained(config)
    return config, _finetune_notes(config)


def _finetune_notes(config: Config) -> list[str]:
    """Say which defaults a fine-tuning has that other runs do not have."""
    given = {name: getattr(config, name) for name in config.given}
    shown = " ".join(f"--{name} {value}" for name, value in finetune_defaults(given).items())
    return [f"--finetune has defaults of its own: {shown}"] if shown else []


def _with_model_to_finetune(config: Config, saved: str) -> Config:
    """Name the model that a fine-tuning began from, which is needed again for the comparison at its end."""
    if "finetune" in config.given and not saved:
        raise ValueError(
            f"--finetune {config.finetune}, but {config.resume_from_checkpoint} is no run of a fine-tuning: leave "
            "--finetune out, or give another --run_folder for a new run"
        )
    if "finetune" in config.given:
        return with_whole_path(config)
    if Path(saved).is_absolute() and not Path(saved).exists():
        raise FileNotFoundError(
            f"{saved}, which the run of {config.resume_from_checkpoint} fine-tunes and is compared with at its end, is "
            "no longer there: put it back, or give --finetune with its new place"
        )
    return config


def _resumed(config: Config, saved: dict[str, Any], given: list[str]) -> tuple[Config, list[str]]:
    """Return the options of the run to go on with; those of this command line win."""
    saved = {**Config().as_dict(), **saved}  # an older run may lack the newest options
    for name in ("arch", "head", "optimizer", "sub_centers", "freeze_stages", "freeze_batch_norm", "layer_lr_decay"):
        if name in config.given and saved[name] != getattr(config, name):
            raise ValueError(
                f"--{name} {getattr(config, name)}, but {config.resume_from_checkpoint} is a run of {saved[name]}: "
                f"leave --{name} out, or start a new run with --start_from_model_statedict"
            )
    config = _with_model_to_finetune(config, saved["finetune"])
    before = {name: convert_value(name, saved[name]) for name in OPTIONS}
    changed = {name for name in config.given if before[name] != getattr(config, name)}
    notes = [
        f"--{name} was {before[name]} in the run that is resumed, now {getattr(config, name)}"
        for name in _NOTED
        if name in changed
    ]
    replaced = {*config.given, *_OF_THIS_START}
    for together in _DECIDED_TOGETHER:
        if config.given & together:
            replaced |= together
    if "lr_schedule" in changed:
        replaced |= _OF_ONE_SCHEDULE
    kept = set(OPTIONS) - replaced
    resumed = replace(config, **{name: before[name] for name in kept}, given=config.given | (set(given) & kept))
    check_optimisation(resumed)
    check_head_options(resumed, config.given)
    if "epochs" in changed and resumed.lr_schedule != "multistep":
        notes.append(
            f"--epochs was {before['epochs']} in the run that is resumed, now {resumed.epochs}: from here on the "
            f"learning rate is that of a {resumed.lr_schedule} schedule over {resumed.epochs} epochs"
        )
    return resumed, notes
