"""Check the file of a checkpoint before torch reads it.

``torch.load(weights_only=True)`` calls no foreign code, but it does not notice damaged weights, unpacks a compressed
tensor of gigabytes, and its unpickler can be crashed. Here the checksums of the zip are compared, compressed members
are refused, and the opcodes of the pickle are walked. Python and torch read a zip differently: torch ignores the case
of names and takes the place of the directory literally, Python corrects it. So the end of the zip has to be as both
understand it, and the pickle is the one that torch finds.

Format: what ``torch.save`` writes, a zip of uncompressed members with one ``data.pkl``; and that of before torch 1.6,
five pickles followed by the weights, which has no checksums. The end of a zip: APPNOTE, 4.3.14 to 4.3.16.
"""

import functools
import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from adaface.system.pickle_walk import CHECKPOINT_OPCODES, UnsafePickleError, walk_pickle

REST = "rest.ckpt"  # in a checkpoint folder of a sharded head: everything except the head's matrices
# in run folders, and in folders of the Hugging Face Hub
_USUAL_NAMES = ("best.ckpt", "last.ckpt", "model.safetensors", "pytorch_model.bin", "model.pt")
NOTHING_EXECUTED = "Nothing in it was executed; export its state_dict with the program that wrote it"
_PICKLE = "data.pkl"
_ZIP = b"PK\x03\x04"
_PICKLES_OF_OLD_FORMAT = 5  # magic number, version, system, object, keys of the storages
_CHUNK_BYTES = 1 << 20
_LENGTH_BYTES = 8  # of safetensors' length of the header
_END = struct.Struct("<4s8xLLH")  # signature, bytes and place of the directory, bytes of the comment
_LOCATOR_64 = struct.Struct("<4s4xQ4x")  # signature, place of the next one
_END_64 = struct.Struct("<4s36xQQ")  # signature, bytes and place of the directory
_DOS_FOLDER = 0x10  # in the attributes of a member; torch reads such a member as if it had no bytes


def file_of_checkpoint(path: Path) -> Path:
    """Return the file of a checkpoint: itself, or that in the folder of a sharded head's checkpoint.

    Args:
        path: the checkpoint.

    Raises:
        FileNotFoundError: there is no such file, or it is another folder; the message names a checkpoint in it.
    """
    if path.is_dir():
        if not (path / REST).is_file():
            found = next((name for name in _USUAL_NAMES if (path / name).exists()), "")
            advice = f"give {path / found}" if found else "give best.ckpt or last.ckpt of a run folder"
            raise FileNotFoundError(f"{path} is a folder without {REST}, not a checkpoint: {advice}")
        return path / REST
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    return path


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as one of safetensors: the length of its header, then JSON.

    Args:
        path: an existing file.
    """
    with path.open("rb") as file:
        return file.read(_LENGTH_BYTES + 1)[_LENGTH_BYTES:] == b"{"


def check_checkpoint(path: Path) -> None:
    """Check what can be checked of a checkpoint without PyTorch.

    Args:
        path: as of ``load_checkpoint``.

    Raises:
        FileNotFoundError: as of ``file_of_checkpoint``.
        ValueError: not a checkpoint, or damaged.
    """
    file = file_of_checkpoint(path)
    if is_safetensors(file):
        return
    try:
        _check_file(*_identity(file))
    except Exception as error:  # a damaged pickle fails in many ways
        raise refusal(file, error) from error


def refusal(path: str | Path, error: Exception) -> ValueError:
    """Return the error for a file that is not a checkpoint, or damaged.

    Args:
        path: the file.
        error: why.
    """
    if isinstance(error, UnsafePickleError):
        return ValueError(f"{path} is refused: {error}. {NOTHING_EXECUTED}")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path} is damaged or not a checkpoint ({reason})")


def check_archive(path: Path) -> None:
    """Check a checkpoint file; once in a process, as long as its size and time stay the same.

    Args:
        path: an existing file.

    Raises:
        OSError: it cannot be read.
        UnsafePickleError: its pickle is not built as that of a checkpoint.
        ValueError: damaged, or members that are compressed or larger than the file.
    """
    if _check_file(*_identity(path)):
        _check_pickle(*_identity(path))


def _identity(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _check_file(path: str, size: int, modified_ns: int) -> bool:
    """Check all but the pickle of a zip, for which torch is needed; return whether it is a zip."""
    with Path(path).open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            for _ in range(_PICKLES_OF_OLD_FORMAT):
                walk_pickle(file, size - file.tell(), CHECKPOINT_OPCODES)
            return False
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                _check_end(file, size - _END.size - len(archive.comment))
            _check_members(file, members, size)
        except (zipfile.BadZipFile, struct.error, NotImplementedError, EOFError, RuntimeError, UnicodeError) as error:
            raise ValueError(f"the zip is damaged: {error}") from error
    return True


@functools.lru_cache(maxsize=64)
def _check_pickle(path: str, size: int, modified_ns: int) -> None:
    import torch  # takes seconds; what is no checkpoint is told before

    try:
        with Path(path).open("rb") as file:  # not by its path: torch knows only UTF-8
            pickle = torch._C.PyTorchFileReader(file).get_record(_PICKLE)
    except RuntimeError as error:
        raise ValueError(f"the zip is damaged: {error}") from error
    walk_pickle(io.BytesIO(pickle), len(pickle), CHECKPOINT_OPCODES)


def _check_end(file: BinaryIO, end: int) -> None:
    """Raise ValueError if the directory of the zip does not lie right in front of the end record, at ``end``."""
    file.seek(max(end - _LOCATOR_64.size, 0))
    locator = file.read(_LOCATOR_64.size)
    signature, length, start, _ = _END.unpack(file.read(_END.size))
    right = signature == b"PK\5\6"
    if locator.startswith(b"PK\6\7"):
        end -= _LOCATOR_64.size + _END_64.size
        file.seek(max(end, 0))
        signature, length, start = _END_64.unpack(file.read(_END_64.size))
        right = right and signature == b"PK\6\6" and _LOCATOR_64.unpack(locator)[1] == end
    if not right or start + length != end:
        raise ValueError("its zip directory is not where its end record says, or bytes follow the zip")


def _check_members(file: BinaryIO, members: list[zipfile.ZipInfo], size: int) -> None:
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it has compressed members, which torch never writes")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members announce more bytes than the file has")
    if any(member.is_dir() or member.external_attr & _DOS_FOLDER for member in members):
        raise ValueError("one of its members is a folder, which torch never writes")
    pickles = sum(member.filename.rpartition("/")[2].lower() == _PICKLE for member in members)
    if pickles != 1:
        raise ValueError(f"it has {pickles} members {_PICKLE}, expected 1")
    damaged = [member.filename for member in members if _checksum(file, member) != member.CRC]
    if damaged and len(damaged) < len(members):  # all: torch.serialization.set_crc32_options(False) wrote it
        raise ValueError(f"the checksum of {damaged[0]} is wrong ({len(damaged)} of {len(members)} members)")


def _checksum(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    _go_to_content(file, member)
    left, checksum = member.file_size, 0
    while chunk := file.read(min(left, _CHUNK_BYTES)):
        checksum = zlib.crc32(chunk, checksum)
        left -= len(chunk)
    return checksum


def _go_to_content(file: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Move to the first byte of a member, behind its name and extra field (APPNOTE, 4.3.7)."""
    file.seek(member.header_offset + 26)
    lengths = file.read(4)
    if len(lengths) < 4:
        raise EOFError("a member begins behind the end of the file")
    file.seek(member.header_offset + 30 + sum(struct.unpack("<HH", lengths)))
