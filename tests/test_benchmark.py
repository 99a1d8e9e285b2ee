import json

import pytest
import torch
from rich.console import Console

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.benchmark import ARMS, BenchmarkSettings, _Recompute, _Replicated, run_benchmark
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.testing import VOCAB_SIZE, tiny_reward_model

TINY = {"layers": 1, "width": 64, "prompt_lengths": (8,), "top_k": 3, "new_tokens": 4, "rounds": 2}


def test_every_way_is_measured_at_every_size(tmp_path):
    report = run_benchmark(BenchmarkSettings(**{**TINY, "batch_sizes": (1, 2)}))
    report.save(tmp_path / "cost.json")
    saved = json.loads((tmp_path / "cost.json").read_text())
    assert [(m["arm"], m["batch_size"]) for m in saved["measurements"]] == [(a, b) for b in (1, 2) for a in ARMS]
    for item in saved["measurements"]:
        assert len(item["first"]) == len(item["memory"]) == 2 and len(item["further"]) == 2 * (
            2 if item["arm"] == "recompute" else 3
        )
        assert set(item["medians"]) >= {"first_ms", "further_ms", "memory_mib"}
        assert (item["cache"] is not None) == (item["arm"] == "ours") == bool(item["bookkeeping"])
    console = Console(record=True, width=140)
    console.print(report.table())
    assert "replicated" in console.export_text() and len(report.notes()) == 2


def test_the_rivals_decide_as_we_do():
    """The ways compared are the same guidance: only the cost differs."""
    reward_model = RewardModel(tiny_reward_model())
    ways = [
        PartialRewardLogitsProcessor(reward_model, top_k=5),
        _Replicated(reward_model, 5),
        _Recompute(reward_model, 5),
    ]
    rows = torch.randint(2, VOCAB_SIZE, (3, 6))
    with torch.no_grad():
        for _ in range(4):
            scores = torch.randn(3, VOCAB_SIZE)
            ours, *others = [way(rows, scores) for way in ways]
            for other in others:
                assert torch.allclose(ours, other.log_softmax(-1), atol=1e-4)
            rows = torch.cat([rows, ours.softmax(-1).multinomial(1)], dim=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("ours", "magic")}, "Expected ways among plain, .* but got magic"),
        ({"dtype": "int3"}, "Expected dtype to be float32, bfloat16 or float16, but got 'int3'"),
        ({"rounds": 0}, "rounds is too small"),
        ({"new_tokens": 1}, "new_tokens is too small"),
    ],
)
def test_settings_that_measure_nothing(change, message):
    with pytest.raises(InvalidArgumentError, match=message):
        run_benchmark(BenchmarkSettings(**{**TINY, **change}))
