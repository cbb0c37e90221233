"""Read a list of texts from a MATLAB file, in another process.

A damaged file can crash SciPy's reader, with the whole process, or let it reserve any amount of memory.

Format: MATLAB files of version 4 to 7.2, as ``scipy.io.loadmat`` reads them.
"""

import json
import subprocess
import sys
from pathlib import Path

# Beyond what the reader needs to start. A list of 153,428 names takes 118 MB: 10 times its file, or 143 times if the
# file is compressed.
_MEMORY_BYTES = 256_000_000
_MEMORY_FACTOR = 300
_TIMEOUT_SEC = 120.0
_READER = """
import json, sys

import numpy as np
from scipy.io import loadmat

try:
    import resource
    with open("/proc/self/statm") as counts:
        mapped = int(counts.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[3]), hard))
except (ImportError, ValueError, OSError):
    pass  # not on this system
try:
    content = loadmat(sys.argv[1], variable_names=[sys.argv[2]])
    if sys.argv[2] not in content:
        answer = {"absent": True}
    else:
        cells = np.asarray(content[sys.argv[2]]).ravel()
        names = [cell.item() if isinstance(cell, np.ndarray) and cell.size == 1 else cell for cell in cells]
        odd = [type(name).__name__ for name in names if not isinstance(name, str)]
        answer = {"odd": odd[:1], "names": [] if odd else list(map(str, names))}
except Exception as error:
    answer = {"error": f"{type(error).__name__}: {error}"[:300]}
json.dump(answer, sys.stdout)
"""


def read_texts(path: Path, key: str) -> list[str]:
    """Read a cell array of texts.

    Args:
        path: MATLAB file.
        key: name of the array.

    Raises:
        ValueError: not such a file, without this array, or an array of something else; the message names the file.
    """
    try:
        memory = _MEMORY_BYTES + _MEMORY_FACTOR * path.stat().st_size
        command = [sys.executable, "-P", "-c", _READER, str(path), key, str(memory)]
        ended = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SEC, check=False)
        answer = json.loads(ended.stdout) if ended.returncode == 0 else {}
    except (subprocess.TimeoutExpired, ValueError):
        answer = {}
    if not answer or "error" in answer:
        reason = answer.get("error", "it is damaged: its reader ended")
        advice = "download it again; in MATLAB, save -v7 writes such a file"
        raise ValueError(f"{path} is not a MATLAB file of version 4 to 7.2: {reason} ({advice})")
    if answer.get("absent"):
        raise ValueError(f"{path} has no `{key}`: expected the lists of TinyFace's Testing_Set")
    if answer["odd"] or not answer["names"]:
        what = f"must be a list of file names, got a {answer['odd'][0]}" if answer["odd"] else "is empty"
        raise ValueError(f"`{key}` in {path} {what}")
    return [name.strip() for name in answer["names"]]
