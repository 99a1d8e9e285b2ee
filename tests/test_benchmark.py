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

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel, RewardModelConfig, cli, profiling
from rgtg_logits.benchmark import METHODS, BenchmarkReport, BenchmarkSettings, ProfileReport, run_benchmark, run_profile
from rgtg_logits.benchmark.methods import Recompute, ReplicatedCache
from rgtg_logits.benchmark.profiling import PARTS
from rgtg_logits.benchmark.report import MethodMeasurement
from rgtg_logits.benchmark.settings import LIBRARY_METHODS
from rgtg_logits.benchmark.workload import ForceText, TextHint, TokenSource, load_models, make_token_source, read_text
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.profiling import profiled
from rgtg_logits.reward_model.prepacked import _Prepacked
from rgtg_logits.testing import VOCAB_SIZE, tiny_base_model, tiny_reward_model, tiny_tokenizer

QUICK = tuple(method for method in METHODS if method != "compiled")
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
    return run_benchmark(BenchmarkSettings(**{**TINY, "methods": QUICK, "batch_sizes": (1, 2), "text": text}))


def test_every_method_is_measured_at_every_size(tmp_path, report):
    report.save(tmp_path / "cost.json")
    saved = json.loads((tmp_path / "cost.json").read_text())
    assert [(item["method"], item["batch_size"]) for item in saved["measurements"]] == [
        (method, batch) for batch in (1, 2) for method in QUICK
    ]
    for item in saved["measurements"]:
        tokens = 2 if item["method"] == "recompute" else 3
        assert len(item["first"]) == len(item["memory"]) == 1 and len(item["further"]) == tokens
        assert set(item["medians"]) >= {"first_ms", "further_ms", "memory_mib"}
        assert (item["cache"] is not None) == (item["method"] in LIBRARY_METHODS) == bool(item["bookkeeping"])
    console = Console(record=True, width=80)
    console.print(report.table())
    printed = console.export_text()
    assert all(method in printed for method in QUICK) and "…" not in printed


def test_methods_with_prepacked_weights(text, monkeypatch):
    calls = []
    forward = _Prepacked.forward

    def counted(layer, *inputs):
        calls.append(layer)
        return forward(layer, *inputs)

    monkeypatch.setattr(_Prepacked, "forward", counted)
    # Forwards are counted although they are those of a prepacked twin.
    read_tokens = {"floor": 1, "guided": 3, "weighted": 6}
    for method in ("floor", "guided", "top_p", "vocabulary", "log_ratio_pair", "retokenizing", "weighted"):
        calls.clear()
        settings = BenchmarkSettings(**{**TINY, "methods": (method,), "text": text, "prepack": True})
        (measurement,) = run_benchmark(settings).measurements
        assert bool(calls) == (method != "floor"), method
        if method in read_tokens:
            assert measurement.medians()["read_tokens"] == read_tokens[method]


@pytest.mark.slow
def test_the_compiled_step_is_measured():
    settings = BenchmarkSettings(**{**TINY, "methods": ("guided", "compiled"), "new_tokens": 4})
    guided, compiled = run_benchmark(settings).measurements
    assert compiled.medians()["read_tokens"] == guided.medians()["read_tokens"]


@pytest.mark.parametrize("batch", [1, 2])
def test_what_the_reward_models_read_is_counted(report, batch):
    """For one row: in a batch as much as alone."""
    read = {m.method: m.medians().get("read_tokens") for m in report.measurements if m.batch_size == batch}
    assert "plain" in read and read["plain"] is None
    one = ("floor", "vocabulary", "log_ratio")
    assert {method: read[method] for method in one} == dict.fromkeys(one, 1.0)
    # The token that was drawn was among the candidates, so that nothing but candidates is read.
    assert read["guided"] == read["replicated"] == 3
    assert 1 <= read["top_p"] <= 3
    assert read["log_ratio_pair"] == 2 and read["weighted"] == 6
    assert read["retokenizing"] >= 3
    # Two further tokens, of three whole rows each: the prompt, what was drawn, a candidate.
    assert read["recompute"] == 3 * ((8 + 1 + 1) + (8 + 2 + 1)) / 2


def test_methods_without_candidates_are_measured_once_in_each_round():
    settings = BenchmarkSettings(**{**TINY, "methods": ("floor", "guided"), "top_ks": (2, 4), "rounds": 2})
    measured = [(item.method, item.top_k, len(item.first)) for item in run_benchmark(settings).measurements]
    assert measured == [("floor", None, 2), ("guided", 2, 2), ("guided", 4, 2)]


def test_what_follows_from_the_medians(tmp_path):
    times = {
        ("floor", None): {64: 10.0, 2048: 12.0},
        ("guided", 5): {64: 11.0, 2048: 22.0},
        ("guided", 50): {64: 33.0, 2048: 44.0},
        ("retokenizing", 5): {64: 16.5, 2048: 66.0},
    }
    measurements = [
        MethodMeasurement(method, length, 1, k, first=[100.0, 200.0], further=[ms] * 3, memory=[1.0])
        for (method, k), by_length in times.items()
        for length, ms in by_length.items()
    ]
    report = BenchmarkReport(BenchmarkSettings(), {}, measurements)
    report.save(tmp_path / "cost.json")
    derived = json.loads((tmp_path / "cost.json").read_text())["derived"]
    found = {(item["name"], item["method"], item["prompt_length"], item["top_k"]): item["figures"] for item in derived}
    assert found["over_floor", "guided", 2048, 5] == {"first_ms": 1.0, "further_ms": pytest.approx(22 / 12)}
    slope = 1000 * 2 / (2048 - 64)
    assert found["prompt", "floor", None, None] == {"ratio": pytest.approx(1.2), "slope_ms": pytest.approx(slope)}
    assert found["prompt", "guided", None, 5] == pytest.approx(
        {"ratio": 2.0, "slope_ms": 5.5 * slope, "ratio_over_floor": 2 / 1.2, "slope_ms_over_floor": 5.5}
    )
    assert found["candidates", "guided", 64, None] == {"ratio": pytest.approx(3.0)}
    assert found["candidates", "guided", 2048, None] == {"ratio": pytest.approx(2.0)}
    assert found["retokenizing", "retokenizing", 2048, 5] == {"ratio": pytest.approx(3.0)}
    notes = "\n".join(report.notes())
    assert "longest over shortest prompt, batch 1: floor 1.20; guided (k 5) 2.00 (1.67 × the floor's)" in notes
    assert "most over fewest candidates, prompt 64, batch 1: guided 3.00" in notes
    assert "another tokenizer over the same, prompt 2048, batch 1: retokenizing (k 5) 3.00" in notes


def test_a_floor_that_does_not_grow_gives_no_ratio_of_slopes():
    measurements = [
        MethodMeasurement(method, length, 1, further=[ms], first=[1.0], memory=[1.0])
        for method, times in {"floor": {8: 10.0, 16: 9.0}, "plain": {8: 5.0, 16: 6.0}}.items()
        for length, ms in times.items()
    ]
    plain = BenchmarkReport(BenchmarkSettings(), {}, measurements).derived()[-1]
    assert plain.method == "plain" and set(plain.figures) == {"ratio", "slope_ms", "ratio_over_floor"}


def test_a_random_base_model_writes_the_text(text):
    settings = BenchmarkSettings(**{**TINY, "text": text, "batch_sizes": (2,)})
    models = load_models(settings, read_text(text))
    source = make_token_source(settings, models, read_text(text))
    rows = source.rows(2, 20)
    assert models.tokenizer.decode(rows[0]) in read_text(text)
    seen = []

    def spy(input_ids, scores):
        seen.append(scores.topk(5).indices)
        return scores

    processors = LogitsProcessorList([TextHint(source, rows, models.base.config.vocab_size), spy, ForceText(rows)])
    written = models.base.generate(
        rows[:, :8], do_sample=True, top_k=0, max_new_tokens=12, logits_processor=processors, pad_token_id=0
    )
    assert written.tolist() == rows.tolist()
    for step, candidates in enumerate(seen):
        assert (candidates == rows[:, 8 + step, None]).any(-1).all(), "the token drawn is a candidate"
        assert torch.isin(candidates, source.ids).all(), "candidates are tokens of the text"


def test_rows_are_different_pieces_of_the_text():
    source = TokenSource(vocab_size=100, seed=0, ids=torch.arange(40))
    assert source.rows(3, 8).tolist() == [list(range(start, start + 8)) for start in (0, 11, 22)]
    with pytest.raises(InvalidArgumentError, match="Expected a text of 42 tokens or more .* but it has 40"):
        source.rows(3, 40)


def test_a_trained_base_model_continues_the_text_by_itself(tmp_path, text):
    tokenizer = tiny_tokenizer(SENTENCES)
    tiny_base_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    methods = ("floor", "guided", "top_p", "log_ratio", "retokenizing")
    settings = BenchmarkSettings(**{**TINY, "base": str(tmp_path / "base"), "text": text, "methods": methods})
    models = load_models(settings, read_text(text))
    assert models.reward_model.model.config.model_type == "gpt2"
    source = make_token_source(settings, models, read_text(text))
    assert not source.force and tokenizer.decode(source.rows(1, 8)[0]) in read_text(text)
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
    methods = ("floor", "guided", "vocabulary", "retokenizing")
    report = run_profile(BenchmarkSettings(**{**TINY, "methods": methods, "text": text}))
    report.save(tmp_path / "profile.json")
    profiles = {item["method"]: item for item in json.loads((tmp_path / "profile.json").read_text())["profiles"]}
    assert list(profiles) == list(methods)
    for profile in profiles.values():
        parts = profile["parts"]
        assert set(parts) == {*PARTS, "rest of generate", "all"}
        assert sum(parts.values()) - parts["all"] == pytest.approx(parts["all"])
        assert min(parts.values()) >= 0 < min(parts["base model"], parts["reward model"], parts["rest of generate"])
        names = [operation["name"] for operation in profile["operations"]]
        assert "aten::mm" in names and not any(name.startswith("rgtg") for name in names)
    # A part that no function is marked with any more would go unseen.
    for method, without in (
        ("guided", {"tokenisation"}),
        ("vocabulary", {"tokenisation"}),
        ("retokenizing", set()),
    ):
        assert {name for name in PARTS if profiles[method]["parts"][name] == 0} == without


def test_marks_cost_nothing_without_a_profiler(monkeypatch):
    @profiled("part")
    def answer(number, *, factor):
        """Its own docstring."""
        return number * factor

    assert answer(2, factor=3) == 6 and answer.__doc__ == "Its own docstring."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        assert answer(2, factor=3) == 6
    assert [event.key for event in profiler.key_averages()].count("rgtg: part") == 1
    monkeypatch.setattr(profiling, "record_function", None)
    assert answer(2, factor=3) == 6


def test_the_old_name_of_a_method():
    with pytest.warns(FutureWarning, match="The method 'ours' is called 'guided' now"):
        assert BenchmarkSettings(methods=("floor", "ours")).methods == ("floor", "guided")


def test_the_rivals_decide_as_this_library_does():
    """The methods compared are the same guidance: only the cost differs."""
    reward_model = RewardModel(tiny_reward_model())
    processors = [
        PartialRewardLogitsProcessor(reward_model, top_k=5),
        ReplicatedCache(reward_model, 5),
        Recompute(reward_model, 5),
    ]
    rows = torch.randint(2, VOCAB_SIZE, (3, 6))
    with torch.no_grad():
        for _ in range(4):
            scores = torch.randn(3, VOCAB_SIZE)
            guided, *others = [processor(rows, scores) for processor in processors]
            for other in others:
                assert torch.allclose(guided, other.log_softmax(-1), atol=1e-4)
            rows = torch.cat([rows, guided.softmax(-1).multinomial(1)], dim=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("guided", "magic")}, "Expected methods among plain, .* but got magic"),
        ({"dtype": "int3"}, "Expected dtype to be one of float32, bfloat16, float16, but got 'int3'"),
        ({"rounds": 0}, "rounds is too small"),
        ({"new_tokens": 1}, "new_tokens is too small"),
        ({"top_ks": (5, 0)}, "top_k is too small"),
        ({"top_ks": ()}, "top_k is too small"),
        ({"batch_sizes": (0,)}, "batch_size is too small"),
        ({"prompt_lengths": (8, 0)}, "prompt_length is too small"),
        ({"prepack": True, "device": "cuda"}, "Expected models on the CPU .* with --prepack, but got --device cuda"),
        (
            {"prepack": True, "methods": ("guided", "compiled")},
            "no method that is compiled .* guided, compiled",
        ),
        ({"methods": ("retokenizing",)}, "Expected a text for the method retokenizing"),
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
    measured = []

    def record(settings, _):
        measured.append(settings)
        return report

    monkeypatch.setattr("rgtg_logits.benchmark.run_benchmark", record)
    monkeypatch.setattr("rgtg_logits.benchmark.run_profile", lambda settings, _: ProfileReport(settings, {}, []))
    for line in printed:
        if not line.startswith("=="):
            result = CliRunner().invoke(cli.app, line.split())
            assert result.exit_code == 0, (line, result.output)
    assert len(measured) == 34 and {method for settings in measured for method in settings.methods} == set(METHODS)
    table = subprocess.check_output([sys.executable, script / "table.py", tmp_path], text=True)
    claims = [line.split(" | ")[0] for line in table.splitlines() if "× " in line and "|" in line]
    assert "| vocabulary, further token" in claims and "| another tokenizer, further token" in claims
    assert "| scorers-batch-1 | weighted | 3 | 8, 2 |" in table


def test_the_example_names_its_parts(tmp_path):
    script = Path(__file__).parent.parent / "examples" / "cost" / "run.sh"
    for arguments, message in (["text"], "Expected a text and a folder"), (["text", tmp_path, "all"], "but got all"):
        failed = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
        assert failed.returncode == 2 and message in failed.stderr
