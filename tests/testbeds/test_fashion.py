"""Fashion-MNIST is read as published, and its absence is explained."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.fashion import needs_fashion

from outlay.errors import DependencyError, InputError
from outlay.testbeds import fashion


def idx(path: Path, array: np.ndarray) -> Path:
    """Write an IDX file, element by element."""
    data = bytes([0, 0, 8, array.ndim])
    for n in array.shape:
        data += n.to_bytes(4, "big")
    path.write_bytes(gzip.compress(data + bytes(array.flatten().tolist())))
    return path


def test_an_idx_file_comes_back_as_written(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    found = fashion.read_idx(idx(tmp_path / "a.gz", array))
    assert found.dtype == np.uint8
    assert np.array_equal(found, array)


@needs_fashion
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_every_label_has_a_tenth_of_the_pictures(split: fashion.Split, count: int) -> None:
    pictures, labels = fashion.images(split)
    assert pictures.shape == (count, 28, 28)
    assert pictures.dtype == np.uint8
    assert np.bincount(labels).tolist() == [count // 10] * len(fashion.GARMENTS)
    assert pictures.max() == 255


@needs_fashion
def test_splits_share_no_picture() -> None:
    hashes = [
        {hashlib.md5(picture.tobytes()).digest() for picture in fashion.images(split)[0]}
        for split in ("train", "test")
    ]
    assert not hashes[0] & hashes[1]


@needs_fashion
def test_a_split_is_read_once_and_cannot_be_written_to() -> None:
    first, labels = fashion.images("test")
    assert fashion.images("test")[0] is first
    for array in (first, labels):
        with pytest.raises(ValueError):
            array[0] = 0


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    fashion._read_split.cache_clear()
    assert not fashion.installed()
    with pytest.raises(DependencyError, match="apt-get install dataset-fashion-mnist"):
        fashion.images("train")


def test_unknown_splits_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split='dev'"):
        fashion.images("dev")  # type: ignore[arg-type]
    path = idx(tmp_path / "a.gz", np.zeros((2, 3), np.uint8))
    short = tmp_path / "short.gz"
    short.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(InputError, match=r"announces shape \(2, 3\) and holds 5 bytes"):
        fashion.read_idx(short)
    short.write_bytes(gzip.compress(b"\0\0\x0d\x01"))
    with pytest.raises(InputError, match="no IDX file of unsigned bytes"):
        fashion.read_idx(short)
    short.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(InputError, match="cannot be unpacked"):
        fashion.read_idx(short)


def test_reading_needs_no_torch() -> None:
    code = "import sys, outlay.testbeds.fashion; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
