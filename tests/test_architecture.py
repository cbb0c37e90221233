"""The rules of the house that a program can check: layers, docstrings, names, pins."""

import ast
import fnmatch
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module imports only modules of a lower level. The whole number is the level of the design (0: on its own, 1: data
# and reports, 2: training, 3: command lines); decimals order the modules that make up one concept.
LEVELS = {
    "atomic_files": 0,
    "paper_augmentation": 0.2,
    "augmenter": 3,
    "camera_faults": 0,
    "more_augmentations": 0.1,
    "checkpoint_folders": 0.1,
    "class_order": 0,
    "conversion_journal": 0.1,
    "collectives": 0,
    "command_line": 0,
    "option_fields": 0.1,
    "groups": 0.3,
    "option_rules": 0.35,
    "parsing": 0.4,
    "demo_camera": 0.1,
    "demo_head": 0,
    "devices": 0.03,
    "device_plan": 0.4,
    "idx_text": 0.1,
    "verification_metrics": 0,
    "evaluate_utils": 3,
    "fused_softmax": 0,
    "optimization": 0.4,
    "freezing": 0.15,
    "lightning_setup": 0.05,
    "pair_pickle": 0.01,
    "layers": 0,
    "record_format": 0,
    "record_sidecar": 0.1,
    "sampler": 0,
    "text_table": 0,
    "threads": 0,
    "weight_average": 0,
    "demo_faces": 0.2,
    "margin_head": 0.1,
    "margins": 0.2,
    "head": 3,
    "backbone": 0.1,
    "mobilefacenet": 0.2,
    "timm_backbone": 0.2,
    "iresnet": 0.2,
    "registry": 0.3,
    "net": 3,
    "architecture_table": 3,
    "plot_style": 0.1,
    "images": 0.05,
    "pair_sets": 0.1,
    "record_heads": 0.1,
    "record_labels": 0.2,
    "record_index": 0.3,
    "record_writer": 0.4,
    "recordio": 0.5,
    "partial_fc": 0.3,
    "sharded_optimizer": 0.1,
    "checkpoints": 1,
    "checkpoint_weights": 1.05,
    "sharded_checkpoint": 1.1,
    "demo_baseline": 1,
    "demo_data": 1,
    "health": 1,
    "inference": 1.1,
    "published_models": 0.1,
    "model_files": 1.1,
    "model_options": 1.2,
    "face_comparison": 1.2,
    "face_app": 1.3,
    "serve_page": 1.4,
    "training_curves": 1,
    "pack": 1,
    "plots": 1,
    "quality_plot": 1,
    "quiet": 0,
    "svg_figure": 0.2,
    "progress": 1,
    "results": 1,
    "record_shards": 0.6,
    "training_source": 0.5,
    "folder_source": 0.6,
    "record_source": 1,
    "combined_source": 1,
    "source_finder": 1.1,
    "face_datasets": 1.1,
    "selection": 1.1,
    "unpack_bin": 1,
    "unpack_rec": 1.1,
    "held_out": 1.15,
    "data_module": 1.2,
    "data": 3,
    "resume": 2,
    "run_folder": 1,
    "locks": 0,
    "process_watch": 0.3,
    "launch": 0.1,
    "startup": 0.2,
    "execution": 2.1,
    "lightning_internals": 0.06,
    "checkpointing": 1.9,
    "stopping": 2,
    "finetuning": 1.9,
    "training_module": 2,
    "train_val": 3,
    "step_timing": 2.2,
    "build": 2.9,
    "train_command": 3,
    "main": 3.1,
    "trainer": 2.3,
    "alignment": 0,
    "alignment.boxes": 0.1,
    "alignment.networks": 0.1,
    "alignment.photograph": 1.15,
    "alignment.warp": 0.1,
    "alignment.detector": 1,
    "alignment.landmark_file": 1.1,
    "alignment.tree": 1.3,
    "alignment.journal": 1.1,
    "alignment.__main__": 3,
    "audit": 0,
    "audit.finding": 0,
    "audit.hashing": 0.1,
    "audit.images": 1.2,
    "audit.cleaning": 1.3,
    "audit.colours": 1.3,
    "audit.scan": 1.4,
    "audit.duplicates": 1.5,
    "audit.report": 1.5,
    "audit.identities": 1.4,
    "audit.model_pass": 1.6,
    "audit.run": 2,
    "evaluation": 0,
    "evaluation.identification": 0.4,
    "evaluation.similarity_search": 0.2,
    "evaluation.dependence": 0.1,
    "evaluation.intervals": 0.2,
    "evaluation.comparison": 0.3,
    "evaluation.template_pooling": 0.2,
    "evaluation.ijb_metadata": 0.3,
    "evaluation.calibration": 0.3,
    "evaluation.quality": 0.3,
    "evaluation.image_list": 1.1,
    "evaluation.outcome": 1.2,
    "evaluation.cached": 1.3,
    "evaluation.ijb": 2,
    "evaluation.tinyface": 2,
    "evaluation.hardest_pairs": 1.2,
    "evaluation.report_panels": 1.3,
    "evaluation.report_tables": 1.3,
    "evaluation.report": 1.4,
    "evaluation.run_report": 1.5,
    "evaluation.degradation": 1.2,
    "evaluation.identity_folder": 1.2,
    "evaluation.folder": 2,
    "evaluation.pair_comparison": 2.2,
    "evaluation.before_after": 2.3,
    "evaluation.model_comparison": 2.1,
    "sample_images": 1.2,
    "onnx_runtime": 0,
    "input_format": 0.2,
    "onnx_network": 1,
    "onnx_graph": 1.2,
    "onnx_int8": 1.3,
    "onnx_parity": 1.2,
    "memory_plan": 2.1,
    "plan": 2.4,
    "evaluation.published": 0.2,
    "gallery": 1.3,
    "evaluation.verification": 2,
    "evaluation.findings": 2.2,
    "align_command": 2.9,
    "evaluate_command": 2.9,
    "evaluation.protocols": 2.3,
    "evaluation.__main__": 3,
    "convert": 3,
    "inference_commands": 3,
    "export_onnx": 3,
}
# what an import is called where the distribution that brings it has another name
DISTRIBUTIONS = {
    "bcolz": "bcolz-zipline",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "faiss": "faiss-cpu",
    "lightning_fabric": "pytorch-lightning",
    "pytorch_lightning": "pytorch-lightning",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
VAGUE = {"utils", "util", "common", "misc", "helpers", "helper"}
# "/" is apart so that this file does not contain what it looks for
DEVELOPER_PATHS = re.compile(rb"(?<![\w.}$)-])/" + rb"(?:work|root|Users)/")

PACKAGES = ("alignment", "audit", "evaluation")
MODULES = sorted([*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).glob("*.py"))])


def name_of(module: Path) -> str:
    """Return the name by which a module is imported, such as `evaluation.ijb`."""
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), filename=module.name)


def imported(module: Path) -> set[str]:
    """Everything a module imports, at its beginning or inside functions: top-level names, modules of our packages.

    What stands under `if TYPE_CHECKING:` is not imported: it names types.
    """
    names = set()
    tree = parse(module)
    for branch in [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]:
        branch.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}, line {node.lineno}: relative import"
            source = node.module or ""
            names |= {f"{source}.{alias.name}" for alias in node.names} if source in PACKAGES else {source}
    return {name if name.partition(".")[0] in PACKAGES else name.partition(".")[0] for name in names}


def public_definitions(module: Path) -> Iterator[tuple[str, ast.AST]]:
    """The module, its public functions and classes, and their public methods."""
    tree = parse(module)
    yield name_of(module), tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{name_of(module)}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                methods = (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))
                yield from ((f"{name_of(module)}.{node.name}.{method.name}", method) for method in methods)


def requirements(file: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-r ")]


def repository_files() -> Iterator[Path]:
    """Every file that is not ignored by git, tracked or not, where git is absent too."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split() if not line.startswith("#")]
    ignored.append(".git")
    folders = [ROOT]
    while folders:
        for entry in folders.pop().iterdir():
            if any(fnmatch.fnmatch(entry.name, pattern) for pattern in ignored) or entry.is_symlink():
                continue
            if entry.is_dir():
                folders.append(entry)
            else:
                yield entry


def test_every_module_has_a_level():
    unknown = [name_of(module) for module in MODULES if name_of(module) not in LEVELS]
    assert not unknown, f"add {unknown} to LEVELS in {Path(__file__).name}: which modules may import them, which not?"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_one_way(module):
    level = LEVELS.get(name_of(module), max(LEVELS.values()))
    upward = {name: LEVELS[name] for name in imported(module) & set(LEVELS) if LEVELS[name] >= level}
    assert not upward, f"{name_of(module)} is of level {level} and imports {upward}; only lower levels may be imported"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_everything_public_has_a_docstring(module):
    missing = [name for name, node in public_definitions(module) if not ast.get_docstring(node)]
    assert not missing


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_what_is_imported_is_pinned_for_run_time(module):
    pinned = {line.partition("==")[0].lower() for line in requirements(ROOT / "requirements.txt")}
    foreign = imported(module) - set(sys.stdlib_module_names) - {name_of(file) for file in MODULES}
    missing = {name for name in foreign if DISTRIBUTIONS.get(name, name).lower() not in pinned}
    assert "mxnet" not in missing, f"{name_of(module)} imports mxnet, which only the interoperability tests may"
    assert not missing, f"{name_of(module)} imports {missing}, which requirements.txt does not name"


def test_names_say_what_a_module_is_about():
    vague = [m.stem for m in MODULES if VAGUE & set(m.stem.split("_")) and m.stem != "evaluate_utils"]
    assert not vague, f"name the concept instead: {vague}"


@pytest.mark.parametrize("file", sorted(ROOT.glob("requirements*.txt")), ids=lambda file: file.name)
def test_versions_are_pinned_exactly(file):
    pins = requirements(file)
    loose = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[A-Za-z0-9.!+]+", line)]
    assert pins
    assert not loose


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    files = list(repository_files())
    assert Path(__file__).resolve() in files
    found = [str(file.relative_to(ROOT)) for file in files if DEVELOPER_PATHS.search(file.read_bytes())]
    assert not found


def test_the_search_for_folders_finds_them_and_nothing_else():
    slash = b"/"
    for text in (b"x = '%swork%sdata'", b"%sroot%sx", b"see %sUsers%sme"):
        assert DEVELOPER_PATHS.search(text % (slash, slash))
    for text in (b"demo%swork%sdata", b"$ROOT%swork%sx", b"network%swork %s", b"..%swork%sx"):
        assert not DEVELOPER_PATHS.search(text % (slash, slash))
