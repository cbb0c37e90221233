"""What is checked before torch reads a checkpoint: checksums, sizes, and the opcodes of the pickle."""

import collections
import io
import pickle
import struct
import time
import zipfile

import pytest
import torch

from adaface.checkpoints.archive import check_archive
from adaface.checkpoints.files import load_checkpoint
from tests.support.checkpoint_files import SMALL, official, write


def checkpoint(tmp_path):
    return write(tmp_path / "a.ckpt", {"state_dict": official(SMALL), "hyper_parameters": {"lr": 0.1}})


def check_and_load(path):
    """Read a file that could crash the process if it passed the check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("it passed the check"))
        load_checkpoint(path)


def with_pickle(path, content, compression=zipfile.ZIP_STORED):
    """Write a copy of a checkpoint with another pickle."""
    copy = path.with_name("evil.ckpt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w", compression) as new:
        for member in old.infolist():
            new.writestr(member.filename, content if member.filename.endswith("data.pkl") else old.read(member))
    return copy


def test_zeros_inside_of_the_weights_are_noticed(tmp_path):
    path = checkpoint(tmp_path)
    check_archive(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    middle = largest.header_offset + 200 + largest.file_size // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a\.ckpt is damaged or not a checkpoint \(the checksum of .*data/\d+ is wrong"
    ):
        load_checkpoint(path)


def test_a_member_that_is_marked_as_a_folder_is_refused(tmp_path):
    """torch would read it as zeros."""
    path = checkpoint(tmp_path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
        count = len(archive.infolist())
    for _ in range(count // 2):
        place = content.index(b"PK\x01\x02", place + 1)
    content[place + 38] |= 0x10  # external attributes, APPNOTE 4.4.15
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged .*one of its members is a folder"):
        load_checkpoint(path)


def test_every_damaged_byte_of_the_weights_and_of_the_pickle_is_noticed(tmp_path):
    path = checkpoint(tmp_path)
    content, weights = path.read_bytes(), load_checkpoint(path)["state_dict"]
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.file_size]
    damaged = tmp_path / "damaged.ckpt"
    for member in members:
        start = content.index(b"PK\x01\x02")  # the members lie in front of the central directory
        place = min(member.header_offset + 64 + len(member.filename) + member.file_size // 2, start - 1)
        changed = bytearray(content)
        changed[place] ^= 0x55
        damaged.write_bytes(changed)
        try:
            check_archive(damaged)
        except ValueError:
            continue
        # only padding in front of the content may change unnoticed
        read = load_checkpoint(damaged)["state_dict"]
        assert all(torch.equal(value, weights[key]) for key, value in read.items())


def test_files_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = checkpoint(tmp_path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_checkpoint(path)["hyper_parameters"] == {"lr": 0.1}


def test_files_of_before_torch_1_6_are_read(tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": official(SMALL)}, path, _use_new_zipfile_serialization=False)
    assert set(load_checkpoint(path)["state_dict"]) == set(official(SMALL))


def test_compressed_members_are_refused(tmp_path):
    path = checkpoint(tmp_path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with pytest.raises(ValueError, match="it has compressed members, which torch never writes"):
        load_checkpoint(with_pickle(path, content, zipfile.ZIP_DEFLATED))


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {member.filename: archive.read(member) for member in archive.infolist()}


def test_names_that_differ_in_case_are_refused(tmp_path):
    """torch ignores the case of names and reads the first of the two."""
    members = members_of(checkpoint(tmp_path))
    path = tmp_path / "case.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/DATA.PKL", NESTED + b".")
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"case\.ckpt is damaged .*it has 2 members data\.pkl, expected 1"):
        check_and_load(path)


def test_a_second_directory_is_refused(tmp_path):
    """Python would read the directory in front of the end record, torch the one at the place that the record gives."""
    first, second = io.BytesIO(), io.BytesIO()
    members = members_of(checkpoint(tmp_path))
    for file, more in ((first, {"b/other": bytes(3)}), (second, {})):
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in (members | more).items():
                archive.writestr(name, content)
    path = tmp_path / "two.ckpt"
    content = first.getvalue() + second.getvalue()
    length, start = struct.unpack("<LL", content[-10:-2])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.start_dir == len(content) - 22 - length != start  # as Python reads it
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its zip directory is not where its end record says"):
        check_and_load(path)
    path.write_bytes(second.getvalue() + b"more")
    with pytest.raises(ValueError, match="or bytes follow the zip"):
        check_and_load(path)


def test_the_end_record_of_64_bits_has_to_give_the_same_place(tmp_path):
    path = checkpoint(tmp_path)
    content = path.read_bytes()
    place = content.rindex(b"PK\6\6")
    for at in (
        place + 40,
        place + 48,
        content.rindex(b"PK\6\7") + 8,
    ):  # bytes and place of the directory, of the record
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"its zip directory is not where its end record says|zip is damaged"):
            check_and_load(path)


def test_zips_of_other_programs_are_read(tmp_path):
    """Without an end record of 64 bits, and with a comment."""
    members = members_of(checkpoint(tmp_path))
    path = tmp_path / "zipped.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"written again"
        for name, content in members.items():
            archive.writestr(name, content)
    assert set(load_checkpoint(path)["state_dict"]) == set(official(SMALL))


NESTED = b"\x80\x02)" + b"\x85" * 200_000
SHARED = b")" + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(90))  # 2**90 parts
ENCODES = b"\x80\2c_codecs\nencode\nq\0X\x40\x42\x0f\0" + b"a" * 10**6 + b"q\1X\6\0\0\0latin1q\2"


def colliding(count):
    """Return opcodes of numbers that all have the same hash."""
    numbers = [pickle.encode_long(number * (2**61 - 1)) for number in range(1, count + 1)]
    return [b"\x8a" + bytes([len(number)]) + number for number in numbers]


ORDERED = b"\x80\2ccollections\nOrderedDict\n"
PAIRS = b"](" + b"".join(number + b"N\x86" for number in colliding(6_000)) + b"e"
TWICE = b"".join(number + b"N" for number in colliding(3_000))
FLOATS = b"".join(b"G" + struct.pack(">d", number * 2.0**61) for number in range(1, 6_001))
HOSTILE = {
    "pairs with keys of one hash": (ORDERED + PAIRS + b"\x85R.", "5,000 floats or large numbers as keys"),
    "a state of such pairs": (ORDERED + b")R" + PAIRS + b"b.", "5,000 floats or large numbers as keys"),
    "a dictionary of one hash, copied": (ORDERED + b"}(" + TWICE + b"u\x85R.", "5,000 floats or large numbers as keys"),
    "a set of one hash": (b"\x80\x04\x8f(" + FLOATS + b"\x90.", "5,000 floats or large numbers as keys"),
    "nested tuples": (NESTED + b".", "nested more than 100 levels"),
    "nested tuples as a key": (b"\x80\x02}" + NESTED[2:] + b"Ns.", "nested more than 100 levels"),
    "a tuple as a key": (b"\x80\x02}))s.", "neither a text nor a number"),
    "a nested persistent id": (b"\x80\x02)\x85\x85Q.", "nested persistent id"),
    "an extension": (b"\x80\x02\x82\x01.", "the opcode EXT1"),
    "an instance": (b"\x80\x02(cos\nsystem\no.", "the opcode OBJ"),
    "a huge text": (b"\x80\x02X\xff\xff\xff\xffa.", "announces more bytes"),
    "a huge memo": (b"\x80\x02)r\xff\xff\xff\x0f.", "memo index"),
    "bytes of a number": (b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "names __builtin__ bytearray"),
    "a text encoded again and again": (
        ENCODES + b"](" + b"h\0h\1h\2\x86R" * 1000 + b"e.",
        "more than 10,000 parts or letters",
    ),
    "a set of shared tuples": (b"\x80\2c__builtin__\nset\n](" + SHARED + b"e\x85R.", "share their parts"),
    "a config of shared tuples": (b"\x80\2}X\7\0\0\0adaface" + SHARED + b"s.", "share their parts"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_that_would_crash_an_unpickler(tmp_path, name):
    content, message = HOSTILE[name]
    path = with_pickle(checkpoint(tmp_path), content)
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"evil\.ckpt is (refused: |damaged or not a checkpoint).*{message}"):
        load_checkpoint(path)
    assert time.monotonic() - began < 30  # a hang is what is tested, not the speed


def test_a_weight_that_is_larger_than_what_is_stored_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"head.kernel": torch.zeros(1).expand(2**40)}}, path)
    with pytest.raises(ValueError, match=r"1 weights are not dense real tensors, the first is head\.kernel"):
        load_checkpoint(path)
    torch.save({"state_dict": {"buffer": torch.zeros(1).expand(1000)}}, path)
    assert load_checkpoint(path)["state_dict"]["buffer"].shape == (1000,)


def test_collections_are_walked(tmp_path):
    """As schedulers and the state dicts of Python 2 have them."""
    items = collections.OrderedDict((f"layer{n}.weight", n) for n in range(2000))
    torch.save({"state_dict": {}, "milestones": collections.Counter({12: 1}), "items": items}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt")["items"] == items


def test_numbers_as_keys_are_read(tmp_path):
    """Of the states of optimizers: an index, or of old ones the place in memory."""
    states = {
        "indices": {number: number for number in range(30_000)},
        "places": {140_000_000_000_000 + 64 * number: 0 for number in range(4_000)},
        "values": collections.OrderedDict((str(number), number + 0.5) for number in range(30_000)),
    }
    torch.save({"state_dict": {}, **states}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt") == {"state_dict": {}, **states}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_are_walked(tmp_path, protocol):
    state = {
        "state_dict": official(SMALL),
        "numbers": [1, -5, 2**40, 1.5, None, True],
        "nested": {"a": {"b": [(1, 2), {3, 4}]}},
    }
    path = tmp_path / "a.ckpt"
    torch.save(state, path, pickle_protocol=protocol)
    check_archive(path)


def test_members_larger_than_the_file(tmp_path):
    path = checkpoint(tmp_path)
    buffer = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(buffer, "a") as archive:
        for member in archive.infolist():
            member.file_size = member.compress_size = 10**9
        archive.writestr("x", b"")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="announce more bytes than the file has"):
        load_checkpoint(path)


def test_a_changed_file_is_checked_again(tmp_path):
    path = checkpoint(tmp_path)
    load_checkpoint(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="damaged or not a checkpoint"):
        load_checkpoint(path)
