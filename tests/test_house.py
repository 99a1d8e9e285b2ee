"""The house rules that a machine can keep: public names, layers, privacy, dependencies, light imports, docstrings."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rgtg_logits

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rgtg_logits"
DISTRIBUTIONS = {"yaml": "pyyaml"}
"""Where a distribution has another name than the module that is imported."""
EXTRAS = {"train": {"train"}, "evaluate": {"evaluate"}}
"""The extra that a package of ours needs when it is imported; the others are imported without one."""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield tuple(path.relative_to(PACKAGE).with_suffix("").parts), path


def imported(path):
    """The modules of the package that a file names, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rgtg_logits":
            yield tuple(node.module.split(".")[1:])


def test_layers():
    """The contract in pyproject.toml: a module imports only from layers below its own."""
    pytest.importorskip("importlinter")
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_a_package_does_not_name_is_private():
    """From outside, everything is imported from a package itself, whose `__init__` says what is public."""
    for name, path in modules():
        for other in imported(path):
            for depth in range(1, len(other)):
                is_inside = name[:depth] == other[:depth]
                is_package = PACKAGE.joinpath(*other[:depth]).is_dir()
                assert is_inside or not is_package, f"{path} imports {'.'.join(other)}, not {'.'.join(other[:depth])}"


def test_training_and_decoding_do_not_know_each_other():
    for name, path in modules():
        others = {other[0] for other in imported(path) if other}
        if name[0] == "train":
            assert not others & {"scorers", "processor"}
        if name[0] in ("scorers", "processor"):
            assert "train" not in others


def foreign(nodes):
    """The top-level modules of other packages that import statements name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def distributions(nodes):
    modules = set(foreign(nodes)) - set(sys.stdlib_module_names) - {"rgtg_logits"}
    return {DISTRIBUTIONS.get(module, module).lower() for module in modules}


def declared():
    """The names of the core dependencies, and of those of each extra."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {re.match(r"[\w-]+", dependency)[0].replace("-", "_").lower() for dependency in dependencies}
        for extra, dependencies in names.items()
    }


def test_imports_are_declared():
    """At module level, those of the core and of the package's own extra; inside functions, those of any extra."""
    names = declared()
    users = set().union(*(names[extra] for extra in ("core", "train", "evaluate")))
    used = set()
    for name, path in modules():
        tree = ast.parse(path.read_text())
        allowed = set().union(names["core"], *(names[extra] for extra in EXTRAS.get(name[0], ())))
        assert distributions(tree.body) <= allowed, path
        assert distributions(ast.walk(tree)) <= users, path
        used |= distributions(ast.walk(tree))
    assert names["core"] <= used


def test_no_docstring_begins_with_what():
    """The subject comes first: a noun or a verb that a reader would search for."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}"
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds) and (ast.get_docstring(node) or "").startswith("What")
    ]
    assert found == []


def test_public_names():
    assert rgtg_logits.__all__ == sorted(rgtg_logits.__all__)
    for name in rgtg_logits.__all__:
        assert hasattr(rgtg_logits, name)
        assert name == "__version__" or getattr(rgtg_logits, name).__doc__
    assert set(rgtg_logits.__all__) <= set(dir(rgtg_logits))


def test_public_names_are_the_same_for_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.name: node.module.partition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("rgtg_logits.")
        for alias in node.names
    }
    assert typed == rgtg_logits._MODULES and {*typed, "__version__"} == set(rgtg_logits.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'rgtg_logits' has no attribute 'RewardModle'"):
        rgtg_logits.RewardModle  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'RewardModle'"):
        from rgtg_logits import RewardModle  # noqa: F401


def imported_after(statements, names):
    """Which of some modules are imported after statements in a new process."""
    code = f"import sys; {statements}; print([name for name in {names} if name in sys.modules])"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_import_is_light():
    assert imported_after("import rgtg_logits", ["torch", "transformers", "huggingface_hub"]) == "[]"


def test_public_names_import_no_extra():
    heavy = ["trl", "datasets", "matplotlib", "gradio", "peft", "sklearn", "pandas", "rgtg_logits.exact"]
    assert imported_after("from rgtg_logits import *; RewardModel", heavy) == "[]"


def test_no_remote_code_and_no_pickle():
    for _, path in modules():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert node.value.value is False, path
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"bare except in {path}"
        assert "torch.load(" not in path.read_text() and "import pickle" not in path.read_text()
