"""Which options a run goes on with: those of its checkpoint, unless the command line says otherwise."""

from dataclasses import replace
from typing import Any

from checkpoints import backbone_state, identify_architecture, load_checkpoint
from config import OPTIONS, Config, convert_value

# of these one option overrides the others when a run goes on with other hardware
_DECIDED_TOGETHER = ({"gpus", "accelerator", "devices"}, {"use_16bit", "precision"})


def with_checkpoint_options(config: Config) -> tuple[Config, list[str]]:
    """Take the options that were not given from the checkpoint to resume, or the architecture to evaluate.

    Args:
        config: of this command line.

    Returns:
        The options to run with, and notes for the user on what differs from the run that is resumed.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a damaged checkpoint, one that no run of this program wrote, or one of another model.
    """
    if config.resume_from_checkpoint:
        saved = load_checkpoint(config.resume_from_checkpoint).get("adaface")
        if saved is None:
            raise ValueError(
                f"{config.resume_from_checkpoint} was not written by this program, so there is no run to go on with; "
                "--start_from_model_statedict takes its backbone weights"
            )
        return _resumed(config, saved["config"], saved["given"])
    if config.evaluate and "arch" not in config.given:
        path = config.start_from_model_statedict
        arch = identify_architecture(backbone_state(load_checkpoint(path), path))
        return replace(config, arch=arch or config.arch), []
    return config, []


def _resumed(config: Config, saved: dict[str, Any], given: list[str]) -> tuple[Config, list[str]]:
    """Return the options of the run to go on with; those of this command line win."""
    for name in ("arch", "head"):
        if name in config.given and saved[name] != getattr(config, name):
            raise ValueError(
                f"--{name} {getattr(config, name)}, but {config.resume_from_checkpoint} is a run of {saved[name]}: "
                f"leave --{name} out, or start a new run with --start_from_model_statedict"
            )
    notes = [
        f"--{name} was {saved[name]} in the run that is resumed, now {getattr(config, name)}"
        for name in ("seed", "batch_size", "accumulate_grad_batches")
        if name in config.given and saved[name] != getattr(config, name)
    ]
    replaced = {*config.given, "start_from_model_statedict", "resume_from_checkpoint"}
    for together in _DECIDED_TOGETHER:
        if config.given & together:
            replaced |= together
    kept = {name for name in saved if name in OPTIONS and name not in replaced}
    values = {name: convert_value(name, saved[name]) for name in kept}
    return replace(config, **values, given=config.given | (set(given) & kept)), notes
