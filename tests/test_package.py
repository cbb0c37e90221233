"""The package: what a wheel holds, what it depends on, and that it works outside of the repository."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import adaface
import hubconf
from adaface.checkpoints.published import PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, str]:
    """Exact versions of a requirements file, by normalized name."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return {normal(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    program = "import os, sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"adaface", f"adaface-{adaface.__version__}.dist-info"}
    tracked = subprocess.run(["git", "ls-files", "adaface"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if tracked:
        assert sorted(name for name in names if name.startswith("adaface/")) == sorted(tracked)
    assert {"adaface/py.typed", "adaface/serving/face_page.html", "adaface/reporting/report.html.j2"} <= set(names)


def test_the_wheel_works_from_another_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    program = "import adaface, sys; print(adaface.__file__, adaface.build_model('ir_mini').__class__.__name__)"
    for words, printed in (
        (["-c", program], f"{tmp_path / 'site' / 'adaface' / '__init__.py'} "),
        (["-m", "adaface", "--version"], f"adaface {adaface.__version__}"),
        (["-m", "adaface.demo.dataset", "--output", "faces", "--identities", "2"], "demo data: faces"),
        (["-m", "adaface", "convert", "--rec_path", "faces"], "next: python"),
    ):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert printed in done.stdout


def test_the_command_is_the_table_of_commands():
    assert PROJECT["scripts"] == {"adaface": "adaface.__main__:main"}


def test_dependencies_and_the_exact_set_are_held_together():
    exact = pins("requirements.txt") | pins("requirements-dev.txt")
    extras = PROJECT["optional-dependencies"]
    bounds = [Requirement(line) for line in [*PROJECT["dependencies"], *itertools.chain(*extras.values())]]
    assert len({normal(bound.name) for bound in bounds}) == len(bounds), "each is named once"
    not_measured_with = {normal(Requirement(line).name) for line in [*extras["hub"], *extras["wandb"]]}
    for bound in bounds:
        if normal(bound.name) in not_measured_with:
            assert normal(bound.name) not in exact
            continue
        assert re.fullmatch(r">=[\d.]+", str(bound.specifier)), f"{bound}: a lower bound is expected"
        assert bound.specifier.contains(exact[normal(bound.name)]), f"{bound} against {exact[normal(bound.name)]}"
    assert set(pins("requirements.txt")) <= {normal(bound.name) for bound in bounds}, "requirements.txt holds more"


def test_the_models_of_torch_hub_are_the_published_ones():
    assert {name for name in vars(hubconf) if callable(getattr(hubconf, name))} == {model.stem for model in PUBLISHED}
    model = torch.hub.load(str(ROOT), "adaface_ir18_casia", source="local", pretrained=False)
    assert not model.training
    with torch.no_grad():
        embeddings, norms = model(torch.zeros(1, 3, 112, 112))
    assert (embeddings.shape, norms.shape) == ((1, 512), (1, 1))
    explained = hubconf.adaface_ir50_webface4m.__doc__
    for word in ("BGR", "112", "[-1, 1]", "WebFace4M", "pretrained"):
        assert word in explained
