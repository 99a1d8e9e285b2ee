import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import LogitsProcessorList
from typer.testing import CliRunner

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel, RewardModelConfig, cli
from rgtg_logits.benchmark import ARMS, run_benchmark, run_profile
from rgtg_logits.benchmark.methods import OURS, Recompute, Replicated, make_arm
from rgtg_logits.benchmark.profiling import PARTS
from rgtg_logits.benchmark.report import BenchmarkReport, BenchmarkSettings, Measurement, ProfileReport
from rgtg_logits.benchmark.run import _check
from rgtg_logits.benchmark.workload import Follow, Hint, Texts, load_models, make_texts, read_text
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.instruments import Timer
from rgtg_logits.reward_model.prepacked import _Prepacked
from rgtg_logits.testing import VOCAB_SIZE, tiny_base_model, tiny_reward_model, tiny_tokenizer

QUICK = tuple(arm for arm in ARMS if arm != "compiled")
TINY = {"layers": 1, "width": 64, "prompt_lengths": (8,), "top_ks": (3,), "new_tokens": 4, "rounds": 1}
SENTENCES = [
    f"The {noun} was {adjective}, {ending}."
    for noun in ("film", "plot", "cast", "music", "end")
    for adjective in ("good", "bad", "long", "dull", "a delight", "beyond words")
    for ending in ("so we left", "and that's that", "as 1 of 12 said", "but who knows")
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(SENTENCES))
    return str(path)


@pytest.fixture(scope="module")
def report(text):
    return run_benchmark(BenchmarkSettings(**{**TINY, "arms": QUICK, "batch_sizes": (1, 2), "text": text}))


def test_every_way_is_measured_at_every_size(tmp_path, report):
    report.save(tmp_path / "cost.json")
    saved = json.loads((tmp_path / "cost.json").read_text())
    assert [(m["arm"], m["batch_size"]) for m in saved["measurements"]] == [(a, b) for b in (1, 2) for a in QUICK]
    for item in saved["measurements"]:
        tokens = 2 if item["arm"] == "recompute" else 3
        assert len(item["first"]) == len(item["memory"]) == 1 and len(item["further"]) == tokens
        assert set(item["medians"]) >= {"first_ms", "further_ms", "memory_mib"}
        assert (item["cache"] is not None) == (item["arm"] in OURS) == bool(item["bookkeeping"])
    console = Console(record=True, width=80)
    console.print(report.table())
    printed = console.export_text()
    assert all(arm in printed for arm in QUICK) and "…" not in printed


def test_our_ways_with_weights_laid_out_beforehand(text):
    ways = ("floor", "ours", "top_p", "vocabulary", "log_ratio_pair", "retokenizing", "weighted")
    settings = BenchmarkSettings(**{**TINY, "arms": ways, "text": text, "prepack": True})
    models = load_models(settings, read_text(text))
    mask = torch.ones(1, 8, dtype=torch.long)
    for name in ways[1:]:
        scorers = make_arm(name, models, 3, mask, prepack=True).cached
        engines = [one._engine for scorer in scorers for one in getattr(scorer, "_scorers", [scorer])]
        modules = [list(engine.reward_model._forward._reader.modules()) for engine in engines]
        assert modules and all(any(isinstance(one, _Prepacked) for one in each) for each in modules)
    measured = {item.arm: item.medians() for item in run_benchmark(settings).measurements}
    # What is read is heard although it is read by a twin.
    assert {arm: found["read_tokens"] for arm, found in measured.items() if arm in ("floor", "ours", "weighted")} == {
        "floor": 1, "ours": 3, "weighted": 6,
    }  # fmt: skip


@pytest.mark.slow
def test_the_compiled_step_is_measured():
    settings = BenchmarkSettings(**{**TINY, "arms": ("ours", "compiled"), "new_tokens": 4})
    ours, compiled = run_benchmark(settings).measurements
    assert compiled.medians()["read_tokens"] == ours.medians()["read_tokens"]


@pytest.mark.parametrize("batch", [1, 2])
def test_what_the_reward_models_read_is_counted(report, batch):
    """For one row: in a batch as much as alone."""
    read = {m.arm: m.medians().get("read_tokens") for m in report.measurements if m.batch_size == batch}
    assert "plain" in read and read["plain"] is None
    one = ("floor", "vocabulary", "log_ratio")
    assert {arm: read[arm] for arm in one} == dict.fromkeys(one, 1.0)
    # The token that was drawn was among the candidates, so that nothing but candidates is read.
    assert read["ours"] == read["replicated"] == 3
    assert 1 <= read["top_p"] <= 3
    assert read["log_ratio_pair"] == 2 and read["weighted"] == 6
    assert read["retokenizing"] >= 3
    # Two further tokens, of three whole rows each: the prompt, what was drawn, a candidate.
    assert read["recompute"] == 3 * ((8 + 1 + 1) + (8 + 2 + 1)) / 2


def test_a_model_that_calls_its_backbone_reads_once():
    """The output layer of a language model is reading, not bookkeeping, and its tokens are not counted twice."""
    model = tiny_base_model()
    timer = Timer(
        lambda ids, scores: model(input_ids=ids).logits[:, -1] + model.model(ids)[0].mean(), [model, model.model]
    )
    with torch.no_grad(), timer.listening():
        timer(torch.ones(2, 5, dtype=torch.long), torch.zeros(2, VOCAB_SIZE))
    assert timer.tokens == [2 * 10] and 0 < timer.forwards[0] < timer.calls[0]


def test_ways_without_candidates_are_measured_once_in_each_round():
    settings = BenchmarkSettings(**{**TINY, "arms": ("floor", "ours"), "top_ks": (2, 4), "rounds": 2})
    measured = [(item.arm, item.top_k, len(item.first)) for item in run_benchmark(settings).measurements]
    assert measured == [("floor", None, 2), ("ours", 2, 2), ("ours", 4, 2)]


def test_what_follows_from_the_medians(tmp_path):
    times = {
        ("floor", None): {64: 10.0, 2048: 12.0},
        ("ours", 5): {64: 11.0, 2048: 22.0},
        ("ours", 50): {64: 33.0, 2048: 44.0},
        ("retokenizing", 5): {64: 16.5, 2048: 66.0},
    }
    measurements = [
        Measurement(arm, length, 1, k, first=[100.0, 200.0], further=[ms] * 3, memory=[1.0])
        for (arm, k), by_length in times.items()
        for length, ms in by_length.items()
    ]
    report = BenchmarkReport(BenchmarkSettings(), {}, measurements)
    report.save(tmp_path / "cost.json")
    derived = json.loads((tmp_path / "cost.json").read_text())["derived"]
    found = {(item["name"], item["arm"], item["prompt_length"], item["top_k"]): item["figures"] for item in derived}
    assert found["over_floor", "ours", 2048, 5] == {"first_ms": 1.0, "further_ms": pytest.approx(22 / 12)}
    slope = 1000 * 2 / (2048 - 64)
    assert found["prompt", "floor", None, None] == {"ratio": pytest.approx(1.2), "slope_ms": pytest.approx(slope)}
    assert found["prompt", "ours", None, 5] == pytest.approx(
        {"ratio": 2.0, "slope_ms": 5.5 * slope, "ratio_over_floor": 2 / 1.2, "slope_ms_over_floor": 5.5}
    )
    assert found["candidates", "ours", 64, None] == {"ratio": pytest.approx(3.0)}
    assert found["candidates", "ours", 2048, None] == {"ratio": pytest.approx(2.0)}
    assert found["retokenizing", "retokenizing", 2048, 5] == {"ratio": pytest.approx(3.0)}
    notes = "\n".join(report.notes())
    assert "longest over shortest prompt, batch 1: floor 1.20; ours (k 5) 2.00 (1.67 × the floor's)" in notes
    assert "most over fewest candidates, prompt 64, batch 1: ours 3.00" in notes
    assert "another tokenizer over the same, prompt 2048, batch 1: retokenizing (k 5) 3.00" in notes


def test_a_floor_that_does_not_grow_gives_no_ratio_of_slopes():
    measurements = [
        Measurement(arm, length, 1, further=[ms], first=[1.0], memory=[1.0])
        for arm, times in {"floor": {8: 10.0, 16: 9.0}, "plain": {8: 5.0, 16: 6.0}}.items()
        for length, ms in times.items()
    ]
    plain = BenchmarkReport(BenchmarkSettings(), {}, measurements).derived()[-1]
    assert plain.arm == "plain" and set(plain.figures) == {"ratio", "slope_ms", "ratio_over_floor"}


def test_a_random_base_model_writes_the_text(text):
    settings = BenchmarkSettings(**{**TINY, "text": text, "batch_sizes": (2,)})
    models = load_models(settings, read_text(text))
    texts = make_texts(settings, models, read_text(text))
    rows = texts.rows(2, 20)
    assert models.tokenizer.decode(rows[0]) in read_text(text)
    seen = []

    def spy(input_ids, scores):
        seen.append(scores.topk(5).indices)
        return scores

    processors = LogitsProcessorList([Hint(texts, rows, models.base.config.vocab_size), spy, Follow(rows)])
    written = models.base.generate(
        rows[:, :8], do_sample=True, top_k=0, max_new_tokens=12, logits_processor=processors, pad_token_id=0
    )
    assert written.tolist() == rows.tolist()
    for step, candidates in enumerate(seen):
        assert (candidates == rows[:, 8 + step, None]).any(-1).all(), "the token drawn is a candidate"
        assert torch.isin(candidates, texts.ids).all(), "candidates are tokens of the text"


def test_rows_are_different_pieces_of_the_text():
    texts = Texts(vocab_size=100, seed=0, ids=torch.arange(40))
    assert texts.rows(3, 8).tolist() == [list(range(start, start + 8)) for start in (0, 11, 22)]
    with pytest.raises(InvalidArgumentError, match="Expected a text of 42 tokens or more .* but it has 40"):
        texts.rows(3, 40)


def test_a_trained_base_model_continues_the_text_by_itself(tmp_path, text):
    tokenizer = tiny_tokenizer(SENTENCES)
    tiny_base_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    arms = ("floor", "ours", "top_p", "log_ratio", "retokenizing")
    settings = BenchmarkSettings(**{**TINY, "base": str(tmp_path / "base"), "text": text, "arms": arms})
    models = load_models(settings, read_text(text))
    assert models.reward_model.model.config.model_type == "gpt2"
    texts = make_texts(settings, models, read_text(text))
    assert not texts.follow and tokenizer.decode(texts.rows(1, 8)[0]) in read_text(text)
    assert all(item.further for item in run_benchmark(settings).measurements)


@pytest.mark.parametrize("name", ["reviews.jsonl", "reviews.json"])
def test_a_column_of_texts(tmp_path, name):
    rows = [{"text": "one\u2028line", "label": 1}, {"text": "another"}]
    path = tmp_path / name
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(lines + "\n" if name.endswith("l") else json.dumps(rows), encoding="utf-8")
    assert read_text(str(path)) == "one\u2028line\n\nanother"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jsonl", b'{"review": "good"}\n', "holds something else .KeyError"),
        ("list.json", b"[1, 2]", "holds something else .TypeError"),
        ("broken.jsonl", b'{"text": "go', "holds something else .JSONDecodeError"),
        ("bytes.txt", b"\xff\xfe\x00", "holds something else .UnicodeDecodeError"),
        ("missing.txt", None, "there is no file"),
    ],
)
def test_files_that_hold_no_text(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=message):
        run_benchmark(BenchmarkSettings(**{**TINY, "text": str(tmp_path / name)}))


def test_the_profile_says_where_the_time_goes(tmp_path, text):
    arms = ("floor", "ours", "vocabulary", "retokenizing")
    report = run_profile(BenchmarkSettings(**{**TINY, "arms": arms, "text": text}))
    report.save(tmp_path / "profile.json")
    profiles = {item["arm"]: item for item in json.loads((tmp_path / "profile.json").read_text())["profiles"]}
    assert list(profiles) == list(arms)
    for profile in profiles.values():
        parts = profile["parts"]
        within = {name for name in parts if name.startswith("within")}
        assert sum(parts[name] for name in parts.keys() - within - {"all"}) == pytest.approx(parts["all"])
        assert min(parts["base model"], parts["reward model"]) > 0
        assert "aten::mm" in [operation["name"] for operation in profile["operations"]]
    # A function of another name would go unseen.
    for arm, without in (
        ("ours", {"tokenising, trees"}),
        ("vocabulary", {"tokenising, trees"}),
        ("retokenizing", set()),
    ):
        assert {name for name in PARTS if profiles[arm]["parts"][name] == 0} == without


def test_the_rivals_decide_as_we_do():
    """The ways compared are the same guidance: only the cost differs."""
    reward_model = RewardModel(tiny_reward_model())
    ways = [
        PartialRewardLogitsProcessor(reward_model, top_k=5),
        Replicated(reward_model, 5),
        Recompute(reward_model, 5),
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
        ({"top_ks": (5, 0)}, "top_k is too small"),
        ({"top_ks": ()}, "top_k is too small"),
        ({"batch_sizes": (0,)}, "batch_size is too small"),
        ({"prompt_lengths": (8, 0)}, "prompt_length is too small"),
        ({"prepack": True, "device": "cuda"}, "Expected models on the CPU .* with --prepack, but got --device cuda"),
        ({"prepack": True, "arms": ("ours", "compiled")}, "no way that is compiled .* the ways ours, compiled"),
        ({"arms": ("retokenizing",)}, "Expected a text for the way retokenizing"),
        ({"prompt_lengths": (8190,)}, "at most 8192 tokens, the context of the models, but got 8194"),
    ],
)
def test_settings_that_measure_nothing(change, message):
    with pytest.raises(InvalidArgumentError, match=message):
        run_benchmark(BenchmarkSettings(**{**TINY, **change}))


def test_a_reward_model_of_another_kind(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_base_model(vocab_size=len(tokenizer))
    RewardModel(model, tokenizer, config=RewardModelConfig(kind="vocabulary")).save_pretrained(tmp_path)
    settings = BenchmarkSettings(**{**TINY, "reward_model": str(tmp_path)})
    with pytest.raises(
        InvalidArgumentError, match="Expected a reward model with a scalar head, .* of kind 'vocabulary'"
    ):
        run_benchmark(settings)


def test_the_example_measures_and_shows(tmp_path, monkeypatch, text, report):
    """Every command of the script is one that can be measured, and its files are the ones that the table reads."""
    script = Path(__file__).parent.parent / "examples" / "cost"
    parts = ("candidates", "scorers", "shipped", "profile", "prepacked", "bfloat16", "bfloat16_prepacked")
    parts += ("rivals", "gpu")
    environment = {**os.environ, "RGTG": "echo"}
    printed = subprocess.check_output(
        [script / "run.sh", text, tmp_path, *parts], text=True, env=environment
    ).splitlines()  # fmt: skip
    asked = []

    def record(settings, _):
        _check(settings)
        asked.append(settings)
        return report

    monkeypatch.setattr("rgtg_logits.benchmark.run_benchmark", record)
    monkeypatch.setattr("rgtg_logits.benchmark.run_profile", lambda settings, _: ProfileReport(settings, {}, []))
    for line in printed:
        if not line.startswith("=="):
            result = CliRunner().invoke(cli.app, line.split())
            assert result.exit_code == 0, (line, result.output)
    assert len(asked) == 34 and {arm for settings in asked for arm in settings.arms} == set(ARMS)
    table = subprocess.check_output([sys.executable, script / "table.py", tmp_path], text=True)
    claims = [line.split(" | ")[0] for line in table.splitlines() if "× " in line and "|" in line]
    assert "| vocabulary, further token" in claims and "| another tokenizer, further token" in claims
    assert "| scorers-batch-1 | weighted | 3 | 8, 2 |" in table


def test_the_example_names_its_parts(tmp_path):
    script = Path(__file__).parent.parent / "examples" / "cost" / "run.sh"
    for arguments, message in (["text"], "Expected a text and a folder"), (["text", tmp_path, "all"], "but got all"):
        failed = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
        assert failed.returncode == 2 and message in failed.stderr
