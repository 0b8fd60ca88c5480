"""Reading user files: what is accepted, what is refused, and what the refusal says."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.errors import InputError
from outlay.files import decode, language_of, read_text

SAMPLE = "naïve = 'zażółć'\n"


@pytest.mark.parametrize(
    ("codec", "used"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-32", "utf-32"),
    ],
)
def test_marked_encodings_are_recognised(tmp_path, codec, used):
    path = tmp_path / "a.txt"
    path.write_bytes(SAMPLE.encode(codec))
    file = read_text(path)
    assert (file.text, file.encoding, file.language) == (SAMPLE, used, "")
    assert file.size == path.stat().st_size


def test_big_endian_mark_is_recognised():
    data = b"\xfe\xff" + "text".encode("utf-16-be")
    assert decode(data, "x") == ("text", "utf-16")


def test_python_coding_cookie_decides(tmp_path):
    path = tmp_path / "old.py"
    path.write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    file = read_text(path)
    assert "é" in file.text
    assert file.encoding == "iso-8859-1"
    assert file.language == "python"


def test_cookie_is_ignored_outside_python(tmp_path):
    path = tmp_path / "old.txt"
    path.write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    with pytest.raises(InputError, match="encoding="):
        read_text(path)


def test_unknown_cookie_is_named(tmp_path):
    path = tmp_path / "odd.py"
    path.write_bytes(b"# coding: klingon\nx = 1\n")
    with pytest.raises(InputError, match=r"odd\.py.*offset 0.*klingon.*encoding="):
        read_text(path)


def test_undecodable_file_names_file_offset_and_knob(tmp_path):
    path = tmp_path / "latin.py"
    path.write_bytes(b"x = 'caf\xe9'\n")
    with pytest.raises(InputError, match=r"latin\.py.*byte offset 8.*encoding="):
        read_text(path)
    assert read_text(path, encoding="latin-1").text == "x = 'café'\n"


def test_binary_file_is_refused_with_offset(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc\x00def")
    with pytest.raises(InputError, match=r"a\.bin is binary.*offset 3"):
        read_text(path)


def test_utf16_without_mark_needs_the_knob():
    data = "hello".encode("utf-16-le")
    with pytest.raises(InputError, match="encoding='utf-16'"):
        decode(data, "x")
    assert decode(data, "x", encoding="utf-16-le")[0] == "hello"


@pytest.mark.parametrize("data", [b"", b"  \n\t\n"])
def test_empty_and_blank_files_are_refused(data):
    with pytest.raises(InputError, match=r"nothing\.txt"):
        decode(data, "nothing.txt")


def test_too_large_file_is_refused_with_both_sizes(tmp_path):
    path = tmp_path / "big.txt"
    path.write_bytes(b"x" * 11)
    with pytest.raises(InputError, match=r"11 bytes.*max_bytes=10"):
        read_text(path, max_bytes=10)
    assert read_text(path, max_bytes=11).size == 11


@pytest.mark.parametrize("limit", [0, -1, True, 1.5])
def test_bad_limit_is_refused(tmp_path, limit):
    with pytest.raises(InputError, match="max_bytes"):
        read_text(tmp_path / "a", max_bytes=limit)


@pytest.mark.parametrize("codec", ["klingon", "hex", "a\0b"])
def test_unknown_codec_is_refused(codec):
    with pytest.raises(InputError, match="encoding="):
        decode(b"abc", "x", encoding=codec)


def test_missing_folder_and_odd_path_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_text("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="not a regular file"):
        read_text(tmp_path / "pipe.txt")


def test_language_comes_from_the_extension():
    assert language_of("a/B.PY") == "python"
    assert language_of("x.tsx") == "tsx"
    assert language_of("README.md") == ""


@given(st.text(min_size=1).filter(lambda t: t.strip() and "\0" not in t and "\ufeff" not in t))
def test_utf8_text_round_trips(text):
    assert decode(text.encode("utf-8"), "x") == (text, "utf-8")


@given(st.binary(min_size=1, max_size=60))
def test_any_bytes_decode_or_raise_input_error(data):
    for python in (False, True):
        try:
            text, _ = decode(data, "x", python=python)
        except InputError:
            continue
        assert text.strip()


def test_reading_files_needs_no_heavy_library():
    code = "import sys, outlay.files; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
