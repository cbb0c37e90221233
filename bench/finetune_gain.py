"""What fine-tuning with blur brings, on real faces of people whom neither training has seen.

    python -m bench.finetune_gain <ROOT>/lfw112/imgs --val_data_path <ROOT>/lfw112 --output <FOLDER>

The people of an image folder are split into three parts: half of them for the pretraining, by the recipe
`lfw112_small_cpu.yaml`; three tenths for the fine-tuning, with blurring augmentations; the rest for the test (`python
-m evaluation folder --compare`). Three seeds of the fine-tuning; the macro F1 on clear and on blurred faces is told of
the best epoch, chosen on held out people, and of the last. A killed run goes on when the same command is given again.
On two CPU cores it takes half an hour.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
PARTS = {"pretraining": 0.5, "finetuning": 0.3, "test": 0.2}
SEEDS = (1, 2, 3)
RECIPE = ["--config", "recipes/lfw112_small_cpu.yaml"]
FINETUNING = [
    "--gpus", "0", "--num_workers", "1", "--s", "32", "--epochs", "20", "--lr", "0.05",
    "--crop_augmentation_prob", "0.1",
    "--photometric_augmentation_prob", "0.2", "--low_res_augmentation_prob", "0.3", "--blur_augmentation_prob", "0.4",
    "--motion_blur_augmentation_prob", "0.4", "--jpeg_augmentation_prob", "0.4",
]  # fmt: skip
EPOCHS = ("best", "last")


def split(people: list[str]) -> dict[str, list[str]]:
    """Share people out over the parts, by a fixed seed.

    Args:
        people: names, in any order.
    """
    shuffled = sorted(people)
    random.Random(0).shuffle(shuffled)
    first = round(PARTS["pretraining"] * len(shuffled))
    second = first + round(PARTS["finetuning"] * len(shuffled))
    return dict(zip(PARTS, (shuffled[:first], shuffled[first:second], shuffled[second:]), strict=True))


def link(images: Path, output: Path) -> None:
    """Make a folder of each part, of links to the people's folders."""
    for part, people in split([entry.name for entry in images.iterdir() if entry.is_dir()]).items():
        (output / part).mkdir(parents=True, exist_ok=True)
        for name in people:
            if not (output / part / name).exists():
                (output / part / name).symlink_to((images / name).resolve())


def run(*words: str | Path) -> None:
    """Run one of the project's programs; what it prints is seen."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def measure(output: Path, val_data_path: Path, more: list[str]) -> pd.DataFrame:
    """Train, fine-tune and compare; return a row for each seed and epoch: F1 of clear and blurred faces, percent.

    Args:
        output: folder of the parts and of the runs.
        val_data_path: verification sets for the pretraining.
        more: options of both trainings, after the others.
    """
    pretrained = output / "pretrained" / "best.ckpt"
    paths = ["--train_data_path", output / "pretraining", "--val_data_path", val_data_path]
    run("main.py", *RECIPE, *paths, "--run_folder", pretrained.parent, *more)
    rows = []
    for seed in SEEDS:
        folder = output / f"finetuned_{seed}"
        words = ["--finetune", pretrained, "--train_data_path", output / "finetuning", "--seed", seed]
        run("main.py", *words, *FINETUNING, "--run_folder", folder, *more)
        models = [pretrained, *(folder / f"{epoch}.ckpt" for epoch in EPOCHS)]
        place = output / f"comparison_{seed}"
        if not any(place.glob("*/comparison.csv")):
            run(
                "-m",
                "adaface",
                "evaluate",
                "folder",
                "--compare",
                *models,
                "--root",
                output / "test",
                "--output_dir",
                place,
            )
        rows += _gains(next(place.glob("*/comparison.csv")), seed)
    return pd.DataFrame(rows)


def _gains(comparison: Path, seed: int) -> list[dict[str, object]]:
    """Read by how much the macro F1 of the fine-tuned models differs from the pretrained one's."""
    table = pd.read_csv(comparison).dropna(subset=["f1_score_difference"])
    conditions = table["condition"].unique()
    rows = table["f1_score_difference"].to_numpy().reshape(len(EPOCHS), len(conditions))
    return [
        {"seed": seed, "epoch": epoch, **dict(zip(conditions, row, strict=True))}
        for epoch, row in zip(EPOCHS, rows, strict=True)
    ]


def summary(gains: pd.DataFrame) -> str:
    """Return the gains of each seed, their mean and standard deviation, in points.

    Args:
        gains: of ``measure``.
    """
    lines = [gains.to_string(index=False, float_format="{:+.2f}".format)]
    for epoch, rows in gains.groupby("epoch", sort=False):
        parts = [
            f"{name} {statistics.mean(rows[name]):+.2f} (deviation {statistics.stdev(rows[name]):.2f})"
            for name in rows.columns[2:]
        ]
        lines.append(f"{epoch} epoch, mean of {len(rows)} seeds, points of F1: {', '.join(parts)}")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder with one subfolder per identity, faces of 112x112")
    parser.add_argument("--val_data_path", type=Path, required=True, help="verification sets for the pretraining")
    parser.add_argument("--output", type=Path, required=True, help="folder to work in; given again, it goes on there")
    parsed, more = parser.parse_known_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    output = parsed.output.resolve()
    link(parsed.images, output)
    print(summary(measure(output, parsed.val_data_path.resolve(), more)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
