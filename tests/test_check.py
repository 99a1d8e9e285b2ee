"""`rgtg check`: right pairs pass, and each way to be wrong is found under its own name."""

import json
import sys
from itertools import product

import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from rgtg_logits import CausalScorer, ReferenceScorer, RewardModel, RewardModelConfig
from rgtg_logits.check import CheckReport, CheckSettings, Finding, ModelPair, check_models
from rgtg_logits.check.cost import describe_strategy, measure_cost
from rgtg_logits.check.exactness import tolerance
from rgtg_logits.check.generation import check_generation
from rgtg_logits.check.tokens import check_padding, check_vocabulary
from rgtg_logits.check.uncached import ReshapedScorer
from rgtg_logits.cli import app, main
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.reward_model import KINDS
from rgtg_logits.testing import PAD, tiny_base_model, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model

SIZE = 300
PROMPTS = ("the film was", "a good plot, a bad cast and")
QUICK = CheckSettings(prompts=PROMPTS, top_k=5, max_new_tokens=10)


def reward_model(model_type="llama", tokenizer=None, objective="partial_bt", **changes):
    model = tiny_reward_model(model_type, vocab_size=SIZE, **changes)
    return RewardModel(model, tokenizer or tiny_tokenizer(), config=RewardModelConfig(objective=objective))


def pair(reader=None, tokenizer=None, rows=SIZE):
    return ModelPair(tiny_base_model(vocab_size=rows), tokenizer or tiny_tokenizer(), reader or reward_model())


def statuses(findings, status):
    return {finding.name for finding in findings if finding.status == status}


def by_command_line(folder, models, *options):
    """The JSON report of the command on a pair of models, saved and loaded."""
    models.base.save_pretrained(folder / "base")
    models.tokenizer.save_pretrained(folder / "base")
    models.reward_model.model.save_pretrained(folder / "rm")
    models.reward_model.tokenizer.save_pretrained(folder / "rm")
    report = folder / "report.json"
    options = [*options, "--top-k", "5", "--max-new-tokens", "10", "--output", str(report)]
    options += [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    result = CliRunner().invoke(app, ["check", str(folder / "base"), str(folder / "rm"), *options])
    assert result.exit_code == 0, result.output
    return json.loads(report.read_text())


def named(findings, name):
    return next(finding for finding in findings if finding.name == name)


def test_a_right_pair():
    findings = check_models(pair(), QUICK)
    assert statuses(findings, "ok") == {finding.name for finding in findings}
    assert [topic for topic in dict.fromkeys(finding.topic for finding in findings)] == [
        "models", "tokens", "context", "generate", "exactness", "guidance", "cost",
    ]  # fmt: skip
    rewards = named(findings, "cached = uncached").figures
    assert 0 < rewards["worst"] < rewards["tolerance"] < 1e-3 * rewards["spread"]
    assert 0 < named(findings, "guided draws").figures["worst"] < 1e-5
    assert 0.1 < named(findings, "strength").figures["shift"] < 1


@pytest.mark.parametrize(
    ("model_type", "dtype"), [("llama", torch.bfloat16), ("llama", torch.float16), ("jamba", torch.bfloat16)]
)
def test_half_precision_is_judged_by_its_own_rounding(model_type, dtype):
    reader = reward_model(model_type)
    reader.model.to(dtype)
    findings = check_models(pair(reader), QUICK)
    assert statuses(findings, "fail") == set()
    assert (named(findings, "strategy").status == "note") == (model_type == "jamba")
    coarse = named(findings, "cached = uncached").figures
    assert coarse["tolerance"] > 0.01 * coarse["spread"]
    assert named(findings, "rounding").advice == "Run again with --dtype float32 for a strict test."


class Forgetful(CausalScorer):
    """Loses the beginning of long texts."""

    def score(self, rows, attention_mask, candidates):
        wrong = rows.clone()
        wrong[:, :4] = 5 if rows.shape[1] > 14 else wrong[:, :4]
        return super().score(wrong, attention_mask, candidates)


class Crowded(ReferenceScorer):
    """Lets the number of rows into the rewards."""

    def score(self, rows, attention_mask, candidates):
        return super().score(rows, attention_mask, candidates) * (1 + 0.01 * len(rows))


class Blind(ReferenceScorer):
    """Reads padding as text."""

    def score(self, rows, attention_mask, candidates):
        finished = attention_mask[:, -1:]
        return super().score(rows, torch.ones_like(attention_mask), candidates) * finished


class Imprecise(ReferenceScorer):
    """Errs by a thousandth of the spread of rewards."""

    def score(self, rows, attention_mask, candidates):
        rewards = super().score(rows, attention_mask, candidates)
        return rewards + 1e-3 * rewards.std(-1, keepdim=True) * (-1.0) ** torch.arange(rewards.shape[1])


@pytest.mark.parametrize(
    ("scorer", "dtype", "wrong"),
    [
        (Forgetful, torch.float32, {"cached = uncached", "padded = bare", "guided draws"}),
        (Forgetful, torch.bfloat16, {"cached = uncached", "padded = bare", "guided draws"}),
        (Crowded, torch.float32, {"random rows", "cached = uncached", "batch = alone"}),
        (Blind, torch.float32, {"random rows", "cached = uncached", "padded = bare", "guided draws"}),
    ],
)
def test_a_wrong_scorer_fails(scorer, dtype, wrong):
    models = pair()
    models.reward_model.model.to(dtype)
    findings = check_models(models, QUICK, scorer=scorer(models.reward_model))
    assert statuses(findings, "fail") == wrong
    assert ("Broken law: " in named(findings, "random rows").value) == ("random rows" in wrong)
    assert "Do not use this pair" in named(findings, "cached = uncached").advice


def test_a_small_error_fails_in_float32():
    models = pair()
    findings = check_models(models, QUICK, scorer=Imprecise(models.reward_model))
    assert statuses(findings, "fail") == {"random rows", "cached = uncached"}
    assert named(findings, "strategy").value.startswith("Imprecise") and named(findings, "time").status == "note"


def test_rounding():
    assert tolerance(2.0, 5.0, 0.0, torch.float32) == pytest.approx(2e-4)
    # A common reward so large that its last digit is seen among the candidates.
    assert tolerance(0.1, 1000.0, 0.0, torch.float32) == pytest.approx(4 * 2**-23 * 1000)
    assert tolerance(2.0, 4.0, 0.0, torch.bfloat16) == 4 * 2**-7 * 4
    # The model's own noise counts, but a model that does not stand padding excuses nothing.
    assert tolerance(2.0, 5.0, 1e-4, torch.float32) == pytest.approx(4e-4)
    assert tolerance(2.0, 5.0, 1.0, torch.float32) == pytest.approx(2e-3)


def test_another_batch_shape_changes_nothing_but_rounding():
    reader = reward_model("gpt2")
    rows, mask = torch.randint(2, SIZE, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    mask[1, :4], mask[2, -2:] = 0, 0
    candidates = torch.randint(2, SIZE, (3, 4))
    got, wanted = (kind(reader).score(rows, mask, candidates) for kind in (ReshapedScorer, ReferenceScorer))
    assert torch.allclose(got, wanted, atol=1e-5) and (got[2] == 0).all() and (got[:2] != 0).all()


# What does not fit


def test_an_encoder():
    config = BertConfig(
        vocab_size=SIZE, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=1
    )
    findings = check_models(pair(RewardModel(BertForSequenceClassification(config), tiny_tokenizer())), QUICK)
    assert statuses(findings, "fail") == {"scorer"}
    assert "it is an encoder" in named(findings, "scorer").value


def test_embeddings_that_do_not_hold_the_vocabulary():
    reader = RewardModel(tiny_reward_model(vocab_size=290), tiny_tokenizer())
    finding = check_vocabulary(pair(reader))
    assert finding.status == "fail" and "reads ids below 290 only" in finding.value


def test_padding_rows():
    models = pair(rows=SIZE + 4)
    finding = check_vocabulary(models)
    assert finding.status == "note" and "4 padding rows" in finding.value
    findings = measure_cost(models, CausalScorer(models.reward_model), PROMPTS, top_k=3, seed=0)
    # Random models draw padding rows, which random prompts do not hold.
    assert [finding.status for finding in findings] in (["ok", "ok"], ["note"])


def test_a_context_that_is_too_short():
    short = pair(reward_model(max_position_embeddings=20))
    findings = check_models(short, QUICK)
    assert statuses(findings, "fail") == {"prompt + new"}
    assert named(findings, "prompt + new").figures == {"limit": 20, "prompt": 15, "new": 10}
    # What fits is checked all the same.
    assert named(findings, "cached = uncached").status == "ok"
    tiny = check_models(pair(reward_model(max_position_embeddings=6)), QUICK)
    assert statuses(tiny, "fail") == {"prompt + new", "random rows", "guided text"}
    assert "at most 6 tokens" in named(tiny, "guided text").value
    assert "not measured: the context is too short" in named(tiny, "time").value


def test_a_context_shorter_than_the_base_models():
    finding = pair(reward_model(max_position_embeddings=64)).check_context([[1, 2]], 62)
    assert finding.status == "note" and "at most 64 (RM 64, base 128); asked for 2 + 62" in finding.value
    assert pair(reward_model("bloom")).check_context([[1]], 127).value.startswith("at most 128 (RM no limit")


def tokenizer_with(**changes):
    tokenizer = tiny_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("changes", "status", "value"),
    [
        ({}, "ok", "token 0, '<|pad|>'"),
        ({"pad_token": "<|endoftext|>", "bos_token": None}, "ok", "token 1, '<|endoftext|>', also the end-of-text"),
        ({"pad_token": "<|endoftext|>"}, "note", "which also opens texts"),
        ({"pad_token": None}, "note", "token 0, '<|pad|>', named by the reward model only"),
    ],
)
def test_pad_tokens(changes, status, value):
    finding = check_padding(pair(tokenizer=tokenizer_with(**changes)))[0]
    assert finding.status == status and value in finding.value and bool(finding.advice) == (status == "note")


def test_no_pad_token_at_all():
    bare = tokenizer_with(pad_token=None)
    findings = check_models(pair(reward_model("gpt2", bare, pad_token_id=None), bare), QUICK)
    assert statuses(findings, "fail") == set() and "neither tokenizer names" in named(findings, "padding").value


def test_padding_on_the_wrong_side():
    assert "padding_side = 'left'" in check_padding(pair(tokenizer=tokenizer_with(padding_side="right")))[1].advice


@pytest.mark.parametrize(("objective", "word"), [(None, "not stated"), ("full_bt", "untrained"), ("other", "other")])
def test_objectives_that_say_nothing_of_prefixes(objective, word):
    finding = named(pair(reward_model(objective=objective)).describe(), "kind, objective")
    assert finding.status == "note" and word in finding.value and "rgtg train" in finding.advice


@pytest.mark.parametrize(("objective", "kind"), product(OBJECTIVES, KINDS))
def test_advice_follows_from_the_objective(objective, kind):
    table = OBJECTIVES[objective]
    if kind == "causal":
        reader = reward_model(objective=objective)
    else:
        config = RewardModelConfig(kind=kind, objective=objective)
        reader = RewardModel(tiny_vocabulary_model(vocab_size=SIZE), tiny_tokenizer(), config=config)
    finding = named(pair(reader).describe(), "kind, objective")
    assert finding.value.startswith(kind) and f"{objective}: {table.trained_on}" in finding.value
    if kind not in table.kinds:
        assert finding.advice == f"Read it as the kind that it was trained for: --kind {table.kinds[0]}."
    elif objective == "full_bt":
        assert "untrained" in finding.value and "rgtg train" in finding.advice
    else:
        assert (finding.status, finding.advice) == ("ok", "") and "untrained" not in finding.value


def test_a_reward_that_is_not_finite():
    models = pair()
    scorer = CausalScorer(models.reward_model)
    with torch.no_grad():
        models.reward_model.model.model.embed_tokens.weight[2:] = float("nan")
    findings = check_models(models, QUICK, scorer=scorer)
    assert {"random rows", "guided text"} <= statuses(findings, "fail")
    assert "Expected finite rewards" in named(findings, "guided text").value


def test_a_head_that_says_nothing():
    models = pair()
    torch.nn.init.zeros_(models.reward_model.head.weight)
    findings = check_models(models, QUICK)
    assert statuses(findings, "fail") == set() and statuses(findings, "note") == {"strength"}


@pytest.mark.parametrize("strategy", ["tree_attention", "expand", "recompute"])
def test_every_strategy_is_explained(strategy):
    finding = describe_strategy(CausalScorer(reward_model(), strategy=strategy))
    assert finding.value.startswith(f"CausalScorer, {strategy}: ")
    assert (finding.status == "ok") == (strategy == "tree_attention")


@pytest.mark.parametrize(
    "changes", [{"beta": 0.0}, {"beta": float("nan")}, {"top_k": 1}, {"prompts": ()}, {"prompts": ("a", " ")},
                {"dtype": "int8"}, {"max_new_tokens": 0}, {"kind": "scalar"}],
)  # fmt: skip
def test_settings_out_of_range(changes):
    with pytest.raises(InvalidArgumentError, match=f"Expected {next(iter(changes))} to be .*, but got"):
        CheckSettings(**changes)


# The command


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_base_model(vocab_size=SIZE).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    reward_model().save_pretrained(folder / "right")
    reward_model(objective=None, max_position_embeddings=20).save_pretrained(folder / "short")
    logits = tiny_vocabulary_model(vocab_size=SIZE), tiny_tokenizer(kind="llama3")
    RewardModel(*logits, config=RewardModelConfig(kind="vocabulary")).save_pretrained(folder / "logits")
    return folder


def run(folders, name, *options):
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    arguments = ["check", folders / "base", folders / name, *prompts, "--top-k", 5, "--max-new-tokens", 10, *options]
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "100"})


@pytest.mark.parametrize(
    ("changes", "found", "advice"),
    [
        ({"temperature": 0.5}, "temperature 0.5 divides beta", "Pass temperature=1.0 to generate"),
        ({"top_k": 4}, "top_k 4 cuts the guided", "Pass top_k=0"),
        (
            {"temperature": 0.6, "top_p": 0.9, "top_k": 3},
            "top_k 3, top_p 0.9 cut the",
            "temperature=1.0, top_k=0, top_p",
        ),
        ({"min_p": 0.1}, "min_p 0.1 cuts", "min_p=0.0"),
        ({"top_k": 5, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0}, None, ""),
        ({"top_k": 0}, None, ""),
    ],
)
def test_a_generation_config_that_changes_guided_draws(changes, found, advice):
    models = pair()
    models.base.generation_config.update(**changes)
    finding = check_generation(models, top_k=5)[0]
    assert (finding.status == "note") == (found is not None)
    assert (found or "leaves guided draws") in finding.value and advice in finding.advice


def test_the_cut_that_generate_makes_where_nobody_sets_one():
    # The default of 50 cuts only behind more candidates.
    assert [check_generation(pair(), top_k=top_k)[0].status for top_k in (50, 51)] == ["ok", "note"]


def test_paged_generation_is_never_guided():
    models = pair()
    finding = check_generation(models, top_k=5)[1]
    assert finding.status == "ok" and "call no processor" in finding.value
    models.base.generation_config.cache_implementation = "paged"
    assert check_generation(models, top_k=5)[1].status == "fail"


def test_status_0_a_table_and_a_file(folders, tmp_path):
    result = run(folders, "right", "--output", tmp_path / "new" / "report.json", "--beta", 2)
    assert result.exit_code == 0, result.output
    for words in ("LlamaForSequenceClassification", "tree_attention: one forward per token", "beta 2 moves", "× plain"):
        assert words in result.stdout
    assert "Nothing failed: 17 checks, 0 with a note." in result.stdout
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"]
    assert report["passed"] and report["settings"]["beta"] == 2 and report["machine"]["torch"] == torch.__version__
    assert {finding["status"] for finding in report["findings"]} == {"ok"} and len(report["findings"]) == 17


@pytest.mark.parametrize(("name", "line"), [("short", "context: prompt + new"), ("logits", "tokens: vocabulary")])
def test_status_1(folders, tmp_path, name, line):
    result = run(folders, name, "--output", tmp_path / "report.json")
    assert result.exit_code == 1, result.output
    assert f"checks failed: {line}." in result.stdout and "→" in result.stdout
    assert not json.loads((tmp_path / "report.json").read_text())["passed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beta", "0"], "InvalidArgumentError: Expected beta to be a finite guidance strength above 0"),
        (["--device", "abacus"], "InvalidArgumentError: Expected a device of this machine"),
        (["--pairs", "nothing.csv"], "InvalidArgumentError: Expected"),
    ],
)
def test_status_2(folders, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["rgtg", "check", str(folders / "base"), str(folders / "right"), *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_pairs_from_the_command_line(folders, tmp_path):
    pytest.importorskip("datasets")
    row = {"prompt": "the film ", "chosen": "was good", "rejected": "was bad and the end was bad"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    result = run(folders, "right", "--pairs", tmp_path / "pairs.jsonl")
    assert result.exit_code == 0 and "10 / 25 / 50 / 75 / 100 % of the answer" in " ".join(result.stdout.split())


def test_tokens_are_not_markup():
    report = CheckReport({}, {}, [Finding("tokens", "padding", "note", "token 3, '[PAD]'", "Pass [/bold].")])
    console = Console(record=True, width=100)
    console.print(report.table())
    assert "'[PAD]'" in (text := console.export_text()) and "→ Pass [/bold]." in text
    assert "Nothing failed: 1 checks, 1 with a note." in text and PAD == 0
