"""The modules under the official import paths hold re-exports alone, and nothing in the project imports them."""

import ast
import importlib
from pathlib import Path

import pytest
import torch

import head
import net

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("main", "convert", "inference")  # they run a command too, where they are started
OFFICIAL = ("augmenter", "data", "evaluate_utils", "head", "net", "train_val")
MOST_LINES = 30


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_module_of_the_official_code_is_a_docstring_and_explicit_re_exports(name):
    tree = tree_of(name)
    docstring, *imports = tree.body
    assert ast.get_docstring(tree) and isinstance(docstring, ast.Expr)
    assert imports and all(isinstance(statement, ast.ImportFrom) for statement in imports)
    assert all(alias.asname == alias.name for statement in imports for alias in statement.names)
    assert len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()) < MOST_LINES


@pytest.mark.parametrize("name", OFFICIAL)
def test_its_names_are_the_objects_of_the_modules_that_define_them(name):
    module = importlib.import_module(name)
    for statement in tree_of(name).body[1:]:
        source = importlib.import_module(statement.module)
        for alias in statement.names:
            thing = getattr(source, alias.name)
            assert getattr(module, alias.name) is thing
            assert getattr(thing, "__module__", source.__name__) == source.__name__, (
                "re-exported from where it is defined"
            )


def test_the_project_imports_from_where_the_code_is():
    files = [
        *ROOT.glob("*.py"),
        *(file for name in ("adaface", "bench", "docs") for file in (ROOT / name).rglob("*.py")),
    ]
    assert ROOT / "net.py" in files
    users = {
        f"{file.relative_to(ROOT)}: {ast.unparse(node)}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and node.module in OFFICIAL)
        or (isinstance(node, ast.Import) and {alias.name for alias in node.names} & set(OFFICIAL))
    }
    assert not users


def test_the_official_calls_build_what_they_say():
    with torch.device("meta"):
        embeddings, norms = net.build_model(model_name="ir_50").eval()(torch.empty(2, 3, 112, 112))
        margin = head.build_head(
            head_type="adaface", embedding_size=512, class_num=7, m=0.4, t_alpha=0.01, h=0.333, s=64.0
        )
    assert (embeddings.shape, norms.shape) == ((2, 512), (2, 1))
    assert isinstance(margin, head.AdaFace)


@pytest.mark.parametrize("name", [*OFFICIAL, *COMMANDS, "hubconf"])
def test_a_module_of_the_root_defines_nothing(name):
    tree = tree_of(name)
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
    assert not defined
    assert ast.get_docstring(tree)
    assert len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()) < MOST_LINES
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all((node.module or "").startswith("adaface.") for node in imports)
