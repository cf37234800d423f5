"""A corpus of malicious or damaged weight files, which `read_weights.py` reads."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save

EITHER, READ = ("refused", "read"), ("read",)
GOOD = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)}


class Hostile(NamedTuple):
    """A file, and the acceptable outcomes of reading it: "refused" or "read"."""

    kind: str
    suffix: str
    content: bytes
    expected: tuple[str, ...] = ("refused",)


# Pieces of pickles


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def weights(value: bytes, key: bytes = text("w")) -> bytes:
    return b"\x80\x02}" + key + value + b"s."


def named_call(path: str, *arguments: bytes) -> bytes:
    return name(path) + b"(" + b"".join(arguments) + b"tR"


# Layouts


def plain(payload: bytes) -> bytes:
    return payload


def legacy(payload: bytes, keys: tuple[str, ...] = (), data: bytes = b"") -> bytes:
    start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    pickles = b"".join(pickle.dumps(value, 2) for value in start)
    return pickles + payload + pickle.dumps(list(keys), 2) + data


def inner(payload: bytes) -> bytes:
    return weights(named_call("torch.storage._load_from_bytes", raw(legacy(payload))))


def archive(
    payload: bytes, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as target:
        target.writestr("x/data.pkl", payload)
        for file, content in (records or {}).items():
            target.writestr(f"x/{file}", content)
    return stream.getvalue()


LAYOUTS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": (".pkl", plain),
    "legacy": (".pth", legacy),
    "inner": (".pkl", inner),
    "zip": (".pth", archive),
}


def everywhere(kind: str, payload: bytes) -> Iterator[Hostile]:
    for layout, (suffix, wrap) in LAYOUTS.items():
        yield Hostile(f"{kind}, {layout}", suffix, wrap(payload))


# Kinds


def code() -> Iterator[Hostile]:
    """Names of code instead of data, used in every way that a pickle can use a name."""
    names = [
        *("os.system", "builtins.eval", "builtins.getattr", "__builtin__.apply"),
        *("torch.load", "torch.hub.load", "numpy.load", "pickle.loads", "torch.Tensor.set_"),
        *("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor"),
        *("torch._utils._rebuild_device_tensor_from_numpy", "torch.nn.parameter.Parameter"),
        *("collections.OrderedDict.update", "copyreg._reconstructor", "numpy.lib.format.read"),
    ]
    for path in names:
        uses = {
            "named": name(path),
            "called": named_call(path, text("true")),
            "made": name(path) + b"(tR" + b"}b",
            "changed": name(path) + b"}" + text("x") + b"K\x01sb",
            "late": text(path.rpartition(".")[0]) + text(path.rpartition(".")[2]) + b"\x93",
        }
        for use, value in uses.items():
            yield from everywhere(f"code {use}", weights(value))


def changed_names() -> Iterator[Hostile]:
    """The BUILD opcode applied to allowed names, which could modify torch's own functions."""
    known = [
        *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"),
        *("numpy.dtype", "numpy.ndarray", "collections.OrderedDict", "torch.FloatStorage"),
        *("torch.storage._load_from_bytes", "_codecs.encode", "torch.Size"),
    ]
    for path in known:
        state = b"N}" + text("__defaults__") + b")s\x86"
        yield from everywhere("a known name changed", weights(name(path) + state + b"b"))


def dtypes() -> Iterator[Hostile]:
    codes = [
        *("O", "O8", "|O", "(3,)f8", "i4,f4", "S5", "U3", "V8", "M8[s]", "m8", "f16", "c8", "c16"),
        *("", "f", "float64", "f8,", "3f8", "(2,2)i4", "f4" * 400),
    ]
    for spelled in ("<f8", *codes):
        dtype = named_call("numpy.dtype", text(spelled), b"\x89\x88")
        data = raw(b"\x01" * 64)
        start = named_call(
            "numpy._core.multiarray._reconstruct", name("numpy.ndarray"), numbers(0), text("b")
        )
        made = {
            "scalar": named_call("numpy._core.multiarray.scalar", dtype, raw(b"\x01" * 8)),
            "array": start + b"(K\x01" + numbers(8) + dtype + b"\x89" + data + b"tb",
            "buffer": named_call(
                "numpy._core.numeric._frombuffer", data, dtype, numbers(8), text("C")
            ),
        }
        for use, value in made.items():
            for layout in ("plain", "zip"):
                suffix, wrap = LAYOUTS[layout]
                expected = READ if spelled == "<f8" else ("refused",)
                kind = f"dtype of a {use}, {layout}"
                yield Hostile(kind, suffix, wrap(weights(value)), expected)


def arrays() -> Iterator[Hostile]:
    dtype = named_call("numpy.dtype", text("f8"), b"\x89\x88")
    for shape in (numbers(9), numbers(-1), numbers(1 << 62, 4), numbers(*[1] * 70), text("x")):
        for data in (raw(b"\0" * 64), text("x"), b"K\x01", b"]"):
            value = named_call("numpy._core.numeric._frombuffer", data, dtype, shape, text("C"))
            yield Hostile("shape of an array", ".pkl", weights(value))
    forged = dtype + b"(K\x03" + text("<") + named_call("numpy.dtype", text("f8")) + b"NNK\x08tb"
    scalar = named_call("numpy._core.multiarray.scalar", forged, raw(b"A" * 128))
    yield from everywhere("forged dtype", weights(scalar))
    unfilled = named_call("numpy._core.multiarray._reconstruct", b"K\x01")
    yield from everywhere("array without numbers", weights(unfilled))


def keys() -> Iterator[Hostile]:
    yield from everywhere("number alone", weights(b"K\x01"))
    wrong = {
        "tuple": b"K\x01\x85",
        "nested tuple": b")" + b"\x85" * 20,
        "doubled tuple": b")" + b"2\x86" * 25,
        "none": b"N",
        "bool": b"\x88",
        "float": b"G" + struct.pack(">d", 0.5),
        "bytes": raw(b"w"),
        "list": b"]",
        "large number": number((1 << 61) - 1),
        "long text": text("w" * 5000),
        "name": name("numpy.dtype"),
    }
    for what, key in wrong.items():
        yield from everywhere(f"{what} as a key", weights(b"K\x01", key))


def bombs() -> Iterator[Hostile]:
    pairs = b"\x80\x02" + b"]q\x00(" + (text("a") + b"K\x01\x86") * 9000 + b"e0"
    copies = (name("collections.OrderedDict") + b"h\x00\x85R0") * 5000
    encoded = text("e" * 50_000) + b"q\x000" + name("_codecs.encode") + b"(h\x00"
    again = encoded + text("latin1") + b"tR0" + named_call("_codecs.encode", b"h\x00", b"h\x00")
    buffers = raw(b"\0" * 80_000) + b"q\x000" + named_call("numpy.dtype", text("f8")) + b"q\x010"
    shown = buffers + b"]("
    shown += b"".join(
        named_call("numpy._core.numeric._frombuffer", b"h\x00h\x01", numbers(10_000), text("C"))
        for _ in range(2000)
    )
    payloads = {
        "memo of 2^27": b"\x80\x02Nr" + struct.pack("<I", 1 << 27) + b".",
        "doubled tuple": b"\x80\x02)" + b"2\x86" * 40 + b".",
        "300,000 nested tuples": b"\x80\x02)" + b"\x85" * 300_000 + b".",
        "nested lists": b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
        "nested mappings": b"\x80\x02" + (b"}" + text("a")) * 9000 + b"N" + b"s" * 9000 + b".",
        "list in itself": b"\x80\x02]q\x00h\x00a.",
        "chain of lists": b"\x80\x02]q\x00]q\x01ah\x01]a0.",
        "bytearray of 2^33": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"x.",
        "bytes of 2^40": b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        "text of 2^60": b"\x80\x05\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
        "text of 2^32": b"\x80\x02X\xff\xff\xff\xffx.",
        "number of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
        "negative length": b"\x80\x02T\xff\xff\xff\xffx.",
        "number of 10^6 digits": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
        "line without end": b"\x80\x02c" + b"a" * 300_000,
        "frame of 2^60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        "800,000 values": b"\x80\x02" + b"N" * 800_000 + b".",
        "mappings copied": pairs + copies + b"N.",
        "bytes encoded": b"\x80\x02" + again + b".",
        "numbers shown often": b"\x80\x02" + shown + b"e.",
        "marks": b"\x80\x02" + b"(" * 400_000 + b"t" * 400_000 + b".",
        "nothing to pop": b"\x80\x02" + b"0" * 10 + b".",
        "extensions": b"\x80\x02\x82\x01.",
        "out of band": b"\x80\x05\x97\x98.",
    }
    for what, payload in payloads.items():
        yield from everywhere(what, payload)


def opcodes() -> Iterator[Hostile]:
    """Every opcode, on an empty stack and on a stack with values."""
    for opcode in range(256):
        yield Hostile("opcode alone", ".pkl", bytes([opcode]), EITHER)
        stack = b"\x80\x02}N)(K\x01" + bytes([opcode]) + b"\x01\x00\x00\x00\x00\x00\x00\x00\n\n."
        yield Hostile("opcode on values", ".pkl", stack, EITHER)


def storages() -> Iterator[Hostile]:
    """Tensors that reach outside, overlap themselves, or misdescribe their storage."""

    def identity(
        kind: str = "storage", dtype: str = "torch.FloatStorage", key: bytes = text("0"), count=4
    ) -> bytes:
        return text(kind) + name(dtype) + key + text("cpu") + number(count)

    def view(storage: bytes, offset: bytes, size: bytes, stride: bytes) -> bytes:
        return named_call(
            "torch._utils._rebuild_tensor_v2", storage, offset, size, stride, b"\x89}"
        )

    def all_layouts(
        what: str,
        make: Callable[[bytes], bytes],
        fields: bytes,
        expected: tuple[str, ...] = ("refused",),
    ) -> Iterator[Hostile]:
        payload = weights(make(b"(" + fields + b"tQ"))
        yield Hostile(f"{what}, zip", ".pth", archive(payload, {"data/0": b"\0" * 16}), expected)
        old = b"(" + fields + b"NtQ"
        data = struct.pack("<q", 4) + b"\0" * 16
        yield Hostile(f"{what}, legacy", ".pth", legacy(weights(make(old)), ("0",), data), expected)
        storage = legacy(b"\x80\x02" + old + b".", ("0",), data)
        loaded = named_call("torch.storage._load_from_bytes", raw(storage))
        yield Hostile(f"{what}, inner", ".pkl", weights(make(loaded)), expected)

    zero = number(0)
    good = numbers(2, 2), numbers(2, 1)
    yield from all_layouts("tensor inside", lambda s: view(s, zero, *good), identity(), READ)
    views = {
        "outside": (number(2), numbers(3), numbers(1)),
        "far outside": (number(1 << 40), numbers(1), numbers(1)),
        "before": (number(-1), numbers(1), numbers(1)),
        "3e9 of stride 0": (zero, numbers(3 * 10**9), numbers(0)),
        "1e12 of stride 0": (zero, numbers(10**6, 10**6), numbers(0, 0)),
        "overlapping": (zero, numbers(3, 10**9), numbers(1, 0)),
        "negative size": (zero, numbers(-4), numbers(1)),
        "negative stride": (number(3), numbers(4), numbers(-1)),
        "huge size": (zero, numbers(1 << 70), numbers(0)),
        "wrapping size": (zero, numbers(1 << 32, 1 << 32), numbers(0, 0)),
        "1,000 dimensions": (zero, numbers(*[1] * 1000), numbers(*[1] * 1000)),
        "other strides than sizes": (zero, numbers(2), numbers(1, 1)),
        "sizes of text": (zero, text("22"), numbers(1, 1)),
        "offset of nothing": (b"N", numbers(2), numbers(1)),
    }
    for what, (offset, size, stride) in views.items():
        yield from all_layouts(
            f"tensor {what}", lambda s, o=offset, n=size, t=stride: view(s, o, n, t), identity()
        )
    identities = {
        "module": identity(kind="module"),
        "quantised": identity(dtype="torch.QInt8Storage"),
        "complex": identity(dtype="torch.ComplexFloatStorage"),
        "another name": identity(dtype="numpy.ndarray"),
        "negative count": identity(count=-4),
        "count of 2^40": identity(count=1 << 40),
        "count of 2^61": identity(count=1 << 61),
        "other count": identity(count=5),
        "nested key": identity(key=b")" + b"2\x86" * 25),
        "key outside": identity(key=text("../../data.pkl")),
        "absent key": identity(key=text("9")),
    }
    for what, fields in identities.items():
        yield from all_layouts(
            f"storage {what}", lambda s: view(s, zero, numbers(4), numbers(1)), fields
        )
    whole = b"(" + identity() + b"tQ"
    # Each view is small, but together they would take too much memory.
    many = b"\x80\x02}(" + b"".join(
        text(str(index)) + view(whole, zero, numbers(100_000), numbers(0)) for index in range(500)
    )
    yield Hostile("many views", ".pth", archive(many + b"u.", {"data/0": b"\0" * 16}))


def archives() -> Iterator[Hostile]:
    good = io.BytesIO()
    torch.save(GOOD, good)
    with zipfile.ZipFile(good) as source:
        payload = next(source.read(n) for n in source.namelist() if n.endswith("data.pkl"))
    records = {"data/0": bytes(24), "data/1": bytes(32)}
    yield Hostile("archive compressed", ".pth", archive(payload, records, zipfile.ZIP_DEFLATED))
    bomb = archive(payload, records | {"data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    yield Hostile("archive bomb", ".pth", bomb)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield Hostile("archive of another method", ".pth", archive(payload, records, method))
    yield Hostile("archive as it should be", ".pth", archive(payload, records), READ)
    unnamed = archive(payload).replace(b"data.pkl", b"data.pk_")
    yield Hostile("archive without pickle", ".pth", unnamed)
    for what, changes in {
        "of a big-endian": {"byteorder": b"big"},
        "with two pickles": {"y/data.pkl": payload},
        "of short records": {"data/0": b""},
    }.items():
        yield Hostile(f"archive {what}", ".pth", archive(payload, records | changes))
    yield Hostile("archive lacks a record", ".pth", archive(payload, {"data/0": bytes(24)}))
    whole = archive(payload, records)
    end = whole.rindex(b"PK\x05\x06")
    for field, value in ((8, b"\xff\xff"), (12, b"\xff\xff\xff\x7f"), (16, b"\xff\xff\xff\x7f")):
        changed = whole[: end + field] + value + whole[end + field + len(value) :]
        yield Hostile("archive with a false end", ".pth", changed, EITHER)
    entry = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, *[0] * 6) + b"a"
    )
    directory = entry * 200_000
    closing = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 4, 0)
    yield Hostile("archive of 200,000 files", ".pth", b"PK\x03\x04" + directory + closing)
    for offset in (20, 24):  # the directory's fields for the compressed and the uncompressed size
        for size in (1 << 30, 0xFFFFFFFE):
            at = whole.index(b"PK\x01\x02") + offset
            changed = whole[:at] + struct.pack("<L", size) + whole[at + 4 :]
            yield Hostile("archive with a false size", ".pth", changed)


def safetensors() -> Iterator[Hostile]:
    def file(header: str, data: bytes = bytes(8), length: int | None = None) -> Hostile:
        encoded = header.encode()
        start = struct.pack("<Q", len(encoded) if length is None else length)
        return Hostile("safetensors", ".safetensors", start + encoded + data)

    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    yield file(f'{{"w":{entry}}}', length=1 << 63)
    yield file(f'{{"w":{entry}}}', length=(1 << 64) - 1)
    yield file(f'{{"w":{entry}}}', length=3)
    yield file(" " * (5 << 20) + f'{{"w":{entry}}}')
    yield file("[" * 100_000)
    yield file('{"w":' * 100_000)
    yield file(f'{{"w":{entry}}}', data=b"")
    yield file(f'{{"w":{entry},"v":{entry}}}')
    for shape in (
        "[3]",
        "[-2]",
        "[4611686018427387905,2]",
        "[1e9]",
        '["2"]',
        "2",
        "[9" + "9" * 400 + "]",
    ):
        yield file(f'{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,8]}}}}')
    for shape in ("[0,9223372036854775808]", "[18446744073709551615,0]"):
        empty = f'{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}'
        yield file(empty, data=b"")
    for offsets in ("[0,16]", "[8,0]", "[-8,0]", "[4,12]", "[0]", "[0,18446744073709551615]"):
        yield file(f'{{"w":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}')
    for dtype in ("O8", "", "f4", "F32" * 1000):
        yield file(f'{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,8]}}}}')


def mutated() -> Iterator[Hostile]:
    """Good files, truncated or with changed bytes."""
    rng = random.Random(0)
    for suffix, good in good_files():
        for _ in range(15):
            cut = good[: rng.randrange(len(good))]
            yield Hostile(f"cut, {suffix}", suffix, cut)
        for _ in range(40):
            changed = bytearray(good)
            for _ in range(rng.choice((1, 1, 3))):
                changed[rng.randrange(len(good))] = rng.randrange(256)
            yield Hostile(f"changed, {suffix}", suffix, bytes(changed), EITHER)


def good_files() -> list[tuple[str, bytes]]:
    """The same weights in every layout."""
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"model": GOOD}, new)
    torch.save({"model": GOOD}, old, _use_new_zipfile_serialization=False)
    arrays = {name: tensor.numpy() for name, tensor in GOOD.items()}
    return [
        (".pth", new.getvalue()),
        (".pth", old.getvalue()),
        (".pkl", pickle.dumps({"model": arrays, "best": np.float64(0.5)})),
        (".pkl", pickle.dumps({"model": GOOD}, protocol=2)),
        (".safetensors", save(GOOD)),
    ]


def corpus() -> Iterator[Hostile]:
    for kind in (
        *(code, changed_names, dtypes, arrays, keys, bombs, opcodes, storages, archives),
        *(safetensors, mutated),
    ):
        yield from kind()
