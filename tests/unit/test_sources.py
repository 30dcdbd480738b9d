"""Which of the user's files are found, by reading alone."""

from __future__ import annotations

import gc
import os
import sys
import sysconfig
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from hyperfarm.errors import BundleError
from hyperfarm.sources import (
    DATA_LIMIT_BYTES,
    Import,
    Sources,
    find_sources,
    imports_of_code,
    imports_of_source,
    is_own,
)


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def find(root: Path, *modules: str, optional: bool = False) -> Sources:
    return find_sources(imports=[Import(module=m, optional=optional) for m in modules], folder=root)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b as c, d", [("a.b", ()), ("d", ())]),
        ("from a import b, c", [("a", ("b", "c"))]),
        ("from . import x", [("pkg.sub", ("x",))]),
        ("from ..near import *", [("pkg.near", ("*",))]),
        ("from ....far import x", []),
        ("def f():\n class C:\n  async def g(self):\n   import a", [("a", ())]),
        ("import importlib\nimportlib.import_module('a.b')", [("importlib", ()), ("a.b", ())]),
        ("import_module('.c', __package__)", [("pkg.sub.c", ())]),
        ("__import__('a')", [("a", ())]),
        ("import_module(name)", []),
        ("if TYPE_CHECKING:\n import a\nelse:\n import b", [("b", ())]),
        ("if typing.TYPE_CHECKING:\n import a\nif x:\n import b", [("b", ())]),
        ("match x:\n case 1:\n  import a", [("a", ())]),
        ("# -*- coding: latin-1 -*-\nimport a", [("a", ())]),
        ("print 'Python 2'", []),
    ],
)
def test_imports_are_read_from_source(source: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    assert [(i.module, i.names) for i in imports_of_source(source, "pkg.sub")] == expected


def test_imports_in_a_guarded_try_are_optional() -> None:
    source = (
        "try:\n import a\nexcept (ImportError, OSError):\n import b\ntry:\n import c\nexcept KeyError:\n 0"
    )
    assert {i.module: i.optional for i in imports_of_source(source, "")} == {
        "a": True,
        "b": False,
        "c": False,
    }


def test_imports_are_read_from_code() -> None:
    source = (
        "import a.b\nfrom . import x\nfrom ..y import z\ndef f():\n    from c import d, e\n    return [d]"
    )
    found = imports_of_code(compile(source, "<text>", "exec"), "pkg.sub")
    assert [(i.module, i.names) for i in found] == [
        ("a.b", ()),
        ("pkg.sub", ("x",)),
        ("pkg.y", ("z",)),
        ("c", ("d", "e")),
    ]


def test_code_with_hundreds_of_names_is_read() -> None:
    source = "\n".join(f"from m{n} import n{n}" for n in range(400))
    assert len(imports_of_code(compile(source, "<text>", "exec"), "")) == 400


def test_whose_file_it_is(tmp_path: Path) -> None:
    assert is_own(tmp_path / "mine.py")
    assert not is_own(os.__file__)
    assert not is_own(pytest.__file__)
    assert not is_own(Path(sysconfig.get_paths()["purelib"]) / "x.py")
    assert not is_own(tmp_path / "dist-packages" / "x.py")


def test_imports_are_followed_without_running_anything(tmp_path: Path) -> None:
    write(
        tmp_path,
        **{
            "one_u.py": "import two_u\nraise SystemExit",
            "two_u.py": "import one_u, json, numpy.linalg, hyperopt, not_there_u\nfrom ns_u.a import b, value",
            "ns_u/a/b.py": "import three_u",
            "ns_u/a/__init__.py": "",
            "three_u.py": "def f():\n import sklearn.svm",
            "alone_u.py": "",
        },
    )
    before = set(sys.modules)
    sources = find(tmp_path, "one_u")
    assert list(sources.files) == ["ns_u/a/__init__.py", "ns_u/a/b.py", "one_u.py", "three_u.py", "two_u.py"]
    assert sources.foreign == {"numpy", "sklearn"}
    assert not {name for name in set(sys.modules) - before if name.endswith("_u")}


def test_a_package_travels_as_a_whole_with_small_data(tmp_path: Path) -> None:
    files = {"__init__.py": "", "a/b/c.py": "", "words.txt": "w", "run.log": "", ".secret": "", "x.pyc": ""}
    write(tmp_path, **{f"pack_u/{name}": text for name, text in files.items()})
    write(tmp_path, **{"pack_u/site-packages/x.py": "", "pack_u/conda/conda-meta/x.json": ""})
    assert set(find(tmp_path, "pack_u").files) == {
        "pack_u/__init__.py",
        "pack_u/a/b/c.py",
        "pack_u/words.txt",
    }
    (tmp_path / "pack_u" / "weights.bin").write_bytes(bytes(DATA_LIMIT_BYTES))
    assert set(find(tmp_path, "pack_u.a").files) == {"pack_u/__init__.py", "pack_u/a/b/c.py"}


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path, **{"real/leaf.py": "", "pack_u/__init__.py": "", "elsewhere/mod.py": "K = 1"})
    (tmp_path / "pack_u" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "pack_u" / "circle").symlink_to(tmp_path / "pack_u")
    (tmp_path / "mod_u.py").symlink_to(tmp_path / "elsewhere" / "mod.py")
    files = find(tmp_path, "pack_u", "mod_u").files
    assert set(files) == {"pack_u/__init__.py", "pack_u/linked/leaf.py", "mod_u.py"}
    assert files["mod_u.py"] == b"K = 1"


def test_compiled_modules_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, **{f"fast_u{EXTENSION_SUFFIXES[0]}": "", f"pack_u/inner{EXTENSION_SUFFIXES[0]}": ""})
    write(tmp_path, **{"pack_u/__init__.py": "from . import inner"})
    with pytest.raises(BundleError, match=r"Module fast_u is compiled .* install it as a package"):
        find(tmp_path, "fast_u")
    with pytest.raises(BundleError, match=r"Module pack_u\.inner is compiled"):
        find(tmp_path, "pack_u")
    write(
        tmp_path, **{"pack_u/__init__.py": "try:\n from . import inner\nexcept ImportError:\n inner = None"}
    )
    assert set(find(tmp_path, "pack_u").files) == {"pack_u/__init__.py"}
    assert find(tmp_path, "fast_u", optional=True).files == {}


def test_zipped_modules_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("zipped_u.py", "")
        archive.writestr("zpack_u/__init__.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "code.zip"))
    for name in ("zipped_u", "zpack_u"):
        with pytest.raises(BundleError, match=f"Module {name} is in a zip file"):
            find(tmp_path, name)


def test_site_packages_stay_and_editable_installs_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, **{"site-packages/installed_u.py": "", "checkout/src/edit_u/__init__.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    monkeypatch.syspath_prepend(str(tmp_path / "checkout" / "src"))
    sources = find(tmp_path, "installed_u", "edit_u", "hyperfarm", "os")
    assert set(sources.files) == {"edit_u/__init__.py"}
    assert sources.foreign == {"installed_u"}


def test_a_module_that_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="uses module nowhere_u, which has no source file"):
        find_sources(modules=["nowhere_u.x"], folder=tmp_path)
    assert find_sources(modules=["os", "sys", "__main__", "hyperfarm.errors"], folder=tmp_path).files == {}


def test_what_is_included(tmp_path: Path) -> None:
    write(tmp_path / "home", **{"data/a.csv": "1", "data/.b": "", "plug.py": "import dep_u", "dep_u.py": ""})
    write(tmp_path, **{"away/c/d.txt": ""})
    include = [Path("data"), tmp_path / "home" / "plug.py", Path("../away/c")]
    files = find_sources(include=include, folder=tmp_path / "home").files
    assert set(files) == {"data/a.csv", "plug.py", "dep_u.py", "c/d.txt"}
    with pytest.raises(BundleError, match="no file or folder nowhere to include"):
        find_sources(include=[Path("nowhere")], folder=tmp_path)


def test_several_threads_read_at_once() -> None:
    text = "import one_u\n" + "x = [y + (1, 2, {3: x}) for y in x if x]\n" * 60
    thresholds = gc.get_threshold()

    def another_thread_comes_in(*_: object) -> None:
        time.sleep(0.0001)

    gc.callbacks.append(another_thread_comes_in)
    gc.set_threshold(200, 1000, 1000)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: imports_of_source(text, ""), range(12)))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(another_thread_comes_in)
    assert found == [[Import(module="one_u")]] * 12
