"""The house rules that a machine can keep: public names, layers, what is private, light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import rgtg_logits

PACKAGE = Path(rgtg_logits.__file__).parent


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield tuple(path.relative_to(PACKAGE).with_suffix("").parts), path


def imported(path):
    """The modules of the package that a file names, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rgtg_logits":
            yield tuple(node.module.split(".")[1:])


def test_layers():
    """The contract in pyproject.toml: a module imports from layers below its own alone."""
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([lint, "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
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


def test_public_names():
    assert rgtg_logits.__all__ == sorted(rgtg_logits.__all__)
    for name in rgtg_logits.__all__:
        assert hasattr(rgtg_logits, name)
        assert name == "__version__" or getattr(rgtg_logits, name).__doc__


def test_import_is_light():
    code = (
        "import sys, rgtg_logits;"
        "heavy = ('trl', 'datasets', 'matplotlib', 'gradio', 'peft', 'sklearn', 'rgtg_logits.exact');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_no_remote_code_and_no_pickle():
    for _, path in modules():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert node.value.value is False, path
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"bare except in {path}"
        assert "torch.load(" not in path.read_text() and "import pickle" not in path.read_text()
