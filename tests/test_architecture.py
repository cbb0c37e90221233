"""The rules of the house that a program can check: folders, circles, docstrings, names, pins."""

import ast
import fnmatch
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A folder of adaface/ imports only from itself and from those before it.
FOLDERS = (
    "system",
    "distributed",
    "records",
    "augmentation",
    "models",
    "heads",
    "config",
    "data",
    "metrics",
    "checkpoints",
    "conversion",
    "demo",
    "export",
    "alignment",
    "reporting",
    "inference",
    "serving",
    "evaluation",
    "audit",
    "training",
    "commands",
)
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
VERSION = "adaface.__version__"  # the only name of adaface/__init__.py that a folder may import
MOST_PARAMETERS = 8
VAGUE = {"utils", "util", "common", "misc", "helpers", "helper"}
# "/" is apart so that this file does not contain what it looks for
DEVELOPER_PATHS = re.compile(rb"(?<![\w.}$)-])/" + rb"(?:work|root|Users)/")

OF_CUDA = {"triton"}  # comes with PyTorch's wheels for CUDA, in their version; imported there alone

MODULES = sorted((ROOT / "adaface").rglob("*.py"))
ROOT_MODULES = sorted(ROOT.glob("*.py"))


def name_of(module: Path) -> str:
    """Return the name by which a module is imported, such as `adaface.evaluation.ijb`."""
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(module) for module in MODULES}


def parse(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"), filename=module.name)


def imported(module: Path) -> set[str]:
    """Everything a module imports, at its beginning, inside functions or for type checkers: modules, by whole names."""
    names = set()
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}, line {node.lineno}: relative import"
            source = node.module or ""
            whole = {f"{source}.{alias.name}" for alias in node.names}
            names |= (whole & (NAMES | {VERSION})) or {source}
    return names


def folder_of(name: str) -> int:
    """Return the place in FOLDERS of the folder that holds a module; what stands beside the folders is above them."""
    parts = name.split(".")
    return FOLDERS.index(parts[1]) if len(parts) > 1 and parts[1] in FOLDERS else len(FOLDERS)


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
            names = (entry.name, f"/{entry.relative_to(ROOT)}")  # a pattern with "/" in front is one of the root
            if any(fnmatch.fnmatch(name, pattern) for name in names for pattern in ignored) or entry.is_symlink():
                continue
            if entry.is_dir():
                folders.append(entry)
            else:
                yield entry


def test_every_module_is_in_a_folder_of_the_list():
    beside = {"__init__.py", "__main__.py"}
    lost = [name_of(m) for m in MODULES if folder_of(name_of(m)) == len(FOLDERS) and m.name not in beside]
    assert not lost, f"move {lost} into one of {FOLDERS}"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_folder_imports_only_folders_before_it(module):
    ours = {name for name in imported(module) if name.partition(".")[0] == "adaface"}
    later = sorted(name for name in ours - {VERSION} if folder_of(name) > folder_of(name_of(module)))
    assert not later, f"{name_of(module)} imports {later}, which come after its own folder in FOLDERS"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_the_package_imports_nothing_of_the_root(module):
    roots = {path.stem for path in ROOT_MODULES} | {"tests", "bench", "docs"}
    assert not {name.partition(".")[0] for name in imported(module)} & roots


def test_no_circle_of_imports():
    graph = {name_of(module): imported(module) & NAMES - {"adaface"} for module in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_everything_public_has_a_docstring(module):
    missing = [name for name, node in public_definitions(module) if not ast.get_docstring(node)]
    assert not missing


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_what_is_imported_is_pinned_for_run_time(module):
    pinned = {line.partition("==")[0].lower() for line in requirements(ROOT / "requirements.txt")}
    foreign = {name.partition(".")[0] for name in imported(module)} - set(sys.stdlib_module_names) - {"adaface"}
    missing = {name for name in foreign - OF_CUDA if DISTRIBUTIONS.get(name, name).lower() not in pinned}
    assert "mxnet" not in missing, f"{name_of(module)} imports mxnet, which only the interoperability tests may"
    assert not missing, f"{name_of(module)} imports {missing}, which requirements.txt does not name"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_the_library_logs_and_does_not_print(module):
    if name_of(module).startswith(("adaface.commands.", "adaface.__main__")):
        return
    tree, lines = parse(module), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "print":
            lines.append(node.lineno)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout.write", "sys.stderr.write"):
            lines.append(node.lineno)
    assert not lines, f"lines {lines} of {name_of(module)}: log instead, adaface/system/screen.py shows it"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_no_list_of_parameters_is_longer_than_eight(module):
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [one.arg for one in every if one.arg not in ("self", "cls")]
            assert len(names) <= MOST_PARAMETERS, f"{name_of(module)}.{node.name}: group some of {', '.join(names)}"


def test_names_say_what_a_module_is_about():
    vague = [name_of(m) for m in MODULES if VAGUE & set(m.stem.split("_"))]
    assert not vague, f"name the concept instead: {vague}"


@pytest.mark.parametrize("file", sorted(ROOT.glob("requirements*.txt")), ids=lambda file: file.name)
def test_versions_are_pinned_exactly(file):
    pins = requirements(file)
    pin = r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[A-Za-z0-9.!+]+(; platform_system == \"Linux\")?"
    loose = [line for line in pins if not re.fullmatch(pin, line)]
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
