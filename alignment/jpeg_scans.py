"""How many scans a JPEG has: each costs a pass over all its pixels, however few its bytes.

A progressive photograph has about ten. A file of some kilobytes can repeat one scan thousands of times, and would take
a decoder hours.

Source: ITU-T T.81, annex B: markers are FF and a code; in a scan's data FF is followed by 00 or a restart marker.
"""

import re

MOST_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # but for those that have no length
_SCAN, _END = 0xDA, 0xD9


def count_scans(jpeg: bytes) -> int:
    """Count the scans of a JPEG, up to one more than ``MOST_SCANS``.

    Args:
        jpeg: content of the file; what follows its end, such as a film, is not looked at.
    """
    position, scans = 0, 0
    while scans <= MOST_SCANS and (found := _MARKER.search(jpeg, position)):
        code, length = jpeg[found.end() - 1], jpeg[found.end() : found.end() + 2]
        if code == _END:
            break
        scans += code == _SCAN
        position = found.end() + max(2, int.from_bytes(length, "big"))
    return scans
