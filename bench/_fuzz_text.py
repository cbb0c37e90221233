"""Tables, lists, recipes and journals: targets of `bench/fuzz.py`."""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adaface.alignment import journal as alignment
from adaface.alignment.detector import Face
from adaface.alignment.journal import ALIGNED, NO_FACE, TABLE, Journal, Line
from adaface.alignment.landmark_file import read_landmarks
from adaface.checkpoints import run_folder
from adaface.commands import demo_baseline
from adaface.config.options import OPTIONS, Config
from adaface.config.parsing import read_recipe
from adaface.config.rules import check_combinations
from adaface.conversion import unpack_bin
from adaface.conversion.pack import read_pairs
from adaface.data import conversion_journal, pair_sets
from adaface.data.pair_pickle import write_bin
from adaface.data.sources.cleaned_index import TrainingIndex, select_indexed, write_index
from adaface.data.sources.records import FlawedRecordSource
from adaface.data.sources.selection import SUBSET_LIST, read_subset_list
from adaface.demo import dataset
from adaface.evaluation.ijb_metadata import metadata_files, read_metadata
from adaface.models.input_format import InputFormat
from adaface.records import sidecar
from adaface.system.files import FileState
from adaface.system.json_file import read_object
from bench._fuzz_data import write_records
from bench._fuzz_mutations import TEXT, Mutation, any_bytes, set_token
from bench._fuzz_variants import Variant, encoded, face, in_first, require, said

# --- text -----------------------------------------------------------------------------------------------------


def csv_variants(folder: Path) -> list[Variant]:
    """Tables and lists: the lines that were not changed come out as they were, where a line stands for itself."""
    return [*_journal_variants(folder), *_index_variants(folder), *_list_variants(folder)]


def _journal_variants(folder: Path) -> list[Variant]:
    """`alignment.csv`: a photograph that counts as done has the size, time and content of one line of the file."""
    output = folder / "aligned"
    output.mkdir()
    photograph = folder / "photograph.jpg"
    photograph.write_bytes(b"photograph")
    states = [FileState(10, 17, "ab" * 32), FileState(11, 18, "cd" * 32)]
    face = Face((1, 2, 3, 4.5), np.arange(10.0).reshape(5, 2), 0.98765)
    (output / "b.png").write_bytes(b"crop")
    with Journal(output, {"faces": "all"}) as journal:
        journal.add("a, ä.jpg", 0, [Line(NO_FACE)], states[0])
        journal.add("=b.jpg", 1, [Line(ALIGNED, "b.png", face)], states[1])
    content = (output / TABLE).read_bytes()

    def read(data: bytes) -> None:
        (output / TABLE).write_bytes(data)
        with Journal(output, {"faces": "all"}) as journal:
            done = [name for name in ("a, ä.jpg", "=b.jpg") if journal.is_done(name, photograph)]
            require(not done, f"{done} counts as done, the photograph is another one")
            journal.finish([])
        (output / "b.png").write_bytes(b"crop")

    return [Variant(content, read, TEXT)]


def _index_variants(folder: Path) -> list[Variant]:
    """The cleaned index: each sample is trained as its own line says, or not at all."""
    (folder / "records").mkdir()
    source = FlawedRecordSource(write_records(folder / "records"))
    path = folder / "index.csv"
    write_index(path, source, TrainingIndex(np.int32([0, 0, 1, -1, 2, 1]), {5: "looks like 1"}))
    content = path.read_bytes().replace(bytes(folder), b"/data")  # the same in every folder

    def read(data: bytes) -> None:
        path.write_bytes(data)
        chosen = select_indexed(source, path)
        require(0 < len(chosen) <= 6 and set(chosen.labels) == set(range(len(chosen.class_names))), "other classes")
        lines = data.decode("utf-8-sig", "surrogateescape").splitlines()
        used = {line.split(",")[0] for line in lines[2:] if line.split(",")[1:2] in (["1"], ['"1"'])}
        require(len(chosen) == len(used) or b'"' in data or b"\r" in data, "another number of samples than lines")

    return [Variant(content, read, TEXT)]


def _list_variants(folder: Path) -> list[Variant]:
    """Pairs, landmarks and IJB's tables: as many entries as lines, and each unchanged line's entry is as it was."""
    root = folder / "people"
    for name in ("Ada", "Bob"):
        (root / name).mkdir(parents=True)
        for number in (1, 2):
            (root / name / f"{name}_{number:04d}.jpg").write_bytes(b"")
    pairs, landmarks = folder / "pairs.txt", folder / "landmarks.txt"
    ijb = metadata_files(folder, "IJBB")
    (folder / "IJBB" / "meta").mkdir(parents=True)
    (folder / "IJBB" / "loose_crop").mkdir()
    points = [f"{n}.jpg " + " ".join(f"{10 * n + k}.5" for k in range(10)) + f" 0.9{n}" for n in range(1, 5)]
    tables = {
        "landmarks": "\n".join(points) + "\n",
        "templates": "1.jpg 1 1\n2.jpg 2 2\n3.jpg 3 3\n4.jpg 4 4\n",
        "pairs": "1 3 1\n2 4 1\n1 4 0\n",
        "gallery S1": "TEMPLATE_ID,SUBJECT_ID,X\n1,7,a\n",
        "gallery S2": "TEMPLATE_ID,SUBJECT_ID,X\n2,8,b\n",
        "probes": "TEMPLATE_ID,SUBJECT_ID,X\n3,7,c\n4,8,d\n",
    }

    def fields(table: str) -> np.ndarray:
        return np.array([[float(word) for word in line.split()[1:11]] for line in table.splitlines()])

    def read_pairs_of(data: bytes) -> None:
        pairs.write_bytes(data)
        for first, second, same in read_pairs(pairs, root):
            require(first.is_file() and second.is_file() and isinstance(same, bool), "a pair without files")
            require(not same or first.parent == second.parent or b"," in data, "a genuine pair of two people")

    def read_landmarks_of(data: bytes) -> None:
        landmarks.write_bytes(data)
        found = read_landmarks(landmarks)
        for number, line in enumerate(points, 1):
            if data.splitlines().count(line.encode()) == 1 and sum(map(len, found.values())) == 4:
                faces = found[f"{number}.jpg"]  # two, if another line names this picture as well
                same = [np.array_equal(face.landmarks.ravel(), fields(line)[0]) for face in faces]
                require(any(same), "other landmarks")

    def read_table_of(name: str) -> Callable[[bytes], None]:
        def read(data: bytes) -> None:
            for key, path in ijb.items():
                path.write_bytes(data if key == name else tables[key].encode())
            got = read_metadata(folder, "IJBB")
            require(len(got.landmarks) == len(got.template_ids) == len(got.file_names), "counts do not match")
            if name != "landmarks":
                right = fields(tables["landmarks"]).reshape(-1, 5, 2)
                require(np.allclose(got.landmarks, right, atol=1e-3), "other landmarks")
            if name not in ("templates", "landmarks"):
                require(got.template_ids.tolist() == [1, 2, 3, 4], "other templates")

        return read

    def read_subset(data: bytes) -> None:
        (folder / SUBSET_LIST).write_bytes(data)
        require(read_subset_list(folder, ".").dtype == np.int64, "no integers")

    lfw = "1\t2\nAda\t1\t2\nBob\t1\t2\nAda\t1\tBob\t2\nAda\t2\tBob\t1\n"
    table = "path1,path2,same\nAda/Ada_0001.jpg,Ada/Ada_0002.jpg,1\nBob/Bob_0001.jpg,Ada/Ada_0002.jpg,0\n"
    return [
        *(Variant(text.encode(), read_pairs_of, TEXT) for text in (lfw, table)),
        Variant(tables["landmarks"].encode(), read_landmarks_of, TEXT),
        Variant(b"0,1,5,\n7,12", read_subset, TEXT),
        *(Variant(text.encode(), read_table_of(name), TEXT) for name, text in tables.items()),
    ]


def yaml_variants(folder: Path) -> list[Variant]:
    """Recipes: the options that come out are known, and have the type of the option.

    Text has no checksum, so that another valid value cannot be told.
    """
    path = folder / "recipe.yaml"
    text = (
        "# a recipe\nhead: adaface\nm: 0.4\narch: 'ir_50'\nlr: 5e-4\nlr_milestones: [12, 20, 24]\nepochs: 26\n"
        'use_mxrecord: yes\nprefix: "run # 1"\nval_data_path: ~/faces\nbatch_size: 512\n'
    )

    def read(data: bytes) -> None:
        path.write_bytes(data)
        values = read_recipe(path)
        try:
            check_combinations(Config().with_values(values))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error  # of an option, as on the command line
        for name, value in values.items():
            kind: Any = OPTIONS[name].type
            require(isinstance(value, getattr(kind, "__origin__", kind)), f"{name} is a {type(value).__name__}")

    return [Variant(text.encode(), read, TEXT)]


def json_variants(folder: Path) -> list[Variant]:
    """Journals and metadata: they are taken for valid only where all that is needed has its type.

    JSON has no checksum, so that another valid value cannot be told.
    """
    done = folder / conversion_journal.JOURNAL
    conversion_journal.Journal(100, 17, False, 5, 6, 3, 6, [4]).save(folder)
    settings = {"faces": "all", "smallest_face_px": 20}
    manifest = {"started": "2026-01-01", "learning_rate": 0.1, "earlier_starts": [{"started": "2025-12-31"}]}
    write_bin(folder / "lfw.bin", [encoded(".png", face(9))] * 2, [True])
    os.utime(folder / "lfw.bin", (17, 17))  # it is in the journal
    with contextlib.redirect_stderr(io.StringIO()):
        unpack_bin.convert_set(folder / "lfw.bin")
    origin = pair_sets.origin_file(folder, "lfw")
    results = {"sets": [{"set": "lfw", "accuracy": 97.5}, {"set": "cfp_fp", "accuracy": 90}]}
    stamp = sidecar.Stamp(folder / "train.rec", (1, 2, 3, 4))
    columns = {"keys": np.arange(9, dtype=np.uint32), "labels": np.ones(9, np.float32)}
    sidecar.store(stamp, "index", columns)
    cache = folder / ".train.rec.index"

    def read_journal(path: Path) -> None:
        got = conversion_journal.Journal.load(path.parent)
        require(got is not None and isinstance(got.complete, bool), "no journal")

    def read_manifest(path: Path) -> None:
        require(
            all(isinstance(start, dict) for start in run_folder._earlier_starts(path)), "an earlier start of a kind"
        )

    def read_origin(path: Path) -> None:
        unpack_bin._why_done(folder / "lfw.bin", path, "memfile", swap=False)
        require(len(pair_sets.open_pair_set(folder, "lfw").images) == 2, "another set")

    def read_metadata(path: Path) -> None:
        got = InputFormat.of(read_object(path), path)
        require(got.color in ("BGR", "RGB") and math.isfinite(got.mean / got.std), "another format")

    def read_sidecar(path: Path) -> None:
        got = sidecar.load(stamp, "index")
        require(got is None or all(np.array_equal(got[name], columns[name]) for name in columns), "other columns")

    def variant(path: Path, content: bytes, reader: Callable[[Path], object], *changes: Mutation) -> Variant:
        def read(data: bytes) -> None:
            path.write_bytes(data)
            with said():
                reader(path)

        return Variant(content, read, changes or TEXT)

    def as_json(content: object) -> bytes:
        return json.dumps(content, indent=1).encode()

    return [
        variant(done, done.read_bytes(), read_journal),
        variant(folder / alignment.SETTINGS, as_json(settings), lambda _: alignment._check_settings(folder, settings)),
        variant(folder / run_folder.MANIFEST, as_json(manifest), read_manifest),
        variant(origin, origin.read_bytes(), read_origin),
        variant(folder / "demo.json", as_json(settings), lambda _: dataset._check_finished(folder, settings)),
        variant(folder / "results.json", as_json(results), demo_baseline._accuracies),
        variant(
            folder / "input.json", as_json({"color": "RGB", "mean": 0.5, "std": 2, "size": [112, 112]}), read_metadata
        ),
        variant(cache, cache.read_bytes(), read_sidecar, in_first(300, set_token), in_first(300, any_bytes)),
    ]
