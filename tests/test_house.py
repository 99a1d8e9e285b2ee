"""The house rules that a machine can keep: public names, floors, light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import rgtg_logits

PACKAGE = Path(rgtg_logits.__file__).parent

FLOORS = {
    "errors": 0, "_files": 0, "_base_model": 1, "_data_sets": 1,
    "candidates": 1, "guidance": 1.5, "prefix": 1, "trace": 1, "_tiny_tokenizers": 1,
    "card.plain": 1, "card.words": 1, "card.facts": 1.5, "card.render": 1.6, "card.plots": 1.6, "card": 1.7,
    "card.files": 2.5,
    "_config": 1, "_prepacked": 0.5, "_bodies": 1, "_classifiers": 1, "hub": 0, "hub.folder": 1, "hub.failures": 1,
    "hub.download": 1.2, "hub.api": 1.2,
    "_checkpoint": 1.5, "hub.publish": 1.6, "reward_model": 2,
    "scorers.base": 2, "scorers._kv_cache": 2, "scorers._branches": 2, "scorers._sibling_mask": 2.1,
    "scorers._layout": 2, "scorers._prompts": 2, "scorers._pieces": 2, "scorers._chat": 2.1, "scorers._text": 2.2,
    "scorers._passes": 2.5, "scorers._options": 2.6, "scorers._probe": 2.6, "scorers._reader": 2.7,
    "scorers._cached": 2.8,
    "scorers.reference": 3, "scorers.causal": 3, "scorers.vocabulary": 3, "scorers.log_ratio": 3.1,
    "scorers.retokenizing": 3, "scorers.make": 3.4, "scorers.weighted": 3.45, "scorers": 3.5,
    "exact.world": 2, "exact.policies": 2.1, "exact.optima": 2.2, "exact": 2.3,
    "processor": 4, "testing": 4,
    "train.losses": 1, "train.data": 1, "train.objectives": 2, "train.evaluation": 2.1, "train.rows": 2.1,
    "train.labelled": 2.2, "train.packing": 2.2, "train.reading": 2.3,
    "train.config": 4, "train.sampling": 3, "train.checkpoints": 4, "train.models": 4.1, "train.facts": 4.4,
    "train.push": 4.4, "train.trainer": 4.5,
    "train.run": 4.6, "train.launch": 4.65, "train": 4.7, "train.benchmark": 4.8,
    "": 4.9,
    "benchmark._costs": 1, "benchmark._clock": 1, "benchmark._profile": 1, "benchmark._workload": 4.5,
    "benchmark._arms": 4.6, "benchmark.run": 4.7, "benchmark": 4.8, "demo": 5,
    "check.findings": 1, "check.uncached": 4, "check.models": 5, "check.exactness": 5, "check.pairs": 5,
    "check.cost": 5.1, "check.run": 5.2, "check": 5.3,
    "pairs.settings": 1.55, "pairs.journal": 1, "pairs.report": 1, "pairs.prompts": 5, "pairs.sampling": 5.1,
    "pairs.rows": 5.2, "pairs.rewards": 5.2, "pairs.run": 5.3, "pairs": 5.4,
    "evaluate.methods": 1.55, "evaluate.settings": 1.6, "evaluate.results": 1, "evaluate.records": 1,
    "evaluate.texts": 1, "evaluate.statistics": 1.2, "evaluate.figures": 1.3, "evaluate.report": 1.4,
    "evaluate.meter": 5.2, "evaluate.models": 5.25, "evaluate.decoding": 5.3, "evaluate.launch": 1,
    "evaluate.run": 5.4, "evaluate": 5.5,
    "cli": 6,
}  # fmt: skip
"""A module imports only from floors strictly below its own; fractions order the rooms of one floor."""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."), path


def imported(path):
    """The modules of the package that a file names, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rgtg_logits":
            module = node.module.removeprefix("rgtg_logits").removeprefix(".")
            # What is imported from a package may be one of its modules, as in `from rgtg_logits.train import losses`.
            named = {f"{module}.{alias.name}" for alias in node.names}
            yield from named & FLOORS.keys()
            if not named <= FLOORS.keys():
                yield module
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("rgtg_logits").removeprefix(".")
                for alias in node.names
                if alias.name.split(".")[0] == "rgtg_logits"
            )


def test_every_module_imports_from_below_only():
    for name, path in modules():
        for other in imported(path):
            assert FLOORS[other] < FLOORS[name], f"{name or 'rgtg_logits'} imports {other or 'rgtg_logits'}"


def test_training_and_decoding_do_not_know_each_other():
    for name, path in modules():
        others = set(imported(path))
        if name.startswith("train"):
            assert not {other for other in others if other.startswith(("scorers", "processor"))}
        if name.startswith(("scorers", "processor")):
            assert not {other for other in others if other.startswith("train")}


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
