"""What the real mxnet writes and reads; run with the Python of the interoperability environment.

    python tests/mxnet_side.py write CASE.json FOLDER      write FOLDER/train.rec and .idx
    python tests/mxnet_side.py read FOLDER RESULT.json     read them

It imports nothing of the project: only mxnet says what is right. Both use JSON of
`{"key", "flag", "label": [...], "id", "id2", "payload": hex}`, in the order of the file when writing and of the keys
when reading. A payload may instead be `"pixels"`, the path of a `.npy` of BGR pixels with `"format"` and `"quality"`,
which mxnet encodes; reading adds `"rgb"`, the path of the pixels as mxnet decodes them, where there is an image.
"""

import json
import sys
from pathlib import Path

import mxnet as mx
import numpy as np

IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG")


def write(case: Path, folder: Path) -> None:
    """Write records with mxnet's own writer and packers."""
    writer = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    for record in json.loads(case.read_text()):
        label = np.array(record["label"], np.float32) if record["flag"] else record["label"][0]
        header = mx.recordio.IRHeader(record["flag"], label, record["id"], record["id2"])
        if "pixels" in record:
            packed = mx.recordio.pack_img(
                header, np.load(record["pixels"]), quality=record["quality"], img_fmt=record["format"]
            )
        else:
            packed = mx.recordio.pack(header, bytes.fromhex(record["payload"]))
        writer.write_idx(record["key"], packed)
    writer.close()


def read(folder: Path, result: Path) -> None:
    """Read every record with mxnet's own reader and decoder."""
    reader = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    records = []
    for key in sorted(reader.keys):
        header, payload = mx.recordio.unpack(reader.read_idx(key))
        record = {"key": key, "flag": header.flag, "label": np.atleast_1d(header.label).tolist()}
        record |= {"id": header.id, "id2": header.id2, "payload": payload.hex()}
        if payload.startswith(IMAGE_STARTS):
            record["rgb"] = str(folder / f"{key}.npy")
            np.save(record["rgb"], mx.image.imdecode(payload).asnumpy())
        records.append(record)
    reader.close()
    result.write_text(json.dumps(records))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
