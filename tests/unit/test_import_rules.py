"""Who may import whom (docs/architecture.md), and that starting up stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROLES = ("controller", "worker", "deploy", "analysis")
CORE = sorted((ROOT / "hyperfarm").glob("*.py"))
FACADES = {"__init__.py", "api.py", "cli.py", "trials.py", "mongo_trials.py", "mongoexp.py", "templates.py"}
MONGO_FILES = {
    "store.py",
    "queries.py",
    "foreign_jobs.py",
    "mongo_jobs.py",
    "mongo_trials.py",
    "blobs.py",
    "garbage.py",
    "mongo.py",
    "indexes.py",
    "embedded.py",
    "mongod_fetch.py",
}
SSH_FILES = {"connection.py", "fleet.py"}
"""These are about SSH and nothing else: they import it when they are loaded, and are themselves loaded late."""
HEAVY = {  # Where each may be imported, inside a function: in a role or in some files.
    "pssh": "deploy",
    "gevent": "deploy",
    "ssh2": "deploy",
    "matplotlib": "analysis",
    "mpl_toolkits": "analysis",
    "optuna": "controller",
    "lightgbm": "controller",
    "sklearn": "controller",
    "tensorflow": "nobody",
    "keras": "keras_callback.py template_models.py",
}


def imports(file: Path, *, top_only: bool = False) -> list[str]:
    """The modules that a file imports; with `top_only`, those imported when it is loaded."""
    tree = ast.parse(file.read_text())
    checked = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    skipped = {id(inner) for node in checked for inner in ast.walk(node)}
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.append(node.module)
    return found


def role_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "hyperfarm" and len(parts) > 1 and parts[1] in ROLES else None


@pytest.mark.parametrize("file", CORE, ids=lambda file: file.name)
def test_the_core_does_not_import_roles(file):
    late = file.name in FACADES
    used = {role_of(module) for module in imports(file, top_only=late)} - {None}
    assert not used, f"{file.name} imports {used}"


@pytest.mark.parametrize("role", ROLES)
def test_roles_import_the_core_and_themselves_only(role):
    for file in (ROOT / role).glob("*.py"):
        used = {role_of(module) for module in imports(file)} - {None, role}
        assert not used, f"{file} imports {used}"
        assert not {module.split(".")[0] for module in imports(file)} & set(ROLES), (
            f"{file}: say hyperfarm.{role}"
        )


def test_only_the_stores_files_speak_to_mongodb():
    for file in [*CORE, *(path for role in ROLES for path in (ROOT / role).glob("*.py"))]:
        used = {module.split(".")[0] for module in imports(file)} & {"pymongo", "gridfs", "bson"}
        assert not used or file.name in MONGO_FILES, f"{file} imports {used}"


def test_heavy_libraries_stay_where_they_belong_and_are_imported_late():
    for file in [*CORE, *(path for role in ROLES for path in (ROOT / role).glob("*.py"))]:
        for module in imports(file):
            home = HEAVY.get(module.split(".")[0])
            assert home is None or {file.parent.name, file.name} & set(home.split()), (
                f"{file} imports {module}"
            )
        for module in imports(file, top_only=True) if file.name not in SSH_FILES else []:
            assert module.split(".")[0] not in HEAVY, f"{file} imports {module} when it is loaded"


def test_no_file_of_analysis_shadows_a_library():
    """Its scripts are run as files, which puts their folder first on the path."""
    for file in (ROOT / "analysis").glob("*.py"):
        assert file.stem not in sys.stdlib_module_names
        probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({file.stem!r}) is not None)"
        subprocess.run([sys.executable, "-I", "-c", probe], check=True)


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import hyperfarm.cli", {"hyperopt", "pymongo", "rich", "numpy"}),
        ("import hyperfarm", {"hyperopt", "pymongo", "numpy"}),
        ("from hyperfarm import trial", {"hyperopt", "pymongo", "numpy"}),
        ("import hyperfarm.keras_callback", {"hyperopt", "pymongo", "numpy", "keras"}),
        ("import hyperfarm.deploy.commands", {"pssh", "gevent", "ssh2", "pymongo", "hyperopt", "numpy"}),
        ("import hyperfarm.deploy.reach", {"pssh", "gevent", "ssh2"}),
        ("import hyperfarm.worker.child", {"pymongo", "bson", "hyperopt", "numpy"}),
        ("from hyperfarm import minimize, hp, MongoTrials", {"matplotlib", "tensorflow", "keras", "pssh"}),
    ],
)
def test_starting_up_loads_little(code, unwanted):
    probe = f"import sys; {code}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & unwanted


def test_hyperopt_is_imported_without_its_slowest_library_and_finds_it_when_needed():
    probe = """
import sys
from hyperfarm.hyperopt_import import import_hyperopt
import_hyperopt()
assert "hyperopt" in sys.modules and "scipy.stats" not in sys.modules
assert abs(sys.modules["hyperopt"].atpe.scipy.stats.norm.cdf(0.0) - 0.5) < 1e-12
from scipy.stats import norm
from hyperopt.rdists import loguniform_gen
import hyperfarm.worker.child
"""
    subprocess.run([sys.executable, "-c", probe], check=True)
