import shutil
import subprocess

import pytest

from adaface.commands import COMMANDS, completion
from adaface.models.names import ARCHITECTURE_NAMES


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> str:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", parts.append)
        assert completion.main(["bash"]) == 0
    return "".join(parts)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], {"train"}),
        ([""], set(COMMANDS)),
        (["train", "--val_e"], {"--val_every_epochs"}),
        (["train", "--no-use_1"], {"--no-use_16bit"}),
        (["train", "--lr_schedule", ""], {"multistep", "cosine", "poly"}),
        (["compare", "--arch", ""], set(ARCHITECTURE_NAMES)),
        (["evaluate", "ij"], {"ijbb", "ijbc"}),
        (["train", "--finetune", "adaface_ir18_w"], {"adaface_ir18_webface4m", "adaface_ir18_web.ckpt"}),
        (["evaluate", "pairs", "--qu"], {"--quality"}),
        (["evaluate", "ijbc", "--qu"], set()),
    ],
)
def test_bash_completes_commands_options_and_choices(script, words, expected, tmp_path):
    (tmp_path / "adaface_ir18_web.ckpt").touch()
    program = f"""{script}
COMP_WORDS=(adaface {" ".join(word or "''" for word in words)}); COMP_CWORD={len(words)}
_shtab_adaface
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) - {"-h", "--help"} == expected, done.stderr


def test_other_shells_and_words(capsys):
    assert completion.main(["zsh"]) == 0
    assert "#compdef adaface" in capsys.readouterr().out
    assert completion.main(["fish"]) == 2
    assert "invalid choice: 'fish'" in capsys.readouterr().err
