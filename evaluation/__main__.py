r"""Evaluate any model by the protocols of the paper, or on your own faces.

    python -m evaluation pairs --checkpoint experiments/<run>/best.ckpt --root <DATASET_ROOT>/faces_emore
    python -m evaluation ijbc --checkpoint adaface_ir101_webface12m.ckpt --root <DATASET_ROOT>
    python -m evaluation paper --model adaface_ir50_ms1mv2 --root <DATASET_ROOT> --report
    python -m evaluation folder --compare pretrained.ckpt finetuned.ckpt --root <FACES>

``python -m evaluation --help`` explains every option.
"""

import argparse
import shlex
import sys
from pathlib import Path

from atomic_files import check_writable
from command_line import run_to_status
from devices import plan_devices
from evaluation.cached import CachedEmbedding, ModelFile
from evaluation.command import parse
from evaluation.findings import Evaluated, Findings, text_of, write_findings
from evaluation.protocols import PROTOCOLS, run_comparison
from model_options import model_path
from run_folder import choose_run_folder

_OUTSIDE = 3


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        words: what follows `python -m evaluation`; those of the process when None.

    Returns:
        Exit status: 0 done, 2 error (one line on stderr), 3 a number outside its interval with --strict, 130 stopped.
    """
    words = sys.argv[1:] if words is None else words
    stopped = "what has been embedded is kept, the same command goes on"
    return run_to_status("evaluation", lambda: _run(parse(words), words), stopped=stopped)


def _run(options: argparse.Namespace, words: list[str]) -> int:
    if not Path(options.root).exists():
        raise FileNotFoundError(f"--root {options.root} does not exist")
    _check_output(Path(options.output_dir))
    if options.model:
        options.checkpoint = str(model_path(options))
    paths = options.compare or [options.checkpoint]
    models = [_open_model(options, path) for path in paths]
    for path, model in zip(paths, models, strict=True):
        print(f"model: {path} ({model.embedder.arch})")
    findings = run_comparison(options, models) if options.compare else PROTOCOLS[options.protocol](options, models[0])
    print(text_of(findings))
    _keep(findings, options, words, paths, models)
    return _OUTSIDE if findings.failed and options.strict else 0


def _check_output(folder: Path) -> None:
    """Raise OSError now, and not after hours, where no results can be written into a folder."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output_dir {folder} is a file: give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--output_dir {folder} cannot be made ({error.strerror}): give another") from error
    check_writable(folder, f"--output_dir {folder}")


def _open_model(options: argparse.Namespace, path: str) -> CachedEmbedding:
    devices = plan_devices(options.accelerator, 1, options.devices, gpus_given=False, use_16bit=False, precision="32")
    accelerator = "gpu" if devices.accelerator == "gpu" else "cpu"
    return CachedEmbedding(
        ModelFile(path, options.arch, accelerator),
        folder=Path(options.cache) if options.cache else None,
        processes=options.devices,
        batch_size=options.batch_size,
        most_unreadable=options.most_unreadable,
    )


def _keep(
    findings: Findings, options: argparse.Namespace, words: list[str], paths: list[str], models: list[CachedEmbedding]
) -> None:
    """Write everything into a new folder, and say which."""
    folder = choose_run_folder(options.output_dir, f"evaluation_{options.protocol}")
    evaluated = Evaluated(
        title=f"{options.protocol}: {', '.join(Path(path).name for path in paths)}",
        model=", ".join(f"{path} ({model.embedder.arch})" for path, model in zip(paths, models, strict=True)),
        options=vars(options),
        command=shlex.join(["python", "-m", "evaluation", *words]),
    )
    write_findings(folder, findings, evaluated, report=options.report)
    print(f"everything of this evaluation is in {folder}")


if __name__ == "__main__":
    sys.exit(main())
