import argparse
import contextlib
import copy
import errno
import io
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from adaface.checkpoints.files import store_threshold
from adaface.commands import export
from adaface.commands.export import int8_file, main, parse
from adaface.config.choices import FEWEST_IMAGES
from adaface.demo.dataset import write_demo_data
from adaface.export.graph import set_metadata, to_onnx
from adaface.export.int8 import quantize
from adaface.export.network import CHECKSUM, ONNX_METADATA, load_network
from adaface.export.parity import compare_networks, compare_with_pytorch
from adaface.inference.embedder import Embedder
from adaface.inference.sample_images import drawn_faces, read_pair_set, read_sample
from adaface.metrics.results import evaluate_set
from adaface.models.input_format import InputFormat
from adaface.models.iresnet import ImprovedResNet
from adaface.models.registry import ARCHITECTURES, build_model
from tests.support.golden_fill import fill_state_dict
from tests.support.small_networks import TINY

THRESHOLD = {"cosine": 0.3, "far": 0.001}
OF_TIMM = [
    "timm:resnet18@112",
    "timm:vit_tiny_patch16_224@112",
    "timm:convnext_atto@112",
    "timm:swin_tiny_patch4_window7_224",
]


def write_checkpoint(path: Path, arch: str = "ir_mini", **ours) -> Path:
    weights = fill_state_dict(build_model(arch).state_dict())
    state = {f"model.{key}": value for key, value in weights.items()}
    torch.save({"state_dict": state} | ({"adaface": ours} if ours else {}), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with model.ckpt and its exports model.onnx and model_int8.onnx, made by the command."""
    folder = tmp_path_factory.mktemp("export")
    write_checkpoint(folder / "model.ckpt")
    store_threshold(folder / "model.ckpt", THRESHOLD)
    write_demo_data(folder / "faces", identities=2, images_per_identity=1, pairs=20, seed=1)
    words = ["--checkpoint", "model.ckpt", "--output", "model.onnx", "--int8", "--calibration_images", "faces/lfw.bin"]
    words += ["--test_set", "faces/lfw.bin", "--most_accuracy_loss", "100"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        assert main(words) == 0
    (folder / "said.txt").write_text(said.getvalue())
    return folder


@pytest.fixture
def exported_before(files, monkeypatch) -> None:
    """Spares the seconds of an export: the weights of all checkpoints here are the same."""
    monkeypatch.setattr(export, "to_onnx", lambda model: onnx.load(files / "model.onnx"))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b).sum(axis=1)


def images_in(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number, image in enumerate(drawn_faces(count)):
        cv2.imwrite(str(folder / f"{number:03}.png"), image)
    return folder


# --- what is exported -------------------------------------------------------------------------------------------


def test_the_embedder_gives_the_same_from_both_files(files):
    faces = drawn_faces(9)
    embeddings, norms = Embedder.load(files / "model.ckpt").embed(faces)
    exported = Embedder.load(files / "model.onnx")
    found, found_norms = exported.embed(faces, batch_size=4)
    assert cosines(embeddings, found).min() > 0.99999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found_norms, norms, rtol=1e-4)
    mirrored = exported.embed(np.ascontiguousarray(faces[:, :, ::-1]))
    assert cosines(found, mirrored[0]).min() > 0.99999  # an image and its mirror are fused
    np.testing.assert_allclose(mirrored[1], found_norms, rtol=1e-4)
    single, single_norm = exported.embed(faces[:1])
    np.testing.assert_allclose(single, found[:1], atol=1e-5)
    assert single_norm.shape == (1, 1)
    assert exported.embed(faces[:0])[0].shape == (0, 512)


def test_the_graph_is_what_other_programs_expect(files):
    graph = onnx.load(files / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)

    def shape(value):
        return value.name, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert [shape(value) for value in graph.graph.input] == [("images", ["batch", 3, 112, 112])]
    assert [shape(value) for value in graph.graph.output] == [("embedding", ["batch", 512]), ("norm", ["batch", 1])]
    assert all(v.type.tensor_type.elem_type == TensorProto.FLOAT for v in (*graph.graph.input, *graph.graph.output))
    assert {(domain.domain, domain.version) for domain in graph.opset_import} == {("", 18)}
    assert graph.ir_version == 8
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}


def test_the_graph_does_not_tell_where_it_was_made(files):
    content = (files / "model.onnx").read_bytes()
    for word in (str(Path(export.__file__).parent), "site-packages", "models/iresnet.py"):
        assert word.encode() not in content


def test_the_metadata_say_what_the_checkpoint_does(files):
    embedder = Embedder.load(files / "model.ckpt")
    for name, precision in (("model.onnx", "fp32"), ("model_int8.onnx", "int8")):
        told = {entry.key: entry.value for entry in onnx.load(files / name).metadata_props}
        assert list(told) == [ONNX_METADATA]
        metadata = json.loads(told[ONNX_METADATA])
        assert {key: metadata[key] for key in ("arch", "color", "size", "mean", "std", "precision")} == {
            "arch": "ir_mini", "color": "BGR", "size": [112, 112], "mean": 127.5, "std": 127.5, "precision": precision
        }  # fmt: skip
        assert metadata["template"][0] == [38.2946, 51.6963]
        assert len(metadata["template"]) == 5
        assert metadata["checkpoint"] == embedder.fingerprint
        assert "commit" in metadata
        exported = Embedder.load(files / name)
        assert exported.threshold == embedder.threshold == THRESHOLD
        assert exported.arch == "ir_mini"
        assert exported.fingerprint != embedder.fingerprint


def test_a_red_image_stays_red(exported_before, tmp_path):
    """A network that wants RGB gets it, from the export as from the checkpoint."""
    write_checkpoint(tmp_path / "rgb.ckpt", input={"color": "RGB"})
    write_checkpoint(tmp_path / "bgr.ckpt")
    assert main(["--checkpoint", str(tmp_path / "rgb.ckpt"), "--output", str(tmp_path / "rgb.onnx")]) == 0
    red = np.zeros((1, 112, 112, 3), np.uint8)
    red[..., 2] = np.arange(112) * 2
    rgb, exported, bgr = (Embedder.load(tmp_path / name).embed(red)[0] for name in ("rgb.ckpt", "rgb.onnx", "bgr.ckpt"))
    assert cosines(rgb, exported)[0] > 0.99999
    assert cosines(rgb, bgr)[0] < 0.999


def test_mean_and_std_are_the_models_own(exported_before, tmp_path):
    write_checkpoint(tmp_path / "dark.ckpt", input={"mean": 60.0, "std": 90.0})
    write_checkpoint(tmp_path / "usual.ckpt")
    assert main(["--checkpoint", str(tmp_path / "dark.ckpt"), "--output", str(tmp_path / "dark.onnx")]) == 0
    faces = drawn_faces(3)
    dark, exported, usual = (
        Embedder.load(tmp_path / name).embed(faces)[0] for name in ("dark.ckpt", "dark.onnx", "usual.ckpt")
    )
    assert cosines(dark, exported).min() > 0.99999
    assert cosines(dark, usual).min() < 0.999


def check_export(model, path):
    model.load_state_dict(fill_state_dict(model.state_dict()))
    graph = to_onnx(model.eval())
    set_metadata(graph, {"arch": "any"})
    onnx.save(graph, path)
    exported, faces = load_network(path)[0], drawn_faces(9)
    compare_with_pytorch(model, exported, faces, InputFormat()).check()
    exact = copy.deepcopy(model).double()  # in single precision, PyTorch rounds as much as the export
    parity = compare_with_pytorch(lambda images: exact(images.double()), exported, faces, InputFormat())
    assert parity.least_cosine > 0.999999
    assert parity.batch_sizes == (1, 8)


@pytest.mark.parametrize("name", TINY)
def test_every_kind_of_block_computes_what_pytorch_does(name, tmp_path):
    check_export(ImprovedResNet(TINY[name]), tmp_path / "model.onnx")


@pytest.mark.parametrize("arch", ["mobilefacenet", "timm:test_vit@64", "timm:test_resnet@160"])
def test_other_backbones_are_exported_and_quantised(arch, tmp_path):
    model = build_model(arch)
    check_export(model, tmp_path / "model.onnx")
    reference = load_network(tmp_path / "model.onnx")[0]
    integers = quantize(onnx.load(tmp_path / "model.onnx"), drawn_faces(FEWEST_IMAGES), reference)
    set_metadata(integers, {"arch": arch})
    onnx.save(integers, tmp_path / "int8.onnx")
    parity = compare_networks(reference, load_network(tmp_path / "int8.onnx")[0], drawn_faces(9))
    assert 0.95 < parity.mean_cosine < 0.99999


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*ARCHITECTURES, *OF_TIMM])
def test_every_architecture_computes_what_pytorch_does(arch, tmp_path):
    check_export(build_model(arch), tmp_path / "model.onnx")


# --- INT8 -------------------------------------------------------------------------------------------------------


def test_int8_is_smaller_and_near(files):
    single, integers = files / "model.onnx", int8_file(files / "model.onnx")
    assert integers.name == "model_int8.onnx"
    assert integers.stat().st_size < 0.3 * single.stat().st_size
    faces = drawn_faces(16)
    embeddings, norms = Embedder.load(single).embed(faces)
    found, found_norms = Embedder.load(integers).embed(faces)
    assert 0.98 < cosines(embeddings, found).min() < 0.99999
    np.testing.assert_allclose(found_norms, norms, rtol=0.1)


def test_weights_are_signed_activations_unsigned_and_only_what_pays_is_quantised(files):
    graph = onnx.load(files / "model_int8.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert nodes
    assert {types[node.input[2]] for node in nodes} == {TensorProto.UINT8}
    weights = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1]
    assert len(weights) == sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in graph.node)
    assert all(np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() <= 64 for tensor in weights)  # 7 bits


def test_the_command_says_what_it_found(files):
    said = (files / "said.txt").read_text().splitlines()
    assert said[0].startswith("model.onnx: 22.0 MB")
    assert said[1].startswith("  against PyTorch, synthetic faces, 32 images in batches of 1 and 8: cosine 1.00000")
    assert said[2] == "calibrating on 40 images ..."
    assert said[3].startswith("model_int8.onnx: 5.6 MB")
    assert said[4].startswith("  against model.onnx, 32 images")
    assert re.fullmatch(
        r"  accuracy on lfw, 20 pairs: FP32 \d+\.\d\d %, INT8 \d+\.\d\d % \([+-]\d+\.\d\d points\)", said[5]
    )
    pairs = read_pair_set(str(files / "faces" / "lfw.bin"))
    for precision, file in (("FP32", "model.onnx"), ("INT8", "model_int8.onnx")):
        embeddings, _ = Embedder.load(files / file).embed(np.stack(pairs.images))  # as evaluate: with mirror images
        assert f"{precision} {evaluate_set('lfw', embeddings, pairs.issame).accuracy:.2f} %" in said[5]


def test_int8_that_loses_too_much_accuracy_is_refused(exported_before, files, tmp_path, capsys, monkeypatch):
    lfw = str(files / "faces" / "lfw.bin")
    words = ["--checkpoint", str(files / "model.ckpt"), "--output", str(tmp_path / "model.onnx"), "--int8"]
    words += ["--calibration_images", lfw, "--test_set", lfw, "--most_accuracy_loss", "1.4"]
    accuracies = iter([90.0, 88.5])
    monkeypatch.setattr(export, "evaluate_set", lambda *_: argparse.Namespace(accuracy=next(accuracies)))
    monkeypatch.setattr(export, "quantize", lambda *_: onnx.load(files / "model_int8.onnx"))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "accuracy on lfw, 20 pairs: FP32 90.00 %, INT8 88.50 % (-1.50 points); the maximum loss is 1.4" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_int8_that_is_far_from_fp32_is_refused(exported_before, files, tmp_path, capsys, monkeypatch):
    def broken(*_):
        graph = onnx.load(files / "model_int8.onnx")
        scales = next(t for t in graph.graph.initializer if t.name.startswith("images") and t.name.endswith("scale"))
        scales.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scales) / 50, scales.name))
        return graph

    monkeypatch.setattr(export, "quantize", broken)
    words = ["--checkpoint", str(files / "model.ckpt"), "--output", str(tmp_path / "model.onnx"), "--int8"]
    assert main([*words, "--calibration_images", str(files / "faces" / "lfw.bin")]) == 2
    assert "INT8 differs too much from FP32" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_too_few_images_to_calibrate_on_are_refused(files, tmp_path, capsys):
    images = images_in(tmp_path / "images", FEWEST_IMAGES - 1)
    output = tmp_path / "model.onnx"
    words = ["--checkpoint", str(files / "model.ckpt"), "--output", str(output), "--int8"]
    assert main([*words, "--calibration_images", str(images)]) == 2
    assert f"{FEWEST_IMAGES - 1} calibration images" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    network = load_network(files / "model.onnx")[0]
    with pytest.raises(ValueError, match="3 calibration images, expected at least"):
        quantize(onnx.load(files / "model.onnx"), drawn_faces(3), network)


# --- refused ----------------------------------------------------------------------------------------------------


def test_an_export_that_computes_something_else_leaves_no_file(files, tmp_path, capsys, monkeypatch):
    def perturbed(_):
        graph = onnx.load(files / "model.onnx")
        largest = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(largest).copy()
        values[0, :200] += 10
        largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
        return graph

    monkeypatch.setattr(export, "to_onnx", perturbed)
    (tmp_path / "model.onnx").write_bytes(b"what was there before")
    words = ["--checkpoint", str(files / "model.ckpt"), "--output", str(tmp_path / "model.onnx"), "--overwrite"]
    assert main(words) == 2
    assert "the outputs of the export differ from PyTorch" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"what was there before"


@pytest.mark.parametrize("name", ["model.onnx", "model_int8.onnx"])
def test_a_file_that_another_process_has_completed_meanwhile_is_kept(name, files, tmp_path, capsys, monkeypatch):
    of_other = tmp_path / name

    def slowly(made):
        if made == name:
            of_other.write_bytes(b"another's")
        return onnx.load(files / made)

    monkeypatch.setattr(export, "to_onnx", lambda *_: slowly("model.onnx"))
    monkeypatch.setattr(export, "quantize", lambda *_: slowly("model_int8.onnx"))
    words = ["--checkpoint", str(files / "model.ckpt"), "--output", str(tmp_path / "model.onnx"), "--int8"]
    words += ["--calibration_images", str(files / "faces" / "lfw.bin")]
    assert main(words) == 2
    assert f"{of_other} exists; use --overwrite to replace it, or another --output" in capsys.readouterr().err
    assert of_other.read_bytes() == b"another's"


def test_an_export_that_was_killed_before_the_int8_file_is_started_again(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "to_onnx", lambda _: onnx.load(files / "model.onnx"))
    monkeypatch.setattr(export, "quantize", lambda *_: onnx.load(files / "model_int8.onnx"))
    output = tmp_path / "model.onnx"
    words = ["--checkpoint", str(files / "model.ckpt"), "--output", str(output)]
    to_int8 = [*words, "--int8", "--calibration_images", str(files / "faces" / "lfw.bin")]
    assert main(words) == 0
    before = output.stat()
    capsys.readouterr()
    assert main(to_int8) == 0
    first, *_, last = capsys.readouterr().out.split("\n  against ")
    assert first == f"{output} is complete"
    assert last.startswith(f"{output.name}, ")
    assert (output.stat().st_mtime_ns, output.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert (tmp_path / "model_int8.onnx").is_file()
    assert main(to_int8) == 2
    assert f"{output} exists; give --overwrite" in capsys.readouterr().err

    (tmp_path / "model_int8.onnx").unlink()
    output.write_bytes(b"another model")
    assert main(to_int8) == 2
    assert f"{output} exists; use --overwrite to replace it" in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.onnx", b"another model")]


def test_weights_that_are_not_finite_are_refused(exported_before, tmp_path, capsys):
    path = write_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["model.input_layer.0.weight"][0] = float("nan")
    torch.save(checkpoint, path)
    assert main(["--checkpoint", str(path), "--output", str(tmp_path / "model.onnx")]) == 2
    assert "not finite" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["model.ckpt"]


def test_a_full_disk_leaves_what_was_there(exported_before, files, tmp_path, capsys, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"before")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("adaface.system.files.os.fsync", full)
    words = ["--checkpoint", str(files / "model.ckpt"), "--output", str(tmp_path / "model.onnx"), "--overwrite"]
    assert main(words) == 2
    assert "no space left on the disk" in capsys.readouterr().err
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.onnx", b"before")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: --checkpoint, --output"),
        (["--output", "x.onnx", "--int8"], "--int8 needs --calibration_images"),
        (["--output", "x.onnx", "--calibration_images", "."], "no effect without --int8"),
        (["--output", "x.onnx", "--test_set", "x.bin"], "no effect without --int8"),
        (["--output", "x.onnx", "--most_accuracy_loss", "1"], "no effect without --test_set"),
        (
            [
                "--output",
                "x.onnx",
                "--int8",
                "--calibration_images",
                ".",
                "--test_set",
                "x",
                "--most_accuracy_loss=nan",
            ],
            "must be between 0 and 100 percentage points",
        ),
        (["--output", "x.onnx", "--arch", "ir_51"], "did you mean ir_50?"),
        (["--output", "x.onnx", "--verify_image", "."], "did you mean --verify_images?"),
        (["--output", "x.pt"], "must end in .onnx"),
        (["--output", "absent/x.onnx"], "there is no folder absent"),
        (["--output", "folder.onnx"], "folder.onnx is a folder"),
        (["--output", "there.onnx"], "there.onnx exists; give --overwrite"),
        (["--output", "x.onnx", "--verify_images", "absent"], "--verify_images: there is no absent"),
        (["--output", "x.onnx", "--verify_images", "empty"], "no images in empty"),
        (["--output", "x.onnx", "--verify_images", "wrong"], "expected an aligned face of 112x112"),
        (["--output", "x.onnx", "--verify_images", "model.ckpt"], "not a .bin file"),
        (
            ["--output", "x.onnx", "--int8", "--calibration_images", "drawn", "--test_set", "drawn"],
            "drawn is a folder, expected the .bin",
        ),
        (["--output", "x.onnx", "--arch", "ir_18"], "holds weights of ir_mini"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_one_line(words, message, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(files / "model.ckpt", tmp_path)
    for folder in ("folder.onnx", "empty", "wrong", "drawn"):
        (tmp_path / folder).mkdir()
    cv2.imwrite("wrong/a.png", np.zeros((100, 112, 3), np.uint8))
    for number, image in enumerate(drawn_faces(FEWEST_IMAGES)):
        cv2.imwrite(f"drawn/{number}.png", image)
    (tmp_path / "there.onnx").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    assert main(["--checkpoint", "model.ckpt", *words] if words else []) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"head.kernel": torch.zeros(2, 2)}}, "no `model.*` weights"),
        ({"state_dict": {"model.x": torch.zeros(2, 2)}}, "weights of an unknown architecture"),
        ({"weights": {}}, "not a training checkpoint"),
        (b"text", "is damaged or not a checkpoint"),
        (None, "there is no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "model.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert main(["--checkpoint", str(path), "--output", str(tmp_path / "model.onnx")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()


def foreign_graph(path: Path, metadata: str | None) -> Path:
    """A valid ONNX file that is not ours: doubles its input."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if metadata is not None:
        model.metadata_props.add(key=ONNX_METADATA, value=metadata)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", ["model.onnx", "model_int8.onnx"])
def test_a_damaged_export_is_told(name, files, tmp_path):
    content = (files / name).read_bytes()
    middle, path = len(content) // 2, tmp_path / "model.onnx"
    path.write_bytes(content[:middle] + bytes(1 << 19) + content[middle + (1 << 19) :])
    with pytest.raises(ValueError, match=r"model\.onnx is damaged: .* export it again"):
        Embedder.load(path)


@pytest.mark.parametrize("stored", [0, "", "\ud800", "f" * 64, "ab" + "a" * 100_000, f"{8:020}-{0:08}-{0:064}"])
def test_a_checksum_that_is_none_is_told(stored, files, tmp_path):
    graph = onnx.load(files / "model.onnx")
    metadata = json.loads(graph.metadata_props[0].value) | {CHECKSUM: stored}
    graph.metadata_props[0].value = json.dumps(metadata)
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="its checksum is not the one it was written with"):
        load_network(tmp_path / "model.onnx")


def test_an_export_that_another_program_has_written_anew(files, tmp_path):
    graph = onnx.load(files / "model.onnx")
    graph.producer_name = "optimizer"
    onnx.save(graph, tmp_path / "model.onnx")
    found = Embedder.load(tmp_path / "model.onnx").embed(drawn_faces(2))[0]
    np.testing.assert_array_equal(found, Embedder.load(files / "model.onnx").embed(drawn_faces(2))[0])


def test_an_export_of_an_older_version_has_no_checksum(files, tmp_path):
    graph = onnx.load(files / "model.onnx")
    metadata = json.loads(graph.metadata_props[0].value)
    del metadata[CHECKSUM]
    set_metadata(graph, metadata)
    onnx.save(graph, tmp_path / "model.onnx")
    found = Embedder.load(tmp_path / "model.onnx").embed(drawn_faces(2))[0]
    np.testing.assert_array_equal(found, Embedder.load(files / "model.onnx").embed(drawn_faces(2))[0])


def test_the_embedder_refuses_files_that_are_not_ours(files, tmp_path):
    for metadata in (None, "no json", "[]", '{"arch": "ir_50"}'):
        path = foreign_graph(tmp_path / "foreign.onnx", metadata)
        with pytest.raises(ValueError, match=r"not an export of `adaface export`"):
            Embedder.load(path)
    (tmp_path / "text.onnx").write_text("not ONNX")
    with pytest.raises(ValueError, match="cannot be read by ONNX Runtime"):
        Embedder.load(tmp_path / "text.onnx")
    (tmp_path / "cut.onnx").write_bytes((files / "model.onnx").read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cannot be read by ONNX Runtime"):
        Embedder.load(tmp_path / "cut.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(FileNotFoundError, match="no ONNX file"):
        Embedder.load(tmp_path / "folder.onnx")
    with pytest.raises(ValueError, match="an export of ir_mini, got --arch ir_50"):
        Embedder.load(files / "model.onnx", "ir_50")
    graph = onnx.load(files / "model.onnx")
    set_metadata(graph, {"arch": "ir_mini", "color": "CMYK"})
    onnx.save(graph, tmp_path / "colour.onnx")
    with pytest.raises(ValueError, match="expected color BGR or RGB"):
        Embedder.load(tmp_path / "colour.onnx")


def test_graphs_that_take_or_give_something_else_are_refused(files, tmp_path):
    def shape(value):
        return value.type.tensor_type.shape.dim

    def one_image(graph):
        shape(graph.input[0])[0].dim_value = 1

    def larger(graph):
        shape(graph.input[0])[2].dim_value = 224

    def turned_round(graph):
        values = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in graph.output]
        del graph.output[:]
        graph.output.extend(values[::-1])

    def no_norm(graph):
        del graph.output[1:]

    for change in (one_image, larger, turned_round, no_norm):
        model = onnx.load(files / "model.onnx")
        change(model.graph)
        onnx.save(model, tmp_path / "changed.onnx")
        with pytest.raises(ValueError, match=r"not an export of `adaface export`: it takes .* any number of float"):
            Embedder.load(tmp_path / "changed.onnx")
    model = onnx.load(files / "model.onnx")
    for entry in model.metadata_props:
        entry.value = "[" * 100_000
    onnx.save(model, tmp_path / "deep.onnx")
    with pytest.raises(ValueError, match="it has no metadata about its input format"):
        Embedder.load(tmp_path / "deep.onnx")


def test_a_folder_that_cannot_be_written_into_is_told_first(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setattr("adaface.commands.export.read_model", lambda *_: pytest.fail("work was begun"))
    assert main(["--checkpoint", "model.ckpt", "--output", "/proc/model.onnx"]) == 2
    assert "--output /proc/model.onnx: the folder /proc is not writable" in capsys.readouterr().err


# --- the faces --------------------------------------------------------------------------------------------------


def test_a_sample_is_spread_evenly_and_hidden_files_are_left_out(tmp_path):
    folder = images_in(tmp_path / "images", 9)
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "000.png", folder / ".hidden" / "x.png")
    (folder / "notes.txt").write_text("")
    faces = drawn_faces(9)
    np.testing.assert_array_equal(read_sample(folder, 100), faces)
    np.testing.assert_array_equal(read_sample(folder, 3), faces[[0, 4, 8]])


def test_a_sample_of_a_set_is_its_images(files):
    path = files / "faces" / "lfw.bin"
    images = read_pair_set(path).images
    found = read_sample(path, 2)
    np.testing.assert_array_equal(found, np.stack([images[0], images[39]]))


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    for name in vars(parse(["--checkpoint", "x", "--output", "x.onnx"])):
        assert f"--{name}" in text


def test_what_was_taken_of_another_programs_weights_is_said(exported_before, tmp_path, capsys):
    weights = fill_state_dict(build_model("ir_mini").state_dict())
    path = tmp_path / "other.pth"
    torch.save({"model": weights}, path)
    assert main(["--checkpoint", str(path), "--color", "bgr", "--output", str(tmp_path / "a.onnx")]) == 0
    said = capsys.readouterr().out
    assert f"note: {path}: {len(weights)} weights under no prefix of its part `model` are taken; bgr images" in said
