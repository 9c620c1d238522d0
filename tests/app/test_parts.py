"""Settings, libraries, owners of files and texts of the web page."""

import string

import pytest

from emo_jax.app.owners import Owners
from emo_jax.app.settings import Library, Settings, read_logins
from emo_jax.app.texts import TEXTS, language


def test_logins_are_read_and_bad_files_refused(tmp_path):
    (tmp_path / "a").write_text("# people\nada:se:cret\n\nbob:x\n")
    assert read_logins(tmp_path / "a") == (("ada", "se:cret"), ("bob", "x"))
    for text in ("", "# nobody\n", "ada\n", ":x\n"):
        (tmp_path / "a").write_text(text)
        with pytest.raises(ValueError, match="auth"):
            read_logins(tmp_path / "a")
    with pytest.raises(ValueError, match="auth"):
        read_logins(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [dict(max_seconds=0), dict(portraits="/nowhere"), dict(port=70000), dict(max_size=-1), dict(max_size=5000)],
)
def test_settings_are_checked(change):
    with pytest.raises(ValueError, match=next(iter(change)).replace("_", "[-_]")):
        Settings(**change)


def test_library_opens_only_what_it_lists(tmp_path):
    for name in ("B.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_text("")
    library = Library(tmp_path, (".png", ".jpg"))
    assert library.names() == ["B.png", "a.JPG"] and library.names(" b") == ["B.png"]
    assert library.path("B.png") == tmp_path / "B.png"
    for name in ("notes.txt", "../B.png", "../../etc/passwd", str(tmp_path / "B.png"), ""):
        with pytest.raises(ValueError, match="choose"):
            library.path(name)


def test_files_are_read_by_who_sent_them(tmp_path):
    owners = Owners()
    owners.add(str(tmp_path / "a"), "ada")
    assert owners.may_read(str(tmp_path / "x" / ".." / "a"), "ada")
    assert not owners.may_read(str(tmp_path / "a"), "bob") and not owners.may_read(str(tmp_path / "a"), "")
    assert owners.may_read(str(tmp_path / "b"), "bob")


def test_both_languages_have_the_same_texts_and_fields():
    def fields(text):
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert set(TEXTS["en"]) == set(TEXTS["zh"])
    assert all(fields(TEXTS["en"][key]) == fields(TEXTS["zh"][key]) for key in TEXTS["en"])
    headers = {"zh-CN,zh;q=0.9,en;q=0.8": "zh", "en-US,zh;q=0.5": "en", "fr, zh": "zh", "de": "en", None: "en"}
    assert {header: language(header) for header in headers} == headers
