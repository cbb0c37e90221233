"""The options of ``adaface train``, checked before PyTorch is imported: values, names and paths."""

from pathlib import Path

from adaface.checkpoints.published import check_available, published_by_name
from adaface.commands.model_options import check_model_path
from adaface.config.options import Config, RunOptions
from adaface.config.parsing import Action
from adaface.config.parsing import parse as parse_config
from adaface.models.names import check_name
from adaface.system.command_line import invocation
from adaface.system.files import check_output_folder


def parse(words: list[str]) -> tuple[Config, Action]:
    """Parse the command line.

    Args:
        words: command-line arguments after the program's name.

    Returns:
        The configuration, and what to do with it.

    Raises:
        ValueError: an unknown option, a bad value, or contradictory options.
        FileNotFoundError: the recipe does not exist; or there are no words, and no data in the default place.
    """
    config, action = parse_config(words)
    if not words and not Path(config.data.train_data_path).exists():
        raise _what_it_needs()
    return config, action


def _what_it_needs() -> FileNotFoundError:
    train, convert = invocation("train"), invocation("convert")
    error = FileNotFoundError(
        "a training needs data: aligned faces in <data_root>/<train_data_path>/<identity>/<image>, or a train.rec there"
    )
    error.add_note(f"  the demo, in a clone:  make demo, or {train} --config recipes/demo_cpu.yaml --data_root demo")
    error.add_note(
        f"  the paper's MS1MV2:    {convert} --rec_path <DATASET_ROOT>/faces_emore, then {train} --config "
        "recipes/ms1mv2_ir101.yaml --data_root <DATASET_ROOT>"
    )
    return error


def check_paths(parsed: tuple[Config, Action]) -> None:
    """Raise an error if data, models, checkpoints or lists cannot be read, or the architecture is unknown.

    Args:
        parsed: of ``parse``.

    Raises:
        FileNotFoundError: there is no such file, and no published model of this name.
        ValueError: an unknown architecture, or a file that is not what it is given for.
        RuntimeError: a published model cannot be downloaded.
        OSError: the output folder is not writable.
    """
    (config, action), run = parsed, parsed[0].run
    check_name(run.arch)
    check_files(run, config.data.train_data_index)
    if action == "print_config" or run.resume_from_checkpoint or run.run_folder:
        return  # no data, or those of the checkpoint
    for word in filter(None, (run.start_from_model_statedict, run.finetune)):
        if Path(word).exists():
            check_model_path(Path(word))
        else:
            check_available(word)
    if action == "run":
        check_output_folder(Path(run.output_dir), "--output_dir")
    if not run.evaluate:
        from adaface.data.sources.finder import find_data_sets  # with NumPy and OpenCV

        find_data_sets(config.data.data_root, config.data.train_data_path, use_mxrecord=config.data.use_mxrecord)
    _check_sets(config)


def _check_sets(config: Config) -> None:
    from adaface.data.chosen_sets import check_folder_of_sets, choose_sets  # with NumPy and OpenCV

    data, run = config.data, config.run
    if "val_data_path" in config.given:
        check_folder_of_sets(data)
    folder = Path(data.data_root, data.val_data_path)
    choose_sets(folder, data.val_sets, held_out_otherwise=bool(run.finetune), compulsory=run.evaluate)


def check_files(run: RunOptions, train_data_index: str) -> None:
    """Raise an error if checkpoints, models or lists do not exist, before anything else is read.

    Args:
        run: options of the command line.
        train_data_index: file of the images to use; empty for all.

    Raises:
        FileNotFoundError: there is no such file, and no published model of this name.
    """
    for name, path in (("resume_from_checkpoint", run.resume_from_checkpoint), ("train_data_index", train_data_index)):
        if path and not Path(path).exists():
            raise FileNotFoundError(f"--{name}: there is no file {path}")
    _check_model("start_from_model_statedict", run.start_from_model_statedict)
    _check_model("finetune", run.finetune)


def _check_model(option: str, word: str) -> None:
    """Raise FileNotFoundError unless a word is a file or the name of a published model."""
    if not word or word.startswith("hf:") or Path(word).exists():
        return
    if "/" in word or "\\" in word:
        raise FileNotFoundError(f"--{option}: there is no file {word}")
    try:
        published_by_name(word)
    except ValueError as error:
        raise FileNotFoundError(f"--{option}: there is no file {word}, and {error}") from None
