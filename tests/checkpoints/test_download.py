import sys
import types
from pathlib import Path

import pytest
import torch

from adaface.checkpoints.download import find_model
from adaface.checkpoints.published import PUBLISHED, check_available, locate, models_folder, published_by_name
from adaface.checkpoints.weights import expected_shapes
from adaface.models import registry
from adaface.system import lightning_setup  # noqa: F401  (Lightning is imported safely by it)
from tests.support.checkpoint_files import Payload

NAME, ARCH = "adaface_ir18_casia", "ir_18"


def weights_of(arch: str) -> dict[str, torch.Tensor]:
    return {f"model.{key}": torch.zeros(shape) for key, shape in expected_shapes(arch).items()}


def write_official(path: Path, arch: str = ARCH, **more) -> Path:
    """A file as the official code wrote it: the head beside the backbone, and objects of an old Lightning."""
    from pytorch_lightning.callbacks import model_checkpoint
    from pytorch_lightning.utilities import parsing

    path.parent.mkdir(parents=True, exist_ok=True)
    official = {
        "state_dict": {**weights_of(arch), "head.kernel": torch.zeros(512, 10)},
        "hyper_parameters": parsing.AttributeDict(arch=arch, lr=0.1),
        "callbacks": {model_checkpoint.ModelCheckpoint: {"best_model_score": torch.tensor(0.9)}},
        "epoch": 25,
    }
    torch.save({**official, **more}, path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAFACE_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def drive(monkeypatch):
    """Google Drive, as gdown hands it out: `drive.content` writes what a download brings."""
    program = types.ModuleType("gdown")
    program.asked = []
    program.content = write_official

    def download(*, id, output, quiet):
        program.asked.append(id)
        program.content(Path(output))
        return output

    program.download = download
    monkeypatch.setitem(sys.modules, "gdown", program)
    return program


def test_the_folder_is_that_of_the_variable_or_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("ADAFACE_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".cache" / "adaface" / "models"
    monkeypatch.setenv("ADAFACE_MODELS", str(tmp_path / "x"))
    assert models_folder() == tmp_path / "x"


def test_a_file_in_place_of_a_name_is_told_with_the_option_for_it(tmp_path):
    file = tmp_path / "best.ckpt"
    file.touch()
    with pytest.raises(ValueError, match=r"best\.ckpt is a file, not the name of .*: give --checkpoint .*best\.ckpt"):
        published_by_name(str(file))


def test_whether_a_model_can_be_had_is_told_without_a_download(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)  # as if it were not installed
    told = f"adaface_ir18_casia is not on this machine, .*: pip install gdown; or download it .* {folder}/"
    with pytest.raises(RuntimeError, match=told):
        check_available("adaface_ir18_casia")
    with pytest.raises(ValueError, match="there is no published model 'adaface_ir18_caisa'; did you mean"):
        check_available("adaface_ir18_caisa")
    folder.mkdir(exist_ok=True)
    (folder / "adaface_ir18_casia.ckpt").touch()
    assert check_available("adaface_ir18_casia").path == folder / "adaface_ir18_casia.ckpt"
    monkeypatch.setitem(sys.modules, "gdown", sys)
    assert check_available("adaface_ir50_casia").arch == "ir_50"


def test_every_published_model_has_a_file_of_its_own():
    assert len(PUBLISHED) == len({model.drive_id for model in PUBLISHED}) == len({model.stem for model in PUBLISHED})
    assert all(len(model.drive_id) == 33 and model.arch in registry.ARCHITECTURES for model in PUBLISHED)
    assert published_by_name("AdaFace_IR101_WebFace12M.ckpt").drive_id == "1dswnavflETcnAuplZj1IOKKP0eM8ITgT"


def test_an_official_file_with_lightning_objects_is_found_by_name(folder):
    path = write_official(folder / f"{NAME}.ckpt")
    assert find_model(NAME) == path
    assert list(folder.iterdir()) == [path]


def test_an_absent_file_is_downloaded_checked_and_kept(folder, drive):
    path = find_model(NAME)
    assert path == folder / f"{NAME}.ckpt"
    assert drive.asked == [published_by_name(NAME).drive_id]
    assert list(folder.iterdir()) == [path]  # nothing temporary is left
    assert find_model(NAME) == path
    assert len(drive.asked) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: path.write_text("<html>too many users have viewed this file</html>"), "49 bytes, the weights of"),
        (lambda path: write_official(path, "ir_50"), "it holds weights of ir_50"),
        (lambda path: None, "no file arrived"),
        (lambda path: (_ for _ in ()).throw(ConnectionError("no route to host")), "no route to host"),
    ],
    ids=["html", "other", "nothing", "offline"],
)
def test_what_is_not_the_model_is_not_kept(folder, drive, content, message):
    drive.content = content
    with pytest.raises(RuntimeError, match=message) as caught:
        find_model(NAME)
    assert f"save it as {folder / NAME}.ckpt" in str(caught.value)
    assert "https://drive.google.com/file/d/1BURBDplf2bXpmwOL1WVzqtaVmQl9NpPe" in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("identities", "other"), [(205_990, "WebFace4M"), (9_131, "VGGFace2"), (10_572, None)])
def test_a_model_of_another_training_set_under_this_name_is_refused(folder, identities, other):
    head = torch.zeros(1, identities)  # only the number of columns matters
    path = write_official(folder / f"{NAME}.ckpt", state_dict={**weights_of(ARCH), "head.kernel": head})
    if other is None:
        assert find_model(NAME) == path
        return
    with pytest.raises(
        ValueError, match=rf"its head has {identities:,} identities, as many as {other}; CASIA-.* 10,572"
    ):
        find_model(NAME)


def test_a_tampered_file_is_refused_and_nothing_runs(folder, drive, tmp_path):
    proof = tmp_path / "executed"
    drive.content = lambda path: write_official(path, callbacks=Payload(proof))
    with pytest.raises(RuntimeError, match=r"was discarded: .* is refused: it holds more than tensors"):
        find_model(NAME)
    path = write_official(folder / f"{NAME}.ckpt", callbacks=Payload(proof))
    with pytest.raises(ValueError, match="Nothing in it was executed"):
        find_model(NAME)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the payload does work where nothing protects
    assert proof.exists()


def test_without_the_program_that_downloads_the_file_is_named(folder, monkeypatch):
    for package, name in (("gdown", NAME), ("huggingface_hub", "hf:someone/faces/model.ckpt")):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
        with pytest.raises(RuntimeError, match=f"pip install {package}; or download it from https://") as caught:
            find_model(name)
        assert f"save it as {locate(name).path}" in str(caught.value)


def test_unknown_names(folder):
    with pytest.raises(ValueError, match="did you mean adaface_ir101_webface12m") as caught:
        find_model("adaface_ir101_webface12")
    assert all(model.stem in str(caught.value) for model in PUBLISHED)
    for name in ("hf:x", "hf:a/b", "hf:a/b/../../c.ckpt", "hf:a/b/c.pkl", "hf:../b/c.ckpt"):
        with pytest.raises(ValueError, match=r"expected hf:<owner>/<repository>/<file>\.ckpt"):
            find_model(name)


def test_missing_and_extra_keys_are_listed(folder):
    weights = weights_of(ARCH)
    del weights["model.input_layer.0.weight"]
    write_official(folder / f"{NAME}.ckpt", state_dict={**weights, "model.more.weight": torch.zeros(2000)})
    message = r"a model of ir_18: 1 entries missing \(input_layer\.0\.weight\), 1 entries unexpected \(more\.weight\)"
    with pytest.raises(ValueError, match=message):
        find_model(NAME)


def test_a_folder_in_the_files_place(folder):
    (folder / f"{NAME}.ckpt").mkdir(parents=True)
    with pytest.raises(ValueError, match="is a folder, expected the file of"):
        find_model(NAME)


def test_a_file_of_the_hub(folder, monkeypatch):
    hub = types.ModuleType("huggingface_hub")
    asked = []

    def hf_hub_download(repository, file, *, local_dir):
        asked.append((repository, file))
        return str(write_official(Path(local_dir) / file, "ir_mini"))

    hub.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    path = find_model("hf:someone/faces/deep/model.ckpt")
    assert path == folder / "hf" / "someone" / "faces" / "deep" / "model.ckpt"
    assert asked == [("someone/faces", "deep/model.ckpt")]
    with pytest.raises(RuntimeError, match=r"was discarded: .* bytes, the weights of ir_50 alone take"):
        find_model("hf:someone/faces/adaface_ir50_ms1mv2.ckpt")  # a name of the table tells the architecture
    assert locate("hf:someone/faces/adaface_ir50_ms1mv2.ckpt").arch == "ir_50"
    weights = {f"model.net.{key.removeprefix('model.')}": value for key, value in weights_of("ir_mini").items()}
    write_official(folder / "hf" / "someone" / "faces" / "net.ckpt", state_dict=weights)
    assert find_model("hf:someone/faces/net.ckpt").name == "net.ckpt"  # the color order is asked for when it is loaded
