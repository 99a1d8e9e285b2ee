"""The reviews example: choice of strengths, and claims and figures from evaluations."""

import json
import sys
from pathlib import Path

import pytest
import yaml

for package in ("matplotlib", "pandas", "sacrebleu"):
    pytest.importorskip(package)

from rgtg_logits.evaluate import read_methods  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "reviews"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names = {path.stem for path in EXAMPLE.glob("*.py")}
    for name in names & set(sys.modules):
        del sys.modules[name]
    yield __import__
    for name in names & set(sys.modules):
        del sys.modules[name]


def policy(name, beta, kl, reward=1.0):
    estimate = [reward, reward - 0.2, reward + 0.2]
    judges = {judge: {"reward": estimate} for judge in ("gold", "judge")}
    kl, perplexity = [kl, kl - 0.1, kl + 0.1], [15.0, 14.0, 16.0]
    return {
        "name": name,
        "beta": beta,
        "kl": kl,
        "judges": judges,
        "perplexity": perplexity,
        "distinct": [0.9, 0.8, 0.7],
    }


def write(folder, **results):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"policies": [], "comparisons": [], **results}))


@pytest.fixture
def out(tmp_path):
    for name in ("reward_models/full_bt", "reward_models/partial_bt", "policies/dpo-0.3", "policies/.rl-20.draft"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_methods_are_those_that_were_trained(example, out):
    methods = example("methods")
    arguments = methods.Arguments(output_dir=str(out))
    assert [method["name"] for method in methods.methods(arguments)] == ["base", "ARGS", "PARGS", "DPO pair"]

    for which in ("main", "cut", "greedy", "large", "k", "layers", "pairs", "best", "plain"):
        listed = list(methods.methods(methods.Arguments(output_dir=str(out), which=which)))
        (out / "methods.yaml").write_text(yaml.safe_dump(listed))
        assert "&id" not in (out / "methods.yaml").read_text()
        assert [method.name for method in read_methods(str(out / "methods.yaml"))] == [m["name"] for m in listed]


def test_strengths_reach_the_wanted_divergences(example, out):
    # Divergence grows with the square of the strength above that of the truncation, 31.
    tried = [policy(name, beta, 31 + beta**2) for name in ("ARGS", "PARGS", "DPO pair") for beta in (4, 1, 2)]
    write(out / "tuned", policies=[policy("base", 0.0, 31.0), *tried])
    methods = example("methods")
    arguments = methods.Arguments(output_dir=str(out), tuned=str(out / "tuned"), kl=[2.25, 9.0, 59.0])
    listed = list(methods.methods(arguments))
    assert [method["name"] for method in listed] == [
        "base",
        "ARGS",
        "PARGS",
        "DPO pair",
        "best of 4",
        "DPO, beta 0.3",
    ]
    # 59 nats beyond those of the truncation were never reached.
    assert listed[1]["beta"] == listed[2]["beta"] == [1.5, 3.0]
    assert listed[-1]["family"] == "DPO" and listed[-1]["model"] == str(out / "policies" / "dpo-0.3")
    (out / "reward_models" / "value").mkdir()
    with pytest.raises(ValueError, match="'CD' at several strengths"):
        list(methods.methods(arguments))


def test_claims_are_read_from_comparisons(example, out, capsys):
    claims = example("claims")
    (out / "methods.yaml").write_text(
        yaml.safe_dump([{"name": "PARGS"}, {"name": "ARGS"}, {"name": "a", "family": "DPO"}])
    )
    assert list(claims.pairs_of(str(out / "methods.yaml"))) == ["PARGS=ARGS", "PARGS=DPO"]
    found = [
        {"first": "PARGS", "second": second, "judge": judge, "kl": [33, 40], "overall": overall}
        for second, values in {
            "ARGS": [[1, 0.5, 1.5], [0.7, 0.1, 1]],
            "DPO": [[-1, -2, -0.5], [0, -1, 1]],
        }.items()
        for judge, overall in zip(("gold", "judge"), values, strict=True)
    ]
    write(out / "evaluation" / "val-main", comparisons=found)
    claims.main(claims.Arguments(output_dir=str(out)))
    lines = capsys.readouterr().out.splitlines()
    assert "| main | PARGS | ARGS | judge | 33 to 40 | +0.70 [+0.10, +1.00] | above |" in lines
    assert "| main | PARGS | DPO | gold | 33 to 40 | -1.00 [-2.00, -0.50] | undecided |" in lines
    assert claims.verdict([[-1, -2, -0.5], [-1, -2, -0.1]]) == "below"


def test_a_figure_for_each_thing_that_varies(example, out):
    guided = [policy("PARGS", beta, 30 + beta, beta) for beta in (1, 2, 4)]
    of_k = [policy(f"k = {k}", beta, 30 + beta + k, beta) for k in (5, 50) for beta in (1, 2)]
    for name, policies in {"large": guided, "layers": guided, "pairs": guided, "k": of_k}.items():
        write(out / "evaluation" / f"val-{name}", policies=policies)
    of_all = [{**line, "curve": line["name"]} for line in [policy("base", 0, 0), *guided, policy("RL", 0, 9)]]
    write(out / "evaluation" / "val-main", policies=of_all)
    figures = example("figures")
    figures.main(figures.Arguments(output_dir=str(out)))
    pictures = {path.name for path in (out / "evaluation").glob("*.png")}
    sensitivity = {f"sensitivity-{name}.png" for name in ("beta", "k", "layers", "pairs")}
    assert pictures == sensitivity | {"curves-gold.png", "curves-judge.png"}
