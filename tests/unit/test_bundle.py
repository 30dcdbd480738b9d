"""Bundles are packed in one process and loaded in another that never saw the script."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hyperopt import hp

from hyperfarm import bundle as bundle_module
from hyperfarm.bundle import Bundle, load, pack, sign, unpack, verify
from hyperfarm.errors import BundleError, BundleRefused

SECRET = b"0123456789abcdef"

LOADER = """
import sys, json
from pathlib import Path
from hyperfarm.bundle import load, unpack
for place in sys.argv[2:]:
    folder = unpack(Path(place).read_bytes(), Path(sys.argv[1]))
    objective = load(folder)
    print(json.dumps([objective.fn(3), objective.pass_expr_memo_ctrl]))
"""

PRELUDE = """
import sys
from pathlib import Path
from hyperopt import hp
from hyperfarm.bundle import pack
SPACE = hp.uniform("x", -1, 1)
def ship(name, fn, **options):
    bundle = pack(fn, SPACE, **options)
    Path(OUT, name + ".zip").write_bytes(bundle.content)
    print(name, bundle.revision, bundle.name)
"""


def run(code: list[str], cwd: Path, *, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHASHSEED"}}
    done = subprocess.run(
        [sys.executable, *code], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=120
    )
    assert not check or done.returncode == 0, done.stderr
    return done


class Project:
    """A user's folder: pack from it, then take it away and load elsewhere."""

    def __init__(self, root: Path) -> None:
        self.root, self.out, self.host = root / "project", root / "out", root / "host"
        for folder in (self.root, self.out, self.host):
            folder.mkdir()

    def write(self, **files: str) -> None:
        """`pkg__sub_py=...` would be unreadable: names use `/` through write(**{"pkg/sub.py": ...})."""
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(textwrap.dedent(text))

    def pack(self, script: str, *, check: bool = True, flags: tuple[str, ...] = (), **env: str) -> str:
        prelude = PRELUDE.replace("OUT", repr(str(self.out)))
        (self.root / "script.py").write_text(prelude + textwrap.dedent(script))
        done = run([*flags, "script.py"], self.root, check=check, **env)
        return done.stdout if check else done.stdout + done.stderr

    def load(self, *names: str, check: bool = True) -> Any:
        hidden = self.root.rename(self.root.with_name("taken_away"))
        try:
            places = [str(self.out / f"{name}.zip") for name in names]
            done = run(["-I", "-c", LOADER, str(self.host), *places], self.host, check=check)
        finally:
            hidden.rename(self.root)
        if not check:
            return done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def files(self, name: str) -> set[str]:
        with zipfile.ZipFile(self.out / f"{name}.zip") as archive:
            return {n.removeprefix("src/") for n in archive.namelist() if n.startswith("src/")}

    def manifest(self, name: str) -> dict[str, Any]:
        with zipfile.ZipFile(self.out / f"{name}.zip") as archive:
            manifest: dict[str, Any] = json.loads(archive.read("manifest.json"))
            return manifest


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


KINDS = """
import dataclasses, functools
from helper import shift
FACTOR = 2
def plain(x): return FACTOR * shift(x)
def with_argument(x, *, power, add=0): return x ** power + add
def make(k):
    def inner(x): return shift(x) * k
    return inner
def traced(fn):
    @functools.wraps(fn)
    def wrapper(x): return fn(x) + 1000
    return wrapper
@traced
def decorated(x): return FACTOR * x
@functools.lru_cache(maxsize=7)
def cached(x): return x + FACTOR
class Scaled:
    def __init__(self, k): self.k = k
    def method(self, x): return self.k * shift(x)
    def __call__(self, x): return self.k + shift(x)
    @classmethod
    def of_class(cls, x): return cls(5).method(x)
    @staticmethod
    def static(x): return shift(x) - 1
class Base:
    def value(self): return 1
class Derived(Base):
    def __init__(self, x): self.x = x
    def value(self): return super().value() + self.x
@dataclasses.dataclass(frozen=True)
class Config:
    k: int = 4
    def __call__(self, x): return self.k * x
def uses_class(x): return Derived(x).value()
def uses_cached(x): return cached(x)
ALL = {
    "plain": plain, "lambda": lambda x: shift(x) + FACTOR, "closure": make(7),
    "partial": functools.partial(with_argument, power=2),
    "nested": functools.partial(functools.partial(with_argument, power=3), add=1),
    "method": Scaled(3).method, "callable": Scaled(3), "classmethod": Scaled.of_class,
    "static": Scaled.static, "decorated": decorated, "uses_class": uses_class,
    "dataclass": Config(), "uses_cached": uses_cached, "partial_of_method": functools.partial(Scaled(2).method),
}
"""
EXPECTED = {
    "plain": 206, "lambda": 105, "closure": 721, "partial": 9, "nested": 28, "method": 309, "callable": 106,
    "classmethod": 515, "static": 102, "decorated": 1006, "uses_class": 4, "dataclass": 12, "uses_cached": 5,
    "partial_of_method": 206,
}  # fmt: skip


@pytest.mark.parametrize("where", ["main", "module"])
def test_every_kind_of_callable_travels(project: Project, where: str) -> None:
    project.write(**{"helper.py": "def shift(x): return x + 100\n", "kinds.py": KINDS})
    start = KINDS if where == "main" else "from kinds import ALL\n"
    printed = project.pack(start + "for name, fn in ALL.items(): ship(name, fn)\n")
    loaded = project.load(*EXPECTED)
    assert dict(zip(EXPECTED, [value for value, _ in loaded], strict=True)) == EXPECTED
    assert len({line.split()[1] for line in printed.splitlines()}) == len(EXPECTED)
    home = "__main__" if where == "main" else "kinds"
    assert f"{home}:Scaled.method" in printed
    assert ("kinds.py" in project.files("plain")) == (where == "module")


TREE = {
    "lib/__init__.py": "",
    "lib/deep/__init__.py": "from ..near import NEAR\n",
    "lib/deep/leaf.py": "from . import sibling\nimport outside\nVALUE = sibling.VALUE + outside.VALUE\n",
    "lib/deep/sibling.py": "VALUE = 10\n",
    "lib/near.py": "NEAR = 1\n",
    "lib/unused_plugin.py": "import json\n",
    "lib/settings.json": '{"k": 1000}',
    "lib/__pycache__/x.py": "",
    "lib/.hidden/x.py": "",
    "lib/env/pyvenv.cfg": "",
    "lib/env/x.py": "",
    "outside.py": "VALUE = 100\n",
    "lazy.py": "def go(x):\n    import lazier\n    return lazier.K * x\n",
    "lazier.py": "K = 2\n",
    "space/part/one.py": "ONE = 5\n",
    "stranger.py": "raise RuntimeError('must never be imported')\n",
    "random_user.py": "",
}


def test_modules_travel_as_files_and_lazy_imports_work(project: Project) -> None:
    project.write(**TREE)
    project.pack(
        """
        import lib.deep.leaf
        def objective(x):
            import json, pathlib, sklearn
            from lazy import go
            from space.part import one
            k = json.loads((pathlib.Path(lib.__file__).parent / "settings.json").read_text())["k"]
            return go(x) + one.ONE + lib.deep.leaf.VALUE + lib.deep.NEAR + k
        if __name__ == "__main__":
            ship("tree", objective, pass_expr_memo_ctrl=True)
        """
    )
    assert project.load("tree") == [[6 + 5 + 110 + 1 + 1000, True]]
    assert project.files("tree") == {
        "lib/__init__.py", "lib/deep/__init__.py", "lib/deep/leaf.py", "lib/deep/sibling.py", "lib/near.py",
        "lib/unused_plugin.py", "lib/settings.json", "outside.py", "lazy.py", "lazier.py", "space/part/one.py",
    }  # fmt: skip
    packages = project.manifest("tree")["packages"]
    assert {"hyperopt", "numpy", "cloudpickle", "hyperfarm", "scikit-learn"} <= set(packages)


def test_a_script_run_as_a_module_keeps_its_relative_imports(project: Project) -> None:
    project.write(**{"app/__init__.py": "", "app/util.py": "K = 4\n"})
    body = """
from .util import K
def objective(x):
    from . import util
    here = Path(__file__).parent
    return x * K * util.K + int((here / "near.txt").read_text()) + int((here / "data/far.txt").read_text())
ship("app", objective, include=[Path("data")])
"""
    project.write(**{"app/train.py": PRELUDE.replace("OUT", repr(str(project.out))) + body})
    project.write(**{"app/near.txt": "100", "app/data/far.txt": "1000"})
    run(["-m", "app.train"], project.root)
    assert project.load("app") == [[1148, None]]


def test_interactive_code_without_a_file(project: Project) -> None:
    project.write(**{"helper.py": "K = 4\n", "lazy.py": "K = 5\n"})
    text = PRELUDE.replace("OUT", repr(str(project.out)))
    text += "import helper\ndef f(x):\n    from lazy import K\n    return x * helper.K * K\nship('repl', f)\n"
    run(["-c", text], project.root)
    assert project.load("repl") == [[60, None]]


def test_a_users_module_may_be_called_like_anything(project: Project) -> None:
    project.write(**{"worker.py": "K = 2\n", "analysis.py": "K = 3\n", "yaml.py": "K = 5\n"})
    (project.host / "worker.py").write_text("K = 1000\n")
    project.pack("import worker, analysis, yaml\nship('x', lambda x: worker.K * analysis.K * yaml.K)\n")
    assert project.load("x") == [[30, None]]


def test_included_files_lie_beside_the_script(project: Project) -> None:
    project.write(
        **{"data/table.csv": "7", "plugins/extra.py": "import dep\nK = dep.K\n", "dep.py": "K = 6\n"}
    )
    project.pack(
        """
        import importlib
        def objective(x):
            table = Path(__file__).parent / "data" / "table.csv"
            return int(table.read_text()) * importlib.import_module("plug" + "ins.extra").K
        ship("x", objective, include=[Path("data"), Path("plugins/extra.py")])
        """
    )
    assert project.load("x") == [[42, None]]
    assert project.files("x") == {"data/table.csv", "plugins/extra.py", "dep.py"}


def test_the_script_is_never_run_again(project: Project) -> None:
    ran = project.out / "ran"
    project.pack(
        f"with open({str(ran)!r}, 'a') as file: file.write('once')\n"
        "def objective(x): return __name__\nship('x', objective)\n"
    )
    assert project.load("x") == [["__main__", None]]
    assert ran.read_text() == "once"


def test_symbols_of_the_users_space_travel(project: Project) -> None:
    project.pack(
        """
        from hyperopt.pyll import scope
        @scope.define
        def doubled(x): return 2 * x
        SPACE = scope.doubled(21)
        ship("x", lambda x: x)
        """
    )
    code = LOADER + "\nfrom hyperopt.pyll import rec_eval\nprint(rec_eval(objective.space))\n"
    done = run(["-I", "-c", code, str(project.host), str(project.out / "x.zip")], project.host)
    assert done.stdout.splitlines()[-1] == "42"


UNPICKLABLE = {
    "lock": ("threading.Lock()", "_thread.lock"),
    "file": ("open('script.py')", "_io.TextIOWrapper"),
    "binary": ("open('script.py', 'rb')", "_io.BufferedReader"),
    "socket": ("socket.socket()", "socket.socket"),
    "generator": ("(n for n in range(3))", "generator"),
    "client": ("pymongo.MongoClient(connect=False)", "pymongo.synchronous.mongo_client.MongoClient"),
    "thread": ("threading.Thread()", "threading.Thread"),
}


def test_what_cannot_be_pickled_is_named(project: Project) -> None:
    lines = ["import threading, socket, pymongo, functools"]
    for name, (text, _) in UNPICKLABLE.items():
        lines.append(f"g_{name} = {text}\ndef f_{name}(x): return g_{name}")
    lines.append(
        """
def make(held):
    def inner(x): return held
    return inner
def default(x, lock=g_lock): return lock
def taking(held, x, *, other=None): return x
def indirect(x): return f_lock(x)
class Holder:
    def __init__(self, lock): self.lock = lock
    def __call__(self, x): return x
checks = dict(closure=make(g_lock), default=default, positional=functools.partial(taking, g_lock),
    keyword=functools.partial(taking, 1, other={'deep': [g_lock]}), indirect=indirect, holder=Holder(g_lock))
checks.update({k: v for k, v in globals().items() if k.startswith('f_')})
for name, fn in checks.items():
    try: ship(name, fn)
    except Exception as exc: print(name, type(exc).__name__, exc, sep='|')
"""
    )
    printed = project.pack("\n".join(lines))
    told = {line.split("|")[0]: line for line in printed.splitlines()}
    for name, (_, kind) in UNPICKLABLE.items():
        line = told[f"f_{name}"]
        assert (
            f"BundleError|The objective cannot be sent to the workers: global variable 'g_{name}' of" in line
        )
        assert f"function 'f_{name}' holds a {kind}" in line
        assert "Create it inside the objective." in line
    assert "closure variable 'held' of function 'make.<locals>.inner' holds a _thread.lock" in told["closure"]
    assert "default of argument 'lock' of function 'default'" in told["default"]
    assert "argument 1 of the partial of taking holds a _thread.lock" in told["positional"]
    assert "argument 'other' of the partial of taking holds a dict (in it, item 0 is" in told["keyword"]
    assert "global variable 'g_lock' of function 'f_lock'" in told["indirect"]
    assert "attribute 'lock' of __main__.Holder holds a _thread.lock" in told["holder"]


def test_a_bundle_that_is_too_large_names_the_largest(project: Project) -> None:
    printed = project.pack(
        """
        import numpy
        big, small = numpy.zeros(9_000_000), numpy.zeros(1000)
        def inner(x): return big[0] + small[0]
        ship("x", lambda x: inner(x))
        """,
        check=False,
    )
    assert "BundleError: The objective and its files are over the 64 MB" in printed
    assert (
        "largest: global variable 'big' of function 'inner' (over 64.0 MB), global variable 'small'"
        in printed
    )


def test_files_that_are_too_large_are_named(project: Project) -> None:
    (project.root / "big.bin").write_bytes(bytes(70 << 20))
    printed = project.pack("ship('x', lambda x: x, include=[Path('big.bin')])", check=False)
    assert "largest: file big.bin (over 70.0 MB)" in printed


def test_a_missing_package_is_named_with_its_version(project: Project) -> None:
    project.write(**{"helper.py": "import sklearn.datasets\n"})
    project.pack("import helper\ndef f(x): return helper\nship('x', f)")
    version = project.manifest("x")["packages"]["scikit-learn"]
    loader = "import sys; sys.modules['sklearn'] = None\n" + LOADER
    done = run(["-I", "-c", loader, str(project.host), str(project.out / "x.zip")], project.host, check=False)
    assert f"which is missing on this host: install scikit-learn=={version}" in done.stderr


def test_a_module_of_the_user_that_fails_is_named(project: Project) -> None:
    project.write(
        **{"helper.py": "import os\nif os.getcwd().endswith('host'): raise OSError('no data here')\n"}
    )
    project.pack("import helper\ndef f(x): return helper\nship('x', f)")
    assert "BundleError: The objective __main__:f cannot be loaded: OSError: no data here" in project.load(
        "x", check=False
    )


def test_a_module_found_only_at_run_time_is_named(project: Project) -> None:
    project.write(
        **{"helper.py": "import importlib\nimportlib.import_module('un' + 'seen')\n", "unseen.py": ""}
    )
    project.pack("import helper\ndef f(x): return helper\nship('x', f)")
    told = project.load("x", check=False)
    assert "needs module unseen, which is missing on this host" in told
    assert "pass it with include=" in told


def test_a_module_without_a_file_is_refused(project: Project) -> None:
    code = "import types; sys.modules['made'] = made = types.ModuleType('made')\n"
    assert "uses module made, which has no source file" in project.pack(
        code + "ship('x', lambda x: made)\n", check=False
    )


def revisions(printed: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in printed.splitlines()}


SCRIPT = KINDS + "RATES = {'b', 'a', 'c'}\ndef rated(x): return RATES\nALL['rated'] = rated\n"


def test_the_revision_is_the_same_in_every_process(project: Project) -> None:
    project.write(**{"helper.py": "def shift(x): return x + 100\n"})
    packing = "SPACE = {'x': SPACE, 'y': hp.choice('y', [plain, {'q', 'r', 's'}])}\n"
    packing += "for name, fn in ALL.items(): ship(name, fn)\n"
    first = revisions(project.pack(SCRIPT + packing, PYTHONHASHSEED="1"))
    again = revisions(
        project.pack("# A comment.\n" + SCRIPT + packing + "unrelated = 1\n", PYTHONHASHSEED="2")
    )
    assert first == again
    assert len(first) == 15


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (("x + 100", "x + 101"), "helper.py"),
        (("FACTOR = 2", "FACTOR = 3"), "script.py"),
        (("make(7)", "make(8)"), "script.py"),
        (("FACTOR * shift(x)", "FACTOR - shift(x)"), "script.py"),
        (("power=2", "power=4"), "script.py"),
        (("-1, 1", "-1, 2"), "space"),
    ],
)
def test_the_revision_changes_with_what_it_covers(
    project: Project, change: tuple[str, str], file: str
) -> None:
    helper = "def shift(x): return x + 100\n"
    packing = "SPACE = hp.uniform('x', -1, 1)\nfor n in ('plain', 'closure', 'partial'): ship(n, ALL[n])\n"
    project.write(**{"helper.py": helper})
    before = revisions(project.pack(KINDS + packing))
    project.write(**{"helper.py": helper.replace(*change)})
    after = revisions(project.pack((KINDS + packing).replace(*change)))
    changed = {name for name in before if before[name] != after[name]}
    expected = {"FACTOR": {"plain"}, "make(": {"closure"}, "power": {"partial"}}
    assert changed == next((v for k, v in expected.items() if change[0].startswith(k)), set(before))


def objective(x: float) -> float:
    return x


def small_bundle(**options: Any) -> Bundle:
    return pack(objective, hp.uniform("x", 0, 1), **options)


def test_the_zip_is_deterministic() -> None:
    first, second = small_bundle(), small_bundle()
    assert first.content == second.content
    assert first.revision != small_bundle(pass_expr_memo_ctrl=True).revision
    assert first.python == sys.version_info[:2]
    assert first.name.endswith("test_bundle:objective")


def test_a_signature_covers_content_experiment_and_revision() -> None:
    bundle = small_bundle()
    signature = sign(SECRET, bundle.content, "exp", bundle.revision)
    verify(SECRET, bundle.content, "exp", bundle.revision, signature)
    swapped = small_bundle(pass_expr_memo_ctrl=False)
    for secret, content, exp_key, revision, given in [
        (b"other", bundle.content, "exp", bundle.revision, signature),
        (SECRET, bundle.content + b"x", "exp", bundle.revision, signature),
        (SECRET, swapped.content, "exp", bundle.revision, signature),
        (SECRET, bundle.content, "other", bundle.revision, signature),
        (SECRET, bundle.content, None, bundle.revision, signature),
        (SECRET, bundle.content, "exp", swapped.revision, signature),
        (SECRET, bundle.content, "exp", bundle.revision, "é" + signature),
    ]:
        with pytest.raises(BundleRefused, match="altered, belongs to another experiment"):
            verify(secret, content, exp_key, revision, given)
    for nothing in ("", None):
        with pytest.raises(BundleRefused, match="not signed"):
            verify(SECRET, bundle.content, "exp", bundle.revision, nothing)
    with pytest.raises(BundleRefused, match="another revision"):
        verify(SECRET, bundle.content, "e", "0" * 64, sign(SECRET, bundle.content, "e", "0" * 64))
    assert sign(SECRET, b"ab", "c", "d") != sign(SECRET, b"a", "bc", "d")
    assert sign(SECRET, b"a\1b", "c", "d") != sign(SECRET, b"a", "b\1c", "d")
    assert sign(SECRET, b"a", None, "d") != sign(SECRET, b"a", "", "d")
    with pytest.raises(BundleError, match="secret is empty"):
        sign(b"", b"", None, "")


def test_unpacking_is_repeated_only_where_it_is_damaged(tmp_path: Path) -> None:
    bundle = small_bundle()
    target = unpack(bundle.content, tmp_path)
    assert target == tmp_path / bundle.revision
    stamp = (target / "objective.pkl").stat().st_mtime_ns
    assert unpack(bundle.content, tmp_path) == target
    assert (target / "objective.pkl").stat().st_mtime_ns == stamp
    (target / "objective.pkl").write_bytes(b"")
    unpack(bundle.content, tmp_path)
    assert load(target).fn(3) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == [bundle.revision]


def test_many_unpack_at_once(tmp_path: Path) -> None:
    bundle, failures = small_bundle(), []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        try:
            for _ in range(10):
                unpack(bundle.content, tmp_path)
        except Exception as exc:  # noqa: BLE001
            failures.append(exc)

    (tmp_path / bundle.revision / "objective.pkl").mkdir(parents=True)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [entry.name for entry in tmp_path.iterdir()] == [bundle.revision]


def forged(name: str, revision: str = "a" * 64) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"format": 1, "revision": revision, "sizes": {name: 1}}))
        archive.writestr(name, "x")
    return file.getvalue()


@pytest.mark.parametrize("name", ["../evil", "/evil", "src/../../evil", "src\\..\\evil", "C:evil"])
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="unsafe name"):
        unpack(forged(name), tmp_path / "in")
    assert not list(tmp_path.rglob("*evil*"))


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        unpack(b"junk", tmp_path)
    with pytest.raises(BundleError, match="no valid revision"):
        unpack(forged("x", revision="../../x"), tmp_path)


def test_verify_and_unpack_never_unpickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = small_bundle()
    for module in (pickle, bundle_module.cloudpickle):
        monkeypatch.setattr(module, "loads", lambda data: pytest.fail("unpickled"))
    signature = sign(SECRET, bundle.content, None, bundle.revision)
    verify(SECRET, bundle.content, None, bundle.revision, signature)
    unpack(bundle.content, tmp_path)


def test_a_missing_include_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no file or folder .*nowhere to include"):
        small_bundle(include=[Path("nowhere")], script=None)


def test_a_script_given_by_path_is_read_and_searched(tmp_path: Path) -> None:
    (tmp_path / "script_u.py").write_text("import helper_u, absent_u\nraise SystemExit\n")
    (tmp_path / "helper_u.py").write_text("")
    content = small_bundle(script=tmp_path / "script_u.py").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert "src/helper_u.py" in archive.namelist()
        assert "src/script_u.py" not in archive.namelist()
