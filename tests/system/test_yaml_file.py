import pytest

from adaface.config.parsing import read_recipe
from adaface.system.yaml_file import read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)
)


def written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 1: aliases and anchors"),
        ("lr: 0.1\nepochs: 3\nlr: 0.2\n", "line 3: the key 'lr' occurs twice"),
        ("a:\n  b: 1\n  b: 2\n", "line 3: the key 'b' occurs twice"),
        ('lr: !!bool "x"\n', "line 1: the tag tag:yaml.org,2002:bool is not allowed"),
        ('lr: !!timestamp "x"\n', "the tag tag:yaml.org,2002:timestamp is not allowed"),
        ("lr: !!python/object/apply:os.system [ls]\n", "is not allowed"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "nested more than 10 levels"),
        ("a: " + "{a: " * 20 + "1" + "}" * 20 + "\n", "nested more than 10 levels"),
        ("? [a, b]\n: 1\n", "occurs twice, or is no plain value"),
        ("? {a: 1}\n: 1\n", "occurs twice, or is no plain value"),
        ("lr: [1\n", "is not a valid YAML file"),
        ("lr: 0.1\n\tx: 2\n", "is not a valid YAML file"),
        ("lr: " + "9" * 5000 + "\n", "is not a valid YAML file"),
        ("a: 1\n" * 25_000, "more than 100,000 bytes"),
        ("<<: {a: 1}\n<<: {b: 2}\n", "the key '<<' occurs twice"),
        ("\x00", "is not a valid YAML file"),
    ],
)
def test_what_a_recipe_does_not_need_is_refused(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path} is not a valid YAML file: ")
    assert "\n" not in str(caught.value)


def test_no_number_is_read_as_another(tmp_path):
    """YAML 1.1 reads 010 as 8, and 1:30 as 90."""
    path = written(tmp_path, "epochs: 010\nprefix: 0123\nseed: 0x10\nbatch_size: 1_000\n")
    assert read_recipe(path) == {"epochs": 10, "prefix": "0123", "seed": 16, "batch_size": 1000}
    for text, message in (
        ("seed: 1:30\n", "--seed takes a whole number, got '1:30'"),
        ("<<: {a: 1}\n", "unknown option '<<'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_recipe(written(tmp_path, text))


def test_names_that_yaml_takes_for_something_else(tmp_path):
    text = "head_sharding: on\ngradient_compression: off\nprefix: no\ntrain_data_path: 2024_01\nval_sets: 1.50\n"
    assert read_recipe(written(tmp_path, text)) == {
        "head_sharding": "on",
        "gradient_compression": "off",
        "prefix": "no",
        "train_data_path": "2024_01",
        "val_sets": "1.50",
    }
    numbers = "use_16bit: on\nsave_all_models: no\nlr: 1.50\nh: .5\nbatch_size: 8.0\nmomentum: 9.0e-1\n"
    assert read_recipe(written(tmp_path, numbers)) == {
        "use_16bit": True, "save_all_models": False, "lr": 1.5, "h": 0.5, "batch_size": 8, "momentum": 0.9,
    }  # fmt: skip
    with pytest.raises(ValueError, match="--prefix takes a string, got True"):
        read_recipe(written(tmp_path, "prefix: true\n"))


def test_dates_are_texts_and_bytes_that_are_no_text_are_named(tmp_path):
    assert read_yaml(written(tmp_path, "a: 2026-13-45\nb: 2026-01-02\n")) == {"a": "2026-13-45", "b": "2026-01-02"}
    (tmp_path / "recipe.yaml").write_bytes(b"lr: \xff\xfe")
    with pytest.raises(ValueError, match="is not a valid YAML file"):
        read_yaml(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("prefix", ["", "\ufeff", "# comment\n", "---\n"])
def test_ordinary_recipes_are_read(tmp_path, prefix):
    path = written(
        tmp_path, f"{prefix}lr: 0.2\nlr_milestones: [12, 20]\nhead: adaface\ndata_root: ~/faces\n".replace("\n", "\r\n")
    )
    values = read_recipe(path)
    assert (values["lr"], list(values["lr_milestones"]), values["head"]) == (0.2, [12, 20], "adaface")
    assert values["data_root"].endswith("/faces")
    assert "~" not in values["data_root"]
    assert read_yaml(written(tmp_path, "")) is None


def test_the_home_folder_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    values = read_recipe(written(tmp_path, "data_root: ~\ntrain_data_path: ~/a,/b,~/c\nprefix: null\n"))
    assert values == {"data_root": "/home/ada", "train_data_path": "/home/ada/a,/b,/home/ada/c", "prefix": ""}
    assert read_recipe(written(tmp_path, "finetune: ~\nlr_milestones: ~\n")) == {"finetune": "", "lr_milestones": ()}
