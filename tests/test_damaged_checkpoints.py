"""Tests untrusted `.pth` files: each is read or refused with a one-line error, without using excessive memory."""

import errno
import io
import json
import pickle
import random
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from region_learner.conversion import convert_original_checkpoint, torch_files
from region_learner.conversion.original import read_checkpoint
from region_learner.conversion.torch_files import read_state_dict

from .conftest import FIXTURES

SIZES = json.loads((FIXTURES / "region_learner_motion.json").read_text())
OPTIONS = {"num_attention_heads": SIZES["num_attention_heads"], "text_config": SIZES["text"]}
MEBIBYTE = 2**20


def refuses(path: Path, *words: str):
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint of the reference implementation") as error:
        convert_original_checkpoint(path, **OPTIONS)
    assert "\n" not in str(error.value)
    for word in (path.name, *words):
        assert word in str(error.value)


def memory(field: str) -> int:
    """Returns the resident memory of this process in bytes, current ("VmRSS") or peak ("VmHWM"), on Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def peak_of(action) -> int:
    """Returns by how many bytes memory grows, at its peak, during an action."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks of memory are measured on Linux")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before


# Mutations


def files(folder: Path) -> dict[str, bytes]:
    """Returns the same weights in the current format of PyTorch and in its format before version 1.6."""
    legacy = io.BytesIO()
    state = read_checkpoint(FIXTURES / "region_learner_motion.pth")
    content = {"epoch": 3, "state_dict": OrderedDict((f"module.{name}", value) for name, value in state.items())}
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    return {"zip": (FIXTURES / "region_learner_motion.pth").read_bytes(), "legacy": legacy.getvalue()}


def mutate(data: bytes, rng: random.Random, first: int, last: int) -> bytes:
    """Returns `data` with one kind of damage, which begins between the bytes `first` and `last`."""
    at, length = rng.randrange(first, last), rng.choice((1, 1, 2, 4, 8, 64, 4096))
    kind = rng.randrange(7)
    if kind == 0:  # bits
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            mutated[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        return bytes(mutated)
    if kind == 1:  # noise, or zeros
        return data[:at] + (rng.randbytes(length) if rng.random() < 0.7 else bytes(length)) + data[at + length :]
    if kind == 2:  # an extreme number
        form, value = rng.choice(
            (("<q", 2**62), ("<i", 2**31 - 1), ("<i", -1), ("<H", 65535), ("<q", -(2**40)), ("<i", 0))
        )
        return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data[:at] + data[at + length :]
    if kind == 5:
        return data[:at] + rng.randbytes(length) + data[at:]
    start = rng.randrange(first, last)
    return data[:at] + data[start : start + length] + data[at:]


def with_other_pickle(data: bytes, rng: random.Random) -> bytes:
    """Returns an intact archive, with correct checksums, around a damaged pickle."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(output, "w") as target:
        for record in source.infolist():
            content = source.read(record)
            if record.filename.endswith("data.pkl"):
                content = mutate(content, rng, 0, len(content))
            target.writestr(record.filename, content)
    return output.getvalue()


def mutants(folder: Path, count: int):
    whole, rng = files(folder), random.Random(0)
    for number in range(count):
        kind = ("zip", "zip_end", "pickle", "legacy", "legacy_start")[number % 5]
        data = whole[kind.split("_")[0] if kind != "pickle" else "zip"]
        if kind == "pickle":
            yield kind, with_other_pickle(data, rng)
        elif kind == "zip_end":  # the list of records
            yield kind, mutate(data, rng, len(data) - 12_000, len(data))
        elif kind == "legacy_start":  # the pickles
            yield kind, mutate(data, rng, 0, 16_000)
        else:
            yield kind, mutate(data, rng, 0, len(data))


def survey(folder: Path, count: int) -> Counter:
    """Counts mutants by kind and outcome, and asserts that each gives a model or a one-line error."""
    classes: Counter = Counter()
    path = folder / "mutant.pth"
    expected = read_checkpoint(FIXTURES / "region_learner_motion.pth")
    for kind, data in mutants(folder, count):
        path.write_bytes(data)
        try:
            convert_original_checkpoint(path, **OPTIONS)
        except ValueError as error:
            refusal = str(error)
        else:
            refusal = None
        classes[kind, "converted" if refusal is None else "refused"] += 1
        if refusal is not None:
            assert str(path) in refusal
            assert "\n" not in refusal
        elif kind.startswith("zip"):  # its checksums detect every change of a weight
            found = read_checkpoint(path)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found)
    return classes


# `pickletools` warns of invalid escape sequences in damaged strings.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("count", [250, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutations(tmp_path, count):
    classes: Counter = Counter()
    assert peak_of(lambda: classes.update(survey(tmp_path, count))) < 200 * MEBIBYTE
    print(classes)
    assert sum(classes.values()) == count
    refused = sum(number for (_, result), number in classes.items() if result == "refused")
    assert count / 2 < refused < count  # some mutations change only bytes that are not read


# Files of other kinds


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "git lfs pull"),
        (
            b"<!DOCTYPE html><html><title>Quota exceeded</title></html>",
            "a text file that begins with '<!DOCTYPE html>",
        ),
        (b"epoch,loss\n1,0.5\n", "a text file that begins with 'epoch,loss 1,0.5'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), ""),
        (bytes(1000), ""),
        (pickle.dumps({"state_dict": {"a": 1}}), "does not begin like a file of torch.save"),
    ],
)
def test_other_files(tmp_path, content, words):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    refuses(path, words)


def test_other_archives_and_safetensors(tmp_path):
    path = tmp_path / "checkpoint.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    refuses(path, "not one that torch.save wrote")
    save_file({"a": torch.zeros(3)}, path)
    refuses(path, "it is a safetensors file")
    path.write_bytes((FIXTURES / "frozen_in_time.pth").read_bytes()[:-1000])
    refuses(path, "incomplete or damaged")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        convert_original_checkpoint(tmp_path)


# False declarations


def rewritten(path: Path, change=lambda name, content: content, compression=zipfile.ZIP_STORED) -> Path:
    source = path.with_name("source.pth")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    return path


def save(path: Path, content) -> Path:
    """Saves `content` where [`rewritten`] finds it, and returns `path`."""
    torch.save(content, path.with_name("source.pth"))
    return path


def test_a_compressed_record_is_not_inflated(tmp_path):
    path = save(tmp_path / "bomb.pth", {"state_dict": {"a": torch.zeros(32 * MEBIBYTE)}})  # 128 MiB
    rewritten(path, compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "source.pth").unlink()
    assert path.stat().st_size < MEBIBYTE
    assert peak_of(lambda: refuses(path, "is compressed")) < 64 * MEBIBYTE


def test_records_that_share_their_bytes(tmp_path):
    """The archive lists every record ten times, with the same bytes of the file."""
    path = save(tmp_path / "bomb.pth", {"state_dict": {"a": torch.zeros(1000)}})
    rewritten(path)
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    entries = bytes(data[start : start + size]) * 10
    tail = bytearray(data[end:])
    struct.pack_into("<HHII", tail, 8, count * 10, count * 10, size * 10, start)
    path.write_bytes(bytes(data[:start]) + entries + bytes(tail))
    refuses(path)


def lie(tmp_path: Path, legacy: bool, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Path:
    """Writes a file whose pickle makes a tensor with this view of a storage of 10 numbers."""

    class Tensor:
        def __reduce__(self):
            storage = torch.arange(10.0).untyped_storage()
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, offset, size, stride, False, OrderedDict())

    path = tmp_path / "lie.pth"
    torch.save({"state_dict": {"a": Tensor()}}, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (2**30,), (1,)),
        (2**40, (1,), (1,)),
        (0, (2**31, 2**31), (0, 0)),
        (0, (11,), (0,)),
        (5, (2, 3), (3, 1)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 3), (1,)),
        (0, (0,), (1,)),
        (2**70, (1,), (1,)),
    ],
)
def test_a_tensor_larger_than_its_storage(tmp_path, legacy, offset, size, stride):
    path = lie(tmp_path, legacy, offset, size, stride)
    assert peak_of(lambda: refuses(path)) < 64 * MEBIBYTE


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_a_storage_match_pytorch(tmp_path, legacy):
    whole = torch.arange(60.0).view(3, 4, 5)
    tensors = {
        "whole": whole,
        "transposed": whole.transpose(0, 2),
        "part": whole[1, 1:3, ::2],
        "scalar": whole[2, 3, 4],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        **{
            str(dtype): torch.tensor([1, 2, 3]).to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8)
        },
    }
    path = tmp_path / "views.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    found, expected = read_state_dict(path), torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_many_tensors_of_one_storage(tmp_path):
    """Each tensor fits its storage, but together they would make a model that is much larger than the file."""
    weight = torch.zeros(1000, 1000)
    path = tmp_path / "shared.pth"
    torch.save({"state_dict": {f"video_model.blocks.{i}.mlp.fc1.weight": weight for i in range(1000)}}, path)
    assert path.stat().st_size < 5 * MEBIBYTE
    assert peak_of(lambda: refuses(path, "its tensors declare")) < 64 * MEBIBYTE


def test_layers_that_the_weights_do_not_have(tmp_path):
    """A model of the size that the names imply is not created before its weights are known to be complete."""
    state = read_checkpoint(FIXTURES / "frozen_in_time.pth")
    state["video_model.blocks.0.mlp.fc1.weight"] = torch.zeros(50_000, 64, dtype=torch.float16)
    state |= {f"video_model.blocks.{i}.norm1.weight": torch.zeros(64) for i in range(2, 60)}  # a model of 1.5 GB
    path = tmp_path / "layers.pth"
    torch.save({"state_dict": state}, path)

    def refused():
        with pytest.raises(ValueError, match=r"do not fit the configuration: .*; and \d+ more"):
            convert_original_checkpoint(path, num_attention_heads=4, text_config={"n_heads": 4})

    assert peak_of(refused) < 128 * MEBIBYTE


def test_a_pickle_that_declares_gigabytes(tmp_path):
    """The pickle declares lengths and memo positions for which the unpickler in C would allocate gigabytes."""
    opcodes = {
        "text": b"X" + struct.pack("<I", 2**32 - 1),
        "bytes": b"\x8e" + struct.pack("<Q", 2**40),
        "memo": b"}r" + struct.pack("<I", 2**32 - 2) + b".",
        "long": b"\x8b" + struct.pack("<i", 2**31 - 1),
    }
    source = save(tmp_path / "bomb.pth", {"state_dict": {"a": torch.zeros(3)}})
    legacy = io.BytesIO()
    torch.save({}, legacy, _use_new_zipfile_serialization=False)
    start = legacy.getvalue()[: legacy.getvalue().index(b"}q", 60)]
    for code in opcodes.values():
        path = rewritten(source, lambda name, old, code=code: b"\x80\x02" + code if name.endswith("pkl") else old)
        assert peak_of(lambda path=path: refuses(path)) < 64 * MEBIBYTE
        path.write_bytes(start + code)
        assert peak_of(lambda path=path: refuses(path)) < 64 * MEBIBYTE


def test_a_pickle_of_many_containers(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "_MOST_OPCODES", 1000)
    source = save(tmp_path / "bomb.pth", {"state_dict": {"a": torch.zeros(3)}})
    path = rewritten(source, lambda name, old: b"\x80\x02" + b"]" * 1000 + b"." if name.endswith("pkl") else old)
    with pytest.raises(ValueError, match="a pickle of more than 1,000 opcodes"):
        read_state_dict(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    state = read_checkpoint(FIXTURES / "frozen_in_time.pth")
    state["txt_proj.1.bias"] = torch.full_like(state["txt_proj.1.bias"], value)
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"text_projection\.bias has values that are not finite"):
        convert_original_checkpoint(tmp_path / "nan.pth", num_attention_heads=4, text_config={"n_heads": 4})


def test_weights_of_another_type_or_rank(tmp_path):
    state = read_checkpoint(FIXTURES / "frozen_in_time.pth")
    for changes, message in (
        ({"txt_proj.1.bias": state["txt_proj.1.bias"].long()}, r"text_projection\.bias is of the type int64"),
        ({"video_model.temporal_embed": torch.zeros(4)}, r"'embeddings\.temporal_embeddings' .* has 1 dimensions"),
        ({"video_model.patch_embed.proj.weight": torch.zeros(32, 3)}, "has 2 dimensions instead of 4"),
        ({"txt_proj.1.weight": torch.zeros(())}, "has 0 dimensions instead of 2"),
    ):
        torch.save(state | changes, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=message) as error:
            convert_original_checkpoint(tmp_path / "other.pth", num_attention_heads=4, text_config={"n_heads": 4})
        assert "other.pth" in str(error.value)


def test_a_failing_disk_is_not_reported_as_damage(monkeypatch):
    """A read error of the operating system is raised unchanged, with the name of the file."""

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    path = FIXTURES / "region_learner_motion.pth"
    monkeypatch.setattr(torch_files, "_read_zip", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        read_state_dict(path)
    assert error.value.filename == str(path)


@pytest.mark.parametrize("code", [b"0.", b".", b"h\x05.", b"K\x01\x86.", b"X\x01\0\0\0a\x93."])
def test_opcodes_without_their_operands(tmp_path, code):
    """Too little on the stack, or nothing in the memo: said in words, not by an error of Python."""
    source = save(tmp_path / "short.pth", {"state_dict": {"a": torch.zeros(3)}})
    path = rewritten(source, lambda name, old: b"\x80\x02" + code if name.endswith("pkl") else old)
    with pytest.raises(ValueError, match=r"of the reference implementation: its pickle is damaged\.$"):
        read_state_dict(path)
