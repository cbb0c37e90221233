import ast
import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from adaface.augmentation.more import MORE_AUGMENTATIONS
from adaface.config.options import ABOUT, GROUP_OF, GROUPS, OPTIONS, Config
from adaface.config.parsing import parse
from adaface.heads.margins import HEADS
from adaface.heads.names import MARGINS
from adaface.system.command_line import nearest

ROOT = Path(__file__).resolve().parents[2]

# names and defaults of the official options (weight_decay: the value that is really used there)
OFFICIAL = {
    "data_root": "", "train_data_path": "faces_emore/imgs", "val_data_path": "faces_emore", "use_mxrecord": False,
    "train_data_subset": False, "swap_color_channel": False, "prefix": "default",
    "distributed_backend": "ddp", "use_16bit": False, "epochs": 24, "seed": 42, "batch_size": 256, "lr": 0.1,
    "lr_milestones": (8, 12, 14), "lr_gamma": 0.1, "num_workers": 16, "fast_dev_run": False, "evaluate": False,
    "resume_from_checkpoint": "", "start_from_model_statedict": "", "use_wandb": False, "custom_num_class": -1,
    "arch": "ir_18", "momentum": 0.9, "weight_decay": 5e-4, "head": "adaface", "m": 0.5, "h": 0.0, "s": 64,
    "t_alpha": 0.01, "low_res_augmentation_prob": 0, "crop_augmentation_prob": 0, "photometric_augmentation_prob": 0,
    "accumulate_grad_batches": 1, "test_run": False, "save_all_models": False,
}  # fmt: skip


def test_official_options_keep_their_names_and_defaults():
    defaults = Config()
    assert {name: defaults[name] for name in OFFICIAL} == OFFICIAL
    assert defaults["gpus"] == -1, "official: 1, and no training without a GPU"


def test_the_papers_command_parses():
    words = """--data_root /data --train_data_path faces_emore/imgs --val_data_path faces_emore --train_data_subset
        --prefix run_ir18_ms1mv2_subset --gpus 2 --use_16bit --batch_size 512 --num_workers 16 --epochs 26
        --lr_milestones 12,20,24 --head adaface --m 0.4 --h 0.333 --low_res_augmentation_prob 0.2
        --crop_augmentation_prob 0.2 --photometric_augmentation_prob 0.2""".split()
    parsed, action = parse(words)
    assert action == "run"
    assert parsed["lr_milestones"] == (12, 20, 24)
    assert (parsed["gpus"], parsed["use_16bit"], parsed["train_data_subset"], parsed["h"]) == (2, True, True, 0.333)
    assert "lr" not in parsed.given
    assert "h" in parsed.given


def test_recipe_and_command_line_agree_and_the_command_line_wins(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 5e-4\nlr_milestones: [12, 20, 24]\nuse_16bit: true\nprefix: 7\n")
    from_recipe, _ = parse(["--config", str(recipe)])
    from_words, _ = parse("--lr 5e-4 --lr_milestones 12,20,24 --use_16bit --prefix 7".split())
    assert from_recipe == from_words
    assert from_recipe["lr"] == 5e-4
    assert parse(["--config", str(recipe), "--lr", "0.2", "--no-use_16bit"])[0]["lr"] == 0.2
    assert not parse(["--config", str(recipe), "--no-use_16bit"])[0]["use_16bit"]


def test_print_config_round_trips(tmp_path):
    parsed, action = parse("--print_config --lr 5e-4 --lr_milestones 1,2 --m 0.4".split())
    assert action == "print_config"
    assert parse(["--plan"])[1] == "plan"
    recipe = tmp_path / "printed.yaml"
    recipe.write_text(parsed.as_yaml())
    again, _ = parse(["--config", str(recipe)])
    assert again.as_dict() == parsed.as_dict()
    assert yaml.safe_load(parsed.as_yaml())["lr_milestones"] == [1, 2]


def test_whole_numbers_may_be_written_as_decimals(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("batch_size: 8.00\nepochs: 2.\nlr_milestones: [12.0, 20.]\n")
    config, _ = parse(["--config", str(recipe)])
    assert (config.optimizer.batch_size, config.optimizer.epochs) == (8, 2)
    assert config.optimizer.lr_milestones == (12, 20)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr_milestone 3", "did you mean --lr_milestones"),  # an abbreviation is an unknown option
        ("--bach_size 3", "did you mean --batch_size"),
        ("--qqqqq 3", "choose from: .*--data_root"),
        ("stray", "unexpected argument 'stray'"),
        ("--lr", "expected one argument"),
        ("--lr fast", "--lr takes a number, got 'fast'"),
        ("--epochs 1.5", "--epochs takes a whole number"),
        ("--gpus all", r"--gpus takes a whole number, got 'all' \(number of GPUs per machine; .*-1: all GPUs"),
        ("--lr_milestones a,b", "whole numbers such as 12,20,24"),
        ("--lr_milestones 8,3", "increasing epochs"),
        ("--head adafce", "did you mean adaface"),
        ("--accelerator tpu", "takes one of auto, cpu, gpu, mps"),
        ("--distributed_backend dp", "no longer exists"),
        ("--epochs 0", "--epochs must be at least 1"),
        ("--lr nan", "--lr must be at least 0"),
        ("--s 0", "--s must be above 0, got 0.0"),
        ("--t_alpha 2", "--t_alpha must be between 0 and 1, got 2.0"),
        ("--sample_rate 0", "--sample_rate must be above 0 and at most 1, got 0.0"),
        ("--sample_rate 1.1", "above 0 and at most 1, got 1.1"),
        ("--sample_rate nan", "above 0 and at most 1, got nan"),
        ("--sample_rate 0.5 --head_sharding off", "--sample_rate 0.5 contradicts --head_sharding off"),
        ("--head_sharding on --batch_statistics process", "process contradicts --head_sharding on"),
        ("--sample_rate 0.5 --batch_statistics process", "process contradicts --sample_rate 0.5"),
        ("--gradient_clip_val -1", "--gradient_clip_val must be at least 0"),
        ("--head_sharding maybe", "takes one of auto, on, off"),
        ("--crop_augmentation_prob 1.5", "--crop_augmentation_prob must be between 0 and 1, got 1.5"),
        ("--use_16bit --precision 64", "contradicts --precision 64"),
        ("--compile --gradient_checkpointing", "contradicts --gradient_checkpointing"),
        ("--gpus 2 --accelerator cpu", "contradicts --gpus 2"),
        ("--gpus 0 --accelerator gpu", "contradicts --gpus 0"),
        ("--gpus 2 --devices 3", "contradicts --devices 3"),
        ("--evaluate", "needs --start_from_model_statedict"),
        ("--lr_schedule linear", "takes one of multistep, cosine, poly"),
        ("--lr_schedule cosine --lr_milestones 3", "--lr_milestones requires --lr_schedule multistep, got .* cosine"),
        ("--lr_schedule poly --lr_gamma 0.2", "--lr_gamma requires --lr_schedule multistep"),
        ("--lr_power 1", "--lr_power requires --lr_schedule poly, got --lr_schedule multistep"),
        ("--lr_schedule poly --lr_power 0", "--lr_power must be above 0"),
        ("--optimizer adamw --lr 1e-3 --momentum 0.8", "--momentum requires --optimizer sgd"),
        ("--optimizer adamw", "needs an explicit --lr, such as 1e-3"),
        ("--epochs 4 --warmup_epochs 4", "--warmup_epochs 4 must be below --epochs 4"),
        ("--warmup_epochs -1", "--warmup_epochs must be at least 0"),
        ("--warmup_epochs nan", "--warmup_epochs must be at least 0"),
        ("--lr_base_batch_size -1", "--lr_base_batch_size must be at least 0"),
        ("--collective_timeout_sec 0", "--collective_timeout_sec must be above 0"),
        ("--collective_timeout_sec inf", "--collective_timeout_sec must be a finite number, got inf"),
        ("--momentum 1", "--momentum must be at least 0 and below 1, got 1.0"),
        ("--seed 4294967296", "--seed must be at least 0 and below 4294967296, got 4294967296"),
        ("--ema_decay 1", "--ema_decay must be at least 0 and below 1, got 1.0"),
        ("--lr inf", "--lr must be a finite number, got inf"),
        ("--h inf", "--h must be a finite number"),
        ("--lr_gamma -1", "--lr_gamma must be at least 0, got -1.0"),
        ("--lr_gamma nan", "--lr_gamma must be at least 0, got nan"),
        ("--head arcface --h 0.333", "--h is only used by adaface, got --head arcface, which uses --m: leave out --h"),
        ("--head magface --m 0.4", "--m is only used by adaface and arcface .*, got --head magface, .* --l_margin"),
        ("--u_a 120", "--u_a is only used by magface, got --head adaface, which uses --m, --h, --t_alpha"),
        ("--head arcface --t_alpha 0.1", "--t_alpha is only used by adaface and curricularface"),
        ("--head arcface --sub_centers 4", "--sub_centers is only used by subcenter_arcface"),
        ("--head magface --l_a 110", "must grow from --l_margin at --l_a .* got 0.45 at 110.0 and 0.8 at 110.0"),
        ("--head magface --u_margin 0.3", "must grow from .* got 0.45 at 10.0 and 0.3 at 110.0"),
        ("--head magface --l_a 0", "--l_a must be above 0"),
        ("--head subcenter_arcface --sub_centers 0", "--sub_centers must be between 1 and 255, got 0"),
        ("--head subcenter_arcface --sub_centers 256", "--sub_centers must be between 1 and 255, got 256"),
        ("--head combined --m1 0", "--m1 must be above 0"),
        ("--head combined --m3 -1", "--m3 must be at least 0"),
        ("--stalled_after_steps 5", "--stalled_after_steps must be 0 or at least 20, got 5"),
    ],
)
def test_wrong_options_are_refused_with_a_hint(words, message):
    with pytest.raises(ValueError, match=message):
        parse(words.split())


def test_contradicting_checkpoints_are_refused(tmp_path):
    file = tmp_path / "a.ckpt"
    both = ["--resume_from_checkpoint", str(file), "--start_from_model_statedict", str(file)]
    with pytest.raises(ValueError, match="give only one of them"):
        parse(both)
    with pytest.raises(ValueError, match="contradicts --resume_from_checkpoint"):
        parse([*both, "--evaluate"])
    with pytest.raises(ValueError, match="--evaluate contradicts --run_folder"):
        parse(["--evaluate", "--start_from_model_statedict", str(file), "--run_folder", str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1\n", "unknown option 'learning_rate'"),
        ("lr_milestone: 1\n", "did you mean lr_milestones"),
        ("use_16bit: maybe\n", "takes true or false"),
        ("- lr\n", "must contain `option: value` lines"),
        ("lr: [\n", "is not a valid YAML file"),
        ("prefix: [a]\n", "takes a string"),
        ("given: [lr]\n", "unknown option 'given'"),
        (f"lr: 1{'0' * 400}\n", "--lr takes a number"),
    ],
)
def test_wrong_recipes_are_refused_naming_the_file(tmp_path, text, message):
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        parse(["--config", str(recipe)])
    assert "wrong.yaml" in str(caught.value)


def test_a_missing_or_empty_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for word, right in (("ms1mv2_ir10.yaml", "ms1mv2_ir101"), ("demo_cpu.yml", "demo_cpu")):
        hint = f"there is no recipe recipes/{word}: did you mean recipes/{right}.yaml? give the path of a YAML file"
        with pytest.raises(FileNotFoundError, match=re.escape(hint)):
            parse(["--config", f"recipes/{word}"])
    with pytest.raises(FileNotFoundError, match=r"there is no recipe .*none\.yaml: give the path of a YAML file"):
        parse(["--config", str(tmp_path / "none.yaml")])
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert parse(["--config", str(empty)])[0].as_dict() == Config().as_dict()


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        parse(["--help", "all"])
    text = capsys.readouterr().out
    for name, option in OPTIONS.items():
        assert (f"--[no-]{name}" if option.type is bool else f"--{name}") in text
        assert len(ABOUT[name].help) > 10


def test_the_short_help_explains_what_everybody_needs_and_names_the_rest_in_groups(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    explained = re.findall(r"^  --(\w+) [A-Z]+", text, re.MULTILINE)
    assert explained == ["config", "data_root", "train_data_path", "val_data_path", "gpus"]
    assert all(re.search(rf"--{name}\b", text) for name in OPTIONS)
    assert len(text.splitlines()) < 60
    assert "--help all explains every option" in text
    assert "no-" not in text


@pytest.mark.parametrize("name", HEADS)
def test_every_margin_has_its_papers_options_and_a_line_of_help(name, capsys):
    parsed, _ = parse(["--head", name])
    assert list(parsed.head.margin_options) == list(HEADS[name].options)
    for option, value in parsed.head.margin_options.items():
        of_the_official_code = option in OFFICIAL
        assert value == (OFFICIAL[option] if of_the_official_code else HEADS[name].options[option])
    with pytest.raises(SystemExit):
        parse(["--help", "all"])
    lines = capsys.readouterr().out.splitlines()
    (place,) = [place for place, line in enumerate(lines) if line.startswith(f"  {name} (--")]
    assert all(f"--{option}" in lines[place] for option in HEADS[name].options)
    assert lines[place + 1].strip() == MARGINS[name].text


def test_a_recipe_with_every_option_may_name_any_margin(tmp_path):
    recipe = tmp_path / "all.yaml"
    for name in HEADS:
        recipe.write_text(parse(["--head", name])[0].as_yaml())
        assert parse(["--config", str(recipe)])[0].head.head == name
    recipe.write_text("head: cosface\nh: 0.333\n")
    with pytest.raises(ValueError, match="--h is only used by adaface"):
        parse(["--config", str(recipe)])


def test_every_option_is_read_by_something():
    """As an attribute of its group, somewhere in the program; margins and augmentations read theirs by name."""
    read = {f"{name}_augmentation_prob" for name in MORE_AUGMENTATIONS}
    read |= {name for margin in HEADS.values() for name in margin.options}
    assert read <= set(OPTIONS)
    for file in (ROOT / "adaface").rglob("*.py"):
        if file.relative_to(ROOT / "adaface").as_posix() not in (
            "config/options.py",
            "config/rules.py",
            "config/parsing.py",
        ):
            read |= {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
    assert set(OPTIONS) <= read, f"no one reads {set(OPTIONS) - read}"


def test_every_option_is_of_one_group_and_of_one_kind():
    assert len(OPTIONS) == sum(len(dataclasses.fields(group)) for group in GROUPS.values())
    for name, about in ABOUT.items():
        assert about.only_with is None or about.only_with[1] in ABOUT[about.only_with[0]].choices
        assert about.off is None or not about.minimum <= about.off, "0 would not switch it off"
        assert GROUP_OF[name] in GROUPS


def test_nearest_names_the_closest_or_all():
    assert nearest("ir_51", ["ir_50", "vit"]) == "did you mean ir_50?"
    assert nearest("VIT_", ["ir_50", "ViT"]) == "did you mean ViT?"
    assert nearest("zzz", ["ir_50", "vit"]) == "choose from: ir_50, vit"
    assert nearest("ir_5x", ["vit", "ir_50", "ir_5"], count=2) == "did you mean ir_5 or ir_50?"
    assert nearest("ir_51", ["ir_50", "vit"], always="see --help") == "did you mean ir_50? see --help"
    assert nearest("zzz", ["ir_50", "vit"], always="see --help") == "see --help"
