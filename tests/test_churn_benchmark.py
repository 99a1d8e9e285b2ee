"""`rgtg benchmark --churn`; `test_sequences` counts the same events by itself."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rgtg_logits import CausalScorer, cli
from rgtg_logits.benchmark import BenchmarkSettings, run_churn
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.testing import tiny_reward_model, tiny_tokenizer

TINY = {"layers": 1, "width": 64, "top_ks": (5,)}


def saved(folder, **changes):
    tokenizer = tiny_tokenizer()
    tiny_reward_model(vocab_size=len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prepack", [False, True])
def test_every_step_reads_what_is_needed(prepack):
    report = run_churn(BenchmarkSettings(**TINY, prepack=prepack))
    assert len(report.lines) == 16
    assert max(line.ratio for line in report.lines) <= 1.02
    needed = {line.event: line.needed for line in report.lines}
    assert needed["4 prompts begin"] == 1450 + 4 * 5
    assert needed["a row of 1,200 joins"] == 1200 + 5 * 5
    assert needed["the next turn of a chat"] == 60 + 5
    assert report.cache_bytes > 2350 * 2 * 64 * 4


def test_the_table_of_the_documentation():
    page = (Path(__file__).parents[1] / "examples" / "cost" / "README.md").read_text()
    for line in run_churn(BenchmarkSettings(**{**TINY, "top_ks": (20,)})).lines:
        assert f"| {line.event} | {line.read:,} | {line.needed:,} | {line.ratio:.2f} |\n" in page


def test_a_scorer_that_reads_more_shows(monkeypatch):
    """One that remembers one batch alone."""
    score = CausalScorer.score_sequences

    def forgetful(self, prefixes, candidates):
        if len(prefixes) != getattr(self, "num_rows", None):
            self.reset()
        self.num_rows = len(prefixes)
        return score(self, prefixes, candidates)

    monkeypatch.setattr(CausalScorer, "score_sequences", forgetful)
    lines = {line.event: line for line in run_churn(BenchmarkSettings(**TINY)).lines}
    assert lines["nothing"].ratio == 1.0
    assert lines["a row of 30 joins"].read == sum((52, 202, 402, 802)) + 30 + 5 * 5
    assert lines["a row of 30 joins"].ratio > 20


def test_the_command_prints_and_saves(tmp_path):
    folder = saved(tmp_path / "rm", max_position_embeddings=4096)
    output = tmp_path / "churn.json"
    arguments = ["benchmark", "--churn", "--reward-model", folder, "--top-k", "3", "--output", str(output)]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "a row of 1,200 joins" in result.stdout and "1,215" in result.stdout and "MiB" in result.stdout
    read = json.loads(output.read_text())
    assert read["lines"][1] == {"event": "nothing", "read": 12, "needed": 12}
    assert read["strategy"] == "tree_attention"


def test_a_model_of_too_short_a_context(tmp_path):
    short = saved(tmp_path / "short", max_position_embeddings=256)
    with pytest.raises(
        InvalidArgumentError, match="Expected a reward model that reads 2020 tokens, but this one reads"
    ):
        run_churn(BenchmarkSettings(reward_model=short))
