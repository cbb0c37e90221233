"""The tests' environment where only a CPU build of PyTorch and PyPI's torchvision, a CUDA build, can be installed.

    python tests/support/unpaired_torchvision.py    (part of `make setup-dev`)

timm needs torchvision, whose import fails beside a CPU build of PyTorch: its compiled operators cannot be loaded, and
its Python part then asks for two of them (``operator torchvision::nms does not exist``). The right remedy is a pair of
one build, from PyTorch's own index. Where that index cannot be reached, the tests of timm still have to run; they need
none of those operators. This script copies itself to the environment's site-packages, to be imported at each start of
Python; the two operators are then declared just before torchvision is imported. It does nothing beside a fitting pair.
"""

import importlib.machinery
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

_NAME = "unpaired_torchvision"
_OPERATORS = ("torchvision::nms", "torchvision::qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def is_unpaired() -> bool:
    """Whether a CUDA build of torchvision is installed beside a CPU build of torch."""
    versions = []
    for package in ("torch", "torchvision"):
        spec = importlib.machinery.PathFinder.find_spec(package)
        if spec is None or spec.origin is None:
            return False
        versions.append(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"))
    return "+cpu" in versions[0] and "+cu" in versions[1].replace("+cpu", "")


class _Declaring:
    """Finds nothing; the first search for torchvision declares its operators."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            import torch

            for operator in _OPERATORS:
                torch.library.define(operator, _SCHEMA)


if __name__ == _NAME and is_unpaired():
    sys.meta_path.insert(0, _Declaring())  # type: ignore[arg-type]
elif __name__ == "__main__" and is_unpaired():
    folder = Path(sysconfig.get_path("purelib"))
    shutil.copyfile(__file__, folder / f"{_NAME}.py")
    (folder / f"{_NAME}.pth").write_text(f"import {_NAME}\n", encoding="utf-8")
    print("torchvision is a CUDA build, torch a CPU build: torchvision's operators are declared for the tests")
