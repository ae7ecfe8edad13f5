"""Other people's files, damaged and hostile ones, through ``init_checkpoint``: taken as they are meant, or refused."""

import io
import json
import pickle
import resource
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cldm.build import create_model
from common.errors import InputError
from common.weights import read_checkpoint
from ldm.checkpoint import read_state_dict, save_state_dict
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {key: value.clone() for key, value in create_model(SMALL).state_dict().items()}


@pytest.fixture
def make(cli, tmp_path):
    """make(source, options) -> weights of the start checkpoint; make.refused alike -> the line."""

    def make(source, *more):
        cli("init_checkpoint", "--config", SMALL, "--source", source, "--out", tmp_path / "out.safetensors", *more)
        return read_state_dict(tmp_path / "out.safetensors")

    def refused(source, *more):
        line = cli.refused(
            "init_checkpoint", "--config", SMALL, "--source", source, "--out", tmp_path / "out.safetensors", *more
        )
        assert str(source) in line and not (tmp_path / "out.safetensors").exists()
        return line

    make.refused = refused
    return make


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- other people's files


def test_by_the_first_bytes_not_by_the_name(make, state, tmp_path):
    save_file(state, tmp_path / "really_safetensors.ckpt")
    torch.save({"state_dict": state}, tmp_path / "really_torch.safetensors")
    torch.save(state, tmp_path / "older.safetensors", _use_new_zipfile_serialization=False)
    assert same(make(tmp_path / "really_safetensors.ckpt"), state)
    assert same(read_state_dict(tmp_path / "really_torch.safetensors"), state)
    assert same(read_state_dict(tmp_path / "older.safetensors"), state)


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [(torch.float8_e4m3fn, ".safetensors"), (torch.float8_e5m2, ".ckpt"), (torch.bfloat16, ".ckpt")],
)
def test_rounded_weights_and_their_schedule(make, state, tmp_path, dtype, suffix):
    rounded = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    save_state_dict(rounded, tmp_path / f"rounded{suffix}")
    made = make(tmp_path / f"rounded{suffix}")
    for key, value in made.items():
        schedule = "alphas" in key or "betas" in key or "posterior" in key
        assert torch.equal(value, state[key] if schedule else rounded[key].to(value.dtype)), key
    widened = {key: value.float() if value.is_floating_point() else value for key, value in rounded.items()}
    save_state_dict(widened, tmp_path / f"rounded{suffix}")  # rounded once, then stored in single precision
    assert same(make(tmp_path / f"rounded{suffix}"), made)
    other = {**rounded, "alphas_cumprod": torch.linspace(1, 0.0, 1000).square().to(dtype)}
    save_state_dict(other, tmp_path / f"rounded{suffix}")
    (tmp_path / "out.safetensors").unlink()
    assert "noise_schedule: 1 mismatched" in make.refused(tmp_path / f"rounded{suffix}")


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers(make, state, tmp_path, bad):
    key = "control_model.input_blocks.0.0.weight"
    broken = {**state, key: state[key].clone()}
    broken[key].view(-1)[3] = bad
    save_state_dict(broken, tmp_path / "failed.ckpt")
    line = make.refused(tmp_path / "failed.ckpt")
    assert f"1 weights hold NaN or infinite numbers ({key})" in line and "--allow-mismatch nan" in line
    assert "NaN" in make.refused(tmp_path / "failed.ckpt", "--allow-mismatch", "all")
    assert same(
        {**make(tmp_path / "failed.ckpt", "--allow-mismatch", "nan"), key: 0 * state[key]},
        {**state, key: 0 * state[key]},
    )
    with pytest.raises(InputError, match="NaN or infinite"):
        create_model(SMALL, tmp_path / "failed.ckpt")


def test_weights_beyond_half_precision(make, state, tmp_path):
    key = "control_model.input_blocks.0.0.bias"
    large = {**state, key: torch.full_like(state[key], 1e6)}
    save_state_dict(large, tmp_path / "large.ckpt")
    assert make(tmp_path / "large.ckpt", "--precision", "bf16")
    (tmp_path / "out.safetensors").unlink()
    with pytest.raises(AssertionError):  # the line names the option, not the source
        make.refused(tmp_path / "large.ckpt", "--precision", "fp16")
    assert not (tmp_path / "out.safetensors").exists()


def test_integers_are_no_weights(make, state, tmp_path):
    key = "model.diffusion_model.out.2.weight"
    save_state_dict({**state, key: state[key].to(torch.int8)}, tmp_path / "quantized.ckpt")
    assert f"{key}: int8 in the file" in make.refused(tmp_path / "quantized.ckpt")


# ---- damaged and hostile files


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def packed(path, content, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def test_zip_bombs_are_refused_by_their_directory(make, state, tmp_path):
    path = tmp_path / "bomb.ckpt"
    torch.save(state, path)
    content = entries(path)
    packed(path, {**content, "archive/data/0": bytes(2**28)}, zipfile.ZIP_DEFLATED)  # 256 KiB of 256 MiB of zeros
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "compressed zip file" in make.refused(path)
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB

    torch.save({"a": torch.zeros(1000)}, path)
    for old, new in ((b"data/0", struct.pack("<LL", 2**31, 2**31)), (b"data.pkl", struct.pack("<LL", 2**30, 2**30))):
        raw = bytearray(path.read_bytes())
        at = raw.rfind(old) - 46  # the entry's record in the directory: compressed and whole size at 20
        while raw[at : at + 4] != b"PK\1\2":
            at -= 1
        raw[at + 20 : at + 28] = new
        (tmp_path / "claims.ckpt").write_bytes(raw)
        assert "claims" in make.refused(tmp_path / "claims.ckpt")


def tensor_of(count, size, stride, numbers=4, kind="FloatStorage"):
    """The pickle of one tensor, whose storage of ``count`` numbers is the file's only one."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", getattr(torch, kind), "0", "cpu", count) if isinstance(obj, Storage) else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, size, stride, False, None)

    out = io.BytesIO()
    Pickler(out, 2).dump({"a": Tensor()})
    return {"a/data.pkl": out.getvalue(), "a/byteorder": b"little", "a/data/0": bytes(4 * numbers), "a/version": b"3\n"}


LIES = {
    "a storage that is larger than its entry": (tensor_of(2**40, (4,), (1,)), "is said to have"),
    "a tensor beyond its storage": (tensor_of(4, (5,), (1,)), "beyond its storage"),
    "a tensor of few numbers, a million million times": (tensor_of(4, (2**20, 2**20), (0, 0)), "on a storage of"),
    "negative sizes": (tensor_of(4, (-2,), (1,)), "no whole numbers"),
    "sizes of no numbers": (tensor_of(4, ("x",), (1,)), "no whole numbers"),
    "more sizes than steps": (tensor_of(4, (2, 2), (1,)), "without a shape"),
}


@pytest.mark.parametrize("name", LIES)
def test_tensors_that_are_not_in_the_file(make, tmp_path, name):
    content, words = LIES[name]
    assert words in make.refused(packed(tmp_path / "lies.ckpt", content))


def nested(opening, closing, depth):
    return b"\x80\x02" + opening * depth + closing * depth + b"."


PICKLES = {
    "nested deeply": nested(b"]", b"a", 5000)[:-2] + b".",
    "a key nested deeply": b"\x80\x02}" + b")" + b"\x85" * 10**5 + b"Ns.",
    "a list that contains itself": b"\x80\x02]q\0h\0a.",
    "a list that unfolds without end": b"\x80\x02]q\0"
    + b"".join(
        b"]r" + struct.pack("<I", n) + b"(j" + struct.pack("<I", n - 1) + b"j" + struct.pack("<I", n - 1) + b"e"
        for n in range(1, 60)
    )
    + b".",
    "bytes by their number": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xffx.",
    "an integer of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a name from two numbers": b"\x80\x04K\x01K\x02\x93.",
    "a name computed": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "a name by way of the memo": b"\x80\x04\x8c\x06system\x94\x8c\x05posix\x94h\x01h\0\x93\x8c\x04true\x85R.",
    "a class of Python 2": b"(S'true'\nios\nsystem\n.",
    "a class by OBJ": b"\x80\x02(cos\nsystem\nX\x04\0\0\0trueo.",
    "getattr": b"\x80\x02c__builtin__\ngetattr\nctorch._utils\n_rebuild_parameter\nX\x0b\0\0\0__globals__\x86R.",
    "getattr of a message buffer": b"\x80\x02c__builtin__\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\n"
    b"X\x08\0\0\0__init__\x86R.",
    "a constant that is called": b"\x80\x02ctorch\nfloat32\n)R.",
    "a state for a class": b"\x80\x02ccollections\nOrderedDict\n}X\x01\0\0\0aNsb.",
    "rebuild of a type": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n)R.",
    "numpy objects": b"\x80\x02cnumpy\ndtype\nX\x02\0\0\0O8\x89\x88\x87R.",
    "an array larger than its bytes": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\xff\xff\xff\x7f\x85"
    b"cnumpy\ndtype\nX\x02\0\0\0f8\x85R\x89C\x08\0\0\0\0\0\0\0\0tb.",
    "no end": b"\x80\x02]",
    "nothing on the stack": b"\x80\x02.",
    "marks without end": b"(" * 10**6,
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_of_no_checkpoint(make, tmp_path, name):
    content = {**tensor_of(4, (4,), (1,)), "a/data.pkl": PICKLES[name]}
    started = time.monotonic()
    line = make.refused(packed(tmp_path / "odd.ckpt", content))
    assert time.monotonic() - started < 10
    if "name" in name or "class" in name or "getattr" in name or "rebuild" in name:
        assert "contains code" in line or "cannot be read" in line
    (tmp_path / "plain.ckpt").write_bytes(PICKLES[name])
    make.refused(tmp_path / "plain.ckpt")


def header(tensors, length=None):
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "a header longer than the file": header({"a": ENTRY}, 2**62),
    "a header longer than any": header(b"{" + b" " * 2**25 + b"}"),
    "a name twice": header(b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2)) + bytes(8),
    "offsets that overlap": header({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}) + bytes(12),
    "offsets behind the end": header({"a": {**ENTRY, "data_offsets": [0, 2**40]}}) + bytes(8),
    "a shape larger than its bytes": header({"a": {**ENTRY, "shape": [2**40]}}) + bytes(8),
    "no table": header(b'{"a": 1}') + bytes(8),
    "nested deeply": header(b'{"a":' * 10**5),
    "an unknown type": header({"a": {**ENTRY, "dtype": "X9"}}) + bytes(8),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_no_safetensors(make, tmp_path, name):
    for suffix in ("safetensors", "ckpt"):
        (tmp_path / f"odd.{suffix}").write_bytes(HEADERS[name])
        assert "no safetensors file" in make.refused(tmp_path / f"odd.{suffix}")


def test_a_flipped_byte_anywhere_is_noticed(tmp_path):
    torch.save({"state_dict": {"a": torch.arange(50.0)}}, tmp_path / "a.ckpt")
    raw = (tmp_path / "a.ckpt").read_bytes()
    weights = read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["a"].clone()
    refused = 0
    for at in range(0, len(raw), 7):
        (tmp_path / "b.ckpt").write_bytes(raw[:at] + bytes([raw[at] ^ 64]) + raw[at + 1 :])
        try:
            assert torch.equal(read_checkpoint(tmp_path / "b.ckpt")["state_dict"]["a"], weights), at
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 60


def test_numpy_values_and_message_buffers_come_as_they_were(tmp_path):
    from mmengine.logging import HistoryBuffer

    from segmentation.checkpoint import load_from_file

    buffer = HistoryBuffer([1.0, 2.5], [1, 3], 7)
    values = {
        "f": np.float64(2.5),
        "i": np.int64(3),
        "b": np.bool_(True),
        "a": np.arange(6.0).reshape(2, 3).T,
        "t": np.array(["x", "yz"]),
        "c": 1 + 2j,
        "s": {1, "a"},
        "n": b"\x00\xff",
    }
    content = {"state_dict": {"a": torch.ones(1)}, "values": values, "message_hub": {"log_scalars": {"loss": buffer}}}
    for protocol in (2, 3, 4, 5):
        torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol)
        read = load_from_file(str(tmp_path / "a.pth"))
        found = read["message_hub"]["log_scalars"]["loss"]
        assert type(found) is HistoryBuffer and found.max_length == 7
        assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(found.data, buffer.data, strict=True))
        assert found.statistics("mean") == buffer.statistics("mean")
        for key, value in values.items():
            assert np.array_equal(read["values"][key], value) and type(read["values"][key]) is type(value), key


def test_checksums_may_be_absent(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(4.0)}, tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert zlib.crc32(b"") == 0 and torch.equal(read_state_dict(tmp_path / "a.ckpt")["a"], torch.arange(4.0))
