"""Weight files: nothing pickled in them is ever run, and what is wrong with them is said."""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from maskformer import MaskFormer
from maskformer.weights.files import read_tensors, write_tensors
from maskformer.weights.safe_pickle.unpickle import read_pickle


class Attack:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def attacks(target: Path) -> list[Any]:
    command = f"touch {target}"
    return [
        Attack(os.system, command),
        Attack(exec, f"open({str(target)!r}, 'w')"),
        Attack(open, str(target), "w"),
        Attack(getattr, "text", "upper"),
        Attack(np.load, str(target), None, True),
        Attack(torch.load, str(target)),
        Attack(builtins.__import__, "os"),
        np.array([Attack(os.system, command)], dtype=object),
        nn.Linear(1, 1),
        argparse.ArgumentParser,
    ]


class TestPickle:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("number", range(10))
    def test_code_is_refused(self, number: int, protocol: int, tmp_path: Path) -> None:
        target, file = tmp_path / "created", tmp_path / "model.pkl"
        values = {"model": {"weight": np.zeros(2, np.float32), "x": attacks(target)[number]}}
        file.write_bytes(pickle.dumps(values, protocol=protocol))
        with pytest.raises(
            ValueError, match=r"cannot be loaded safely: it (names .*, which is code|holds)"
        ):
            MaskFormer.from_pretrained(file)
        assert not target.exists()

    def test_the_attack_works_elsewhere(self, tmp_path: Path) -> None:
        pickle.loads(pickle.dumps(attacks(tmp_path / "created")[0]))
        assert (tmp_path / "created").exists()

    @pytest.mark.parametrize(
        "stream",
        [
            b"cos\nsystem\n(S'true'\ntR.",
            b"cbuiltins\neval\n(S'1'\ntR.",
            b"cnumpy\nload\n(S'x'\ntR.",
            b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
            b"cnumpy\ndtype\n(S'O'\ntR.",
            b"cnumpy\ndtype\n(I1\ntR.",
            b"\x8c\x05numpy\x8c\x0adtype.type\x93.",
        ],
    )
    def test_hand_made_streams(self, stream: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.pkl").write_bytes(stream)
        with pytest.raises(ValueError, match=r"cannot be loaded safely|truncated or damaged"):
            read_pickle(tmp_path / "x.pkl")

    def test_a_dtype_cannot_be_made_another(self, tmp_path: Path) -> None:
        """NumPy itself would take the flags, and read numbers as pointers to objects."""
        state = b"(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb"
        fill = (
            b"(I1\n(I1\nt" + b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR" + state + b"I00\nS'AAAAAAAA'\ntb."
        )
        start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        (tmp_path / "x.pkl").write_bytes(start + fill)
        array = read_pickle(tmp_path / "x.pkl")
        assert array.dtype == np.float64
        assert not array.dtype.hasobject

    def test_named_things_cannot_be_changed(self, tmp_path: Path) -> None:
        """Neither with attributes of `numpy.dtype` nor with those of what stands for it here."""
        (tmp_path / "x.pkl").write_bytes(b"cnumpy\ndtype\n(dS'mark'\nI1\nsb.")
        with pytest.raises(ValueError, match=r"cannot be loaded safely: it changes numpy\.dtype"):
            read_pickle(tmp_path / "x.pkl")
        assert not hasattr(np.dtype, "mark")

    @settings(deadline=None)  # the machine may be busy
    @given(
        array=hnp.arrays(
            st.sampled_from(["<f4", ">f4", "<f8", "<f2", "<i8", "|u1", "|b1", "<i4"]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
        fortran=st.booleans(),
    )
    def test_arrays_come_back(
        self, array: Any, protocol: int, fortran: bool, tmp_path_factory: Any
    ) -> None:
        if fortran:
            array = np.asfortranarray(array)
        file = tmp_path_factory.mktemp("arrays") / "a.pkl"
        values = {
            "array": array,
            "scalar": array.dtype.type(1),
            "text": "é",
            "list": [1, (2.5, None)],
        }
        file.write_bytes(pickle.dumps(values, protocol=protocol))
        found = read_pickle(file)
        assert found["array"].dtype == pickle.loads(pickle.dumps(array, protocol)).dtype
        np.testing.assert_array_equal(found["array"], array)
        assert found["scalar"] == 1
        assert (found["text"], found["list"]) == ("é", [1, (2.5, None)])
        weights = read_tensors_of({"model": {"array": array}}, file)
        np.testing.assert_array_equal(weights["array"].numpy(), array)

    def test_python_2(self, tmp_path: Path) -> None:
        """Raw bytes in a text string, and the old module name, as the files of 2018 have them."""
        stream = (
            b"(dS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
            b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
            b"I00\nS'\\x00\\x00\\x80?\\x00\\x00\\x80\\xbf'\ntbs."
        )
        (tmp_path / "old.pkl").write_bytes(stream)
        assert read_pickle(tmp_path / "old.pkl")["w"].tolist() == [1.0, -1.0]

    def test_tensors(self, tmp_path: Path) -> None:
        weight = torch.arange(12.0).reshape(3, 4)
        state = OrderedDict(a=weight.T, b=weight[1:, ::2], c=nn.Parameter(weight).detach().half())
        (tmp_path / "t.pkl").write_bytes(pickle.dumps({"model": state}))
        found = read_tensors(tmp_path / "t.pkl")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], value) for name, value in state.items())

    def test_tensor_outside_its_storage(self, tmp_path: Path) -> None:
        weight = torch.zeros(4)
        stream = io.BytesIO()
        pickle.dump(weight.as_strided((2,), (3,)), stream, protocol=2)
        changed = stream.getvalue().replace(b"K\x03\x85", b"K\x7f\x85")
        assert changed != stream.getvalue()
        (tmp_path / "t.pkl").write_bytes(changed)
        with pytest.raises(ValueError, match="reaches outside its storage"):
            read_pickle(tmp_path / "t.pkl")

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
    def test_truncated(self, share: float, tmp_path: Path) -> None:
        data = pickle.dumps({"model": {"w": np.zeros(1000, np.float32)}})
        file = tmp_path / "cut.pkl"
        file.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=r"cut\.pkl \([\d,]+ bytes\) is truncated or damaged"):
            MaskFormer.from_pretrained(file)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([1, 2], "holds a list; expected a mapping of names to weights"),
            ({"model": {}}, "holds no weights"),
            ({"blobs": "text"}, r"holds no weights; its entries are \['blobs'\]"),
        ],
    )
    def test_no_weights(self, values: Any, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            read_tensors_of(values, tmp_path / "x.pkl")


class TestTorchFiles:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_refused(self, zipped: bool, tmp_path: Path) -> None:
        target, file = tmp_path / "created", tmp_path / "model.pth"
        values = {"model": {"w": torch.zeros(2), "x": Attack(os.system, f"touch {target}")}}
        torch.save(values, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            ValueError, match=r"cannot be loaded safely: it names \w+\.system, which is code"
        ):
            MaskFormer.from_pretrained(file)
        assert not target.exists()

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("length", [0, 10, 1000, -100])
    def test_truncated(self, length: int, zipped: bool, tmp_path: Path) -> None:
        file = tmp_path / "model.pth"
        torch.save({"w": torch.zeros(3000)}, file, _use_new_zipfile_serialization=zipped)
        file.write_bytes(file.read_bytes()[:length])
        with pytest.raises(ValueError, match="is truncated or damaged"):
            MaskFormer.from_pretrained(file)

    def test_training_checkpoints(self, tmp_path: Path) -> None:
        values = {
            "state_dict": {"w": torch.ones(2), "steps": 3},
            "args": argparse.Namespace(lr=1.0),
            "best": np.float64(0.5),
        }
        torch.save(values, tmp_path / "model.pth")
        assert read_tensors(tmp_path / "model.pth").keys() == {"w"}
        values["model_ema"] = {"w": torch.zeros(2)}
        torch.save(values, tmp_path / "model.pth")
        assert not read_tensors(tmp_path / "model.pth")["w"].any()

    def test_unreadable(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"holds no none\.pth"):
            read_tensors(tmp_path / "none.pth")


def read_tensors_of(values: Any, file: Path) -> dict[str, torch.Tensor]:
    file.write_bytes(pickle.dumps(values))
    return read_tensors(file)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "model.safetensors", {"weight": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "code"), [("fsync", errno.EINVAL), ("fsync", errno.EOPNOTSUPP), ("chmod", errno.EPERM)]
)
def test_file_systems_that_know_neither_permissions_nor_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, refused)
    write_tensors(tmp_path / "x.safetensors", {"w": torch.ones(2)})
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["w"], torch.ones(2))


def test_what_fsync_says_of_the_disk_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="the disk is broken"):
        write_tensors(tmp_path / "x.safetensors", {"w": torch.ones(2)})
    assert not list(tmp_path.iterdir())
