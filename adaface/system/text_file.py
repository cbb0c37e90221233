"""Read text files that people write, in the encoding that their program chose."""

from pathlib import Path

_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def read_text(path: Path, *, windows: bool = False) -> str:
    """Read a short text file: UTF-8, or UTF-16 with a byte order mark.

    Args:
        path: the file; line ends are kept.
        windows: read what is not UTF-8 as Windows-1252, for a list whose names are compared with files anyway.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not text; the message names the file.
    """
    content = path.read_bytes()
    marked = [encoding for mark, encoding in _BYTE_ORDER_MARKS if content.startswith(mark)]
    for encoding in marked or ["utf-8", *(["cp1252"] if windows else [])]:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise ValueError(f"{path} is not a text file: expected UTF-8")
