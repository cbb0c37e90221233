"""Models, and lists of MATLAB: targets of `bench/fuzz.py`."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save
from scipy.io import savemat

from adaface.checkpoints.files import REST, check_resumable, load_checkpoint
from adaface.checkpoints.sharded import fill_in_head, name_save, strip_head, write_head
from adaface.checkpoints.weights import check_fits
from adaface.evaluation.matlab_file import read_texts
from adaface.export.graph import set_metadata, to_file
from adaface.export.network import CHECKSUM, load_network
from adaface.heads.partial_fc import build_sharded_head
from adaface.system.files import checksum_of
from bench._fuzz_mutations import any_bytes, change_pickle, change_zip_field, inside_zip, set_token
from bench._fuzz_variants import HangError, Variant, face, in_first, require

# --- files of other programs ----------------------------------------------------------------------------------


def mat_variants(folder: Path) -> list[Variant]:
    """TinyFace's `.mat`: texts come out; the form has no checksum unless it is compressed.

    The reader runs in a process of its own, which may die: that is an error of one line. Here it is forked from a
    process that has imported SciPy, in place of started.
    """
    path, programs = folder / "probe.mat", _ForkedPrograms()
    names = ["12_a.jpg", "13_b.jpg", "14_c.jpg"]
    contents = []
    for compressed in (False, True):
        buffer = io.BytesIO()
        cells = np.array([[name] for name in names], dtype=object)
        savemat(buffer, {"probe_set": cells}, do_compression=compressed)
        contents.append(buffer.getvalue())

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with unittest.mock.patch("subprocess.run", programs.run):
            got = read_texts(path, "probe_set")
        require(got and all(isinstance(name, str) for name in got), "no texts")

    return [Variant(content, read) for content in contents]


class _ForkedPrograms:
    """Does what ``subprocess.run`` does with ``python -c``, in a fork of this process that lives until it dies."""

    def __init__(self) -> None:
        self._pid = 0

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        """Run one program; its output and exit status are those of the fork."""
        if not self._pid:
            self._start()
        self._requests.write(json.dumps(command[command.index("-c") + 1 :]) + "\n")
        self._requests.flush()
        if answer := self._answers.readline():
            return subprocess.CompletedProcess(command, 0, json.loads(answer).encode())
        status = os.waitpid(self._pid, 0)[1]
        self._pid = 0
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
            raise HangError("more than 2 s in the process of the reader")
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), b"")

    def _start(self) -> None:
        (request, requests), (answer, answers) = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(requests)
            self._serve(os.fdopen(request), os.fdopen(answers, "w"))
        os.close(request)
        os.close(answers)
        self._requests, self._answers = os.fdopen(requests, "w"), os.fdopen(answer)

    def _serve(self, requests: TextIO, answers: TextIO) -> None:
        try:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            for line in requests:
                program, *arguments = json.loads(line)
                signal.setitimer(signal.ITIMER_PROF, 2)
                sys.argv = ["-c", *arguments]
                sys.stdout = io.StringIO()
                exec(program, {})
                answers.write(json.dumps(sys.stdout.getvalue()) + "\n")
                answers.flush()
        finally:
            os._exit(1)


def _weights() -> dict[str, Any]:
    return {f"model.layer{n}.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3) + n for n in range(10)}


def _same_weights(got: dict[str, Any]) -> bool:
    right = _weights()
    return list(got) == list(right) and all(torch.equal(got[key], right[key]) for key in right)


def _checkpoint(weights: dict[str, Any], new: bool) -> bytes:
    """Return a checkpoint that can be resumed, in the format of today or in that before PyTorch 1.6."""
    position = {"epoch": 1, "batch": 2}
    progress = {"current": {"ready": 1, "completed": 1, "processed": 1, "started": 1}}
    first = next(iter(weights.values()))
    content = {
        "state_dict": weights,
        "adaface": {"config": {"arch": "ir_50"}, "given": ["arch"], "position": position},
        "epoch": 1,
        "global_step": 2,
        "loops": {"fit_loop": {"epoch_progress": progress, "epoch_loop.batch_progress": progress}},
        "optimizer_states": [
            {"state": {0: {"momentum_buffer": first}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        ],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def ckpt_variants(folder: Path) -> list[Variant]:
    """`.ckpt`: the zip has checksums: all weights that come out are as they were.

    Where the checksum was made to fit, and in the format before PyTorch 1.6, only the form can be told.
    """
    contents = [_checkpoint(_weights(), new=True)]
    # in one storage, whose name is a place in memory: the same in every process
    numbers = torch.stack(list(_weights().values()))
    old = _checkpoint(dict(zip(_weights(), numbers, strict=True)), new=False)
    contents.append(re.sub(rb"X.\0\0\0\d{9,}", b"X\x0c\0\0\0" + b"940123456789", old))
    number = iter(range(10**9))

    def read(has_checksum: bool) -> Callable[[bytes], None]:
        def read_one(data: bytes) -> None:
            path = folder / f"{next(number)}.ckpt"  # a name of its own: what was checked is remembered by name
            path.write_bytes(data)
            try:
                got = load_checkpoint(path)
                require(all(isinstance(one, torch.Tensor) for one in got["state_dict"].values()), "no tensors")
                require(not has_checksum or _same_weights(got["state_dict"]), "damaged weights are read")
                check_resumable(got, path)
            finally:
                path.unlink()

        return read_one

    inside = (inside_zip(change_pickle), inside_zip(any_bytes))
    return [
        Variant(contents[0], read(has_checksum=True), (change_zip_field,)),
        Variant(contents[0], read(has_checksum=False), inside * 8),
        Variant(contents[1], read(has_checksum=False), (change_pickle,)),
    ]


def sharded_variants(folder: Path) -> list[Variant]:
    """Checkpoint folders of a sharded head: each file has a checksum, so that all that comes out is as it was.

    Where the checksum was made to fit, or is missing as in older checkpoints, only the form can be told.
    """
    head = build_sharded_head("adaface", 4, 5, 0.4, 0.01, 0.333, 64.0)
    head.kernel.data = torch.arange(20, dtype=torch.float32).reshape(head.kernel.shape)
    head.kernel.grad = torch.ones_like(head.kernel)
    optimizer = torch.optim.SGD([head.kernel], lr=0.1, momentum=0.9)
    optimizer.step()
    content = torch.load(io.BytesIO(_checkpoint(_weights(), new=True)), weights_only=True)
    content["state_dict"]["head.kernel"] = head.kernel.data
    shapes = {key: tuple(value.shape) for key, value in _weights().items()} | {"head.kernel": (4, 5)}
    content["optimizer_states"] = [optimizer.state_dict()]
    strip_head(content, head, optimizer)
    name_save(content, Path("save"))  # the same in every process
    rest = io.BytesIO()
    torch.save(content, rest)
    (folder / REST).write_bytes(rest.getvalue())
    write_head(folder, head, optimizer)
    shard = next(folder.glob("*.safetensors"))
    stored = shard.read_bytes()
    start = 8 + int.from_bytes(stored[:8], "little")
    header = json.dumps(json.loads(stored[8:start]), sort_keys=True, separators=(",", ":"))  # written in any order
    shard.write_bytes(stored[:8] + header.ljust(start - 8).encode() + stored[start:])
    checksum = shard.with_name(f"{shard.name}.crc32")
    checksum.write_text(f"{checksum_of(shard):08x} save\n")
    whole = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    right = head.kernel.data.t()

    def read(name: str, has_checksum: bool) -> Callable[[bytes], None]:
        def read_one(data: bytes) -> None:
            for path, valid in whole.items():
                path.write_bytes(data if path.name.endswith(name) else valid)
                if path.suffix == ".crc32" and not has_checksum:
                    path.unlink()
            os.utime(folder / REST, ns=(next(number), 0))  # what was checked is remembered by name, size and time
            got = load_checkpoint(folder)
            check_resumable(got, folder)
            check_fits(got, shapes, folder)
            fill_in_head(got, None)
            kernel = got["state_dict"]["head.kernel"]
            require(kernel.ndim == 2 and kernel.dtype in (torch.float32, torch.float64), "a head of another form")
            require(not has_checksum or torch.equal(kernel, right), "a damaged head is read")

        number = itertools.count()
        return read_one

    rest_file = folder / REST
    return [
        Variant(whole[shard], read(shard.name, has_checksum=True)),
        Variant(whole[shard], read(shard.name, has_checksum=False), (set_token, in_first(start, set_token)) * 2, 2),
        Variant(whole[checksum], read(checksum.name, has_checksum=True), (set_token,)),
        Variant(whole[rest_file], read(REST, has_checksum=True), (change_zip_field,)),
        Variant(
            whole[rest_file], read(REST, has_checksum=False), (inside_zip(change_pickle), inside_zip(any_bytes)) * 8
        ),
    ]


def safetensors_variants(folder: Path) -> list[Variant]:
    """`.safetensors`: with the header as it was, the numbers are those of the file; there is no checksum."""
    path = folder / "weights.safetensors"
    content = save(_weights())
    start = 8 + int.from_bytes(content[:8], "little")

    def read(data: bytes) -> None:
        path.write_bytes(data)
        got = load_checkpoint(path)["state_dict"]
        require(all(isinstance(one, torch.Tensor) for one in got.values()), "no tensors")
        if data[:start] == content[:start]:
            numbers = b"".join(got[key].numpy().tobytes() for key in _weights())
            require(numbers == data[start:], "numbers that are not in the file")

    return [Variant(content, read, (set_token, in_first(start, set_token), in_first(start, any_bytes)))]


def onnx_variants(folder: Path) -> list[Variant]:
    """`.onnx`: the file has a checksum: if its size is the same, embeddings that come out are those of the network.

    Exports of older versions have none: what opens gives embeddings of the announced size, or an error.
    """
    path = folder / "model.onnx"
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [3, 4], np.linspace(-1, 1, 12))
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
        helper.make_node("ReduceL2", ["embedding"], ["norm"], axes=[1], keepdims=1),
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 112, 112])
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", d]) for n, d in (("embedding", 4), ("norm", 1))
    ]
    graph = helper.make_graph(nodes, "net", [image], outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    metadata, images = {"color": "BGR", "fingerprint": "0"}, np.stack([face(9), face(99)])
    with_checksum = to_file(model, metadata)
    path.write_bytes(with_checksum)
    right = load_network(path)[0](images)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        network, _, found = load_network(path)
        embeddings, norms = network(images)
        same = np.array_equal(embeddings, right[0]) and np.array_equal(norms, right[1])
        is_new = len(data) != len(with_checksum)  # by another program
        require(CHECKSUM not in found or is_new or same, "a damaged network is read")
        require(
            embeddings.shape == (2, network.embedding_size) and norms.shape == (2, 1), "other shapes than announced"
        )

    set_metadata(model, metadata)
    return [Variant(content, read, (set_token,)) for content in (with_checksum, model.SerializeToString())]
