import pytest

from crossdistill.files import make_folder, write_whole


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "é")
    assert path.read_bytes() == "é".encode()
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half" + "\ud800")
    assert path.read_text(encoding="utf-8") == "é"


def test_a_folder_keeps_what_it_has(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / ".gitignore").read_text() == "*\n"
    (tmp_path / "a" / "b" / ".gitignore").write_text("mine")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / ".gitignore").read_text() == "mine"
