"""The table of commands: `adaface COMMAND ...` and `python -m adaface COMMAND ...`."""

import ast
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import adaface
from adaface.__main__ import main
from adaface.commands import COMMANDS, inference
from adaface.system.command_line import DONE_WITH_PROBLEMS, FAILED, INTERRUPTED, NOBODY_READS, invocation, program_name
from adaface.system.option_parser import Parser

ROOT = Path(__file__).resolve().parents[1]


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == overview
    for name, command in COMMANDS.items():
        assert f"  {name} " in overview
        assert command.summary in overview


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adaface {adaface.__version__}\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "unknown command 'trian'; did you mean train?"),
        ("-x", "unknown option '-x'; options of a command come after its name: adaface COMMAND [options]"),
        (
            "--verison",
            "unknown option '--verison'; did you mean --version? options of a command come after its name: adaface "
            "COMMAND [options]",
        ),
    ],
)
def test_an_unknown_word_gets_one_line_with_the_nearest_one(capsys, word, message):
    assert main([word, "train"]) == 2
    assert capsys.readouterr().err == f"adaface: error: {message}\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["evaluate", "fodler", "--root", "x"], "invalid choice: 'fodler'; did you mean folder?"),
        (
            ["evaluate", "xyz", "--root", "x"],
            "invalid choice: 'xyz'; choose from: pairs, ijbb, ijbc, tinyface, folder, paper",
        ),
        (
            ["align", "a", "b", "--faces", "centrl"],
            "invalid choice: 'centrl'; did you mean central? choose from: largest, ",
        ),
        (["align", "a", "b", "--format", "jgp"], "invalid choice: 'jgp'; did you mean jpg?"),
    ],
)
def test_a_misspelt_choice_gets_the_nearest_one(capsys, words, hint):
    assert main(words) == 2
    assert hint in capsys.readouterr().err


def test_inference_py_names_the_nearest_command(capsys):
    assert inference.main(["serv"]) == 2
    assert "invalid choice: 'serv'; did you mean serve?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_with_status_2_and_is_stopped_with_130(capsys, monkeypatch, name):
    assert main([name, "--no_such_option"]) == FAILED == 2
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith(f"{program_name(name)}: error: unknown option --no_such_option")

    def stopped(self: Parser, words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Parser, "parse", stopped)
    assert main([name]) == INTERRUPTED == 130
    assert "stopped" in "".join(capsys.readouterr())


def test_exit_statuses_are_those_of_one_place_and_documented():
    """A command returns 0 or a name of ``command_line``; ``sys.exit`` takes what ``main`` returns."""
    names = ("DONE_WITH_PROBLEMS", "FAILED", "INTERRUPTED", "NOBODY_READS")
    for module in sorted((ROOT / "adaface").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name in ("main", "job", "run", "_run", "_status", "audit"):
                returned = [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
                numbers = {value.value for value in returned if isinstance(value, ast.Constant)}
                assert numbers <= {0, None}, f"{module.name}: {node.name} returns {numbers}, expected {names}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "sys.exit":
                assert ast.unparse(node.args[0]) in ("main()", "_main()"), f"{module.name}, line {node.lineno}"
    page = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    table = page.partition("## Exit status")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == ["0", "1", "2", "130"]
    assert f"{NOBODY_READS}." in table
    assert (DONE_WITH_PROBLEMS, FAILED, INTERRUPTED, NOBODY_READS) == (1, 2, 130, 141)


@pytest.mark.parametrize("module", sorted({command.module for command in COMMANDS.values()}))
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_module_of_a_command_runs_it(module, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{module.rpartition('.')[2]}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_under_its_own_name(capsys, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", ["adaface"])
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: adaface {name} ")


def test_a_command_is_named_as_it_was_started(monkeypatch):
    for started, train, evaluate in (
        ("main.py", "python main.py", "python -m adaface evaluate"),
        ("/home/me/.local/bin/adaface", "adaface train", "adaface evaluate"),
        ("/site-packages/adaface/__main__.py", "python -m adaface train", "python -m adaface evaluate"),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        assert invocation("train") == train
        assert invocation("evaluate") == evaluate
        assert program_name("evaluate") == "adaface evaluate"


def imports(package: str, *words: str) -> bool:
    program = f"import sys; sys.argv = {['adaface', *words]!r}\nfrom adaface.__main__ import main\n"
    program += f"try:\n    main()\nexcept SystemExit:\n    pass\nprint({package!r} in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1] == "True"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        *([name, "--help"] for name in COMMANDS),
        *([name, "--no_such_option"] for name in COMMANDS),
        ["train", "--arch", "ir_5"],
        ["train", "--finetune", "adaface_ir50"],
        ["train", "--data_root", "nowhere"],
        ["train", "--val_data_path", "recipez"],
        ["train", "--val_data_path", "recipes", "--val_sets", "lwf"],
        ["train", "--evaluate", "--val_data_path", "recipes", "--start_from_model_statedict", "main.py"],
        ["train", "--train_data_path", "recipes"],
        ["train", "--val_data_path", "none", "--finetune", "README.md"],
        ["evaluate", "fodler"],
        ["evaluate", "folder", "--root", "docs", "--checkpoint", "README.md"],
        ["evaluate", "pairs", "--root", "docs", "--checkpoint", "MODEL"],
        ["evaluate", "ijbc", "--root", "docs", "--checkpoint", "MODEL"],
        ["evaluate", "tinyface", "--root", "docs", "--checkpoint", "MODEL"],
        ["evaluate", "folder", "--root", "README.md", "--checkpoint", "MODEL"],
        ["evaluate", "folder", "--root", "docs", "--checkpoint", "MODEL"],
        ["evaluate", "folder", "--root", "tests", "--checkpoint", "MODEL", "--output_dir", "README.md"],
        ["compare", "docs", "docs", "--checkpoint", "MODEL"],
        ["compare", "README.md", "main.py", "--checkpoint", "MODEL"],
        ["compare", "main.py", "main.py", "--checkpoint", "docs"],
        ["embed", "README.md", "--out", "a.npz", "--checkpoint", "MODEL"],
        ["embed", "docs", "--out", "a.npz", "--checkpoint", "MODEL", "--cache", "README.md"],
        ["group", "README.md", "--checkpoint", "MODEL"],
        ["search", "README.md", "a.png", "--checkpoint", "MODEL"],
        ["evaluate", "pairs", "--help"],
        ["evaluate", "pairs", "--root", "nowhere", "--model", "adaface_ir50_ms1mv2"],
        ["compare", "a.png", "b.png", "--model", "adaface_ir50_ms1mv2"],
        ["search", "nowhere", "a.png", "--checkpoint", "main.py"],
        ["embed", "adaface", "--out", "a.npz", "--checkpoint", "nowhere.ckpt"],
        ["export", "--checkpoint", "nowhere.ckpt", "--output", "a.onnx"],
        ["models", "ir_5"],
        ["audit", "nowhere"],
        ["align", "nowhere", "faces"],
    ],
    ids=" ".join,
)
def test_a_wrong_word_or_path_is_told_before_pytorch_is_imported(words, tmp_path):
    (tmp_path / "model.onnx").touch()
    assert not imports("torch", *(str(tmp_path / "model.onnx") if word == "MODEL" else word for word in words))


@pytest.mark.parametrize("words", [["--help"], ["--no_such_option"], ["nowhere"]], ids=" ".join)
def test_an_audit_of_nothing_imports_no_plots(words):
    assert not imports("matplotlib", "audit", *words)


def test_the_check_of_imports_sees_one():
    assert imports("torch", "models", "ir_18")


def test_the_public_names_are_those_of_their_modules():
    for name, home in adaface._HOMES.items():
        assert getattr(adaface, name) is getattr(importlib.import_module(home), name)
    assert set(adaface._HOMES) < set(dir(adaface))
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        _ = adaface.Embeder


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-m", "evaluation", "pairs"], "python -m evaluation has become: python -m adaface evaluate"),
        (["-m", "alignment", "a", "b"], "python -m alignment has become: python -m adaface align"),
        (["export_onnx.py", "--checkpoint", "a"], "export_onnx.py has become: python -m adaface export"),
    ],
)
def test_a_command_of_earlier_versions_names_its_successor(words, line):
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"{line} (the options are the same)\n"
