"""`rgtg evaluate` from the prompts to the report: interrupted anywhere, extended, and shared by processes."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

from rgtg_logits import RewardModel
from rgtg_logits.cli import app
from rgtg_logits.errors import CheckpointError, InvalidArgumentError
from rgtg_logits.evaluate import EvaluationSettings, Method, run_evaluation
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer

SIZE = len(tiny_tokenizer())
TEXTS = ["the film was", "a good plot, a bad cast and", "the", "", "the music of", "we'll see"]
TIMES = ["batch_seconds"]
judged = []


def letters(prompts, responses):
    """A reward; kills the process instead when it is asked about enough answers."""
    judged.append(len(responses))
    left = os.environ.get("ANSWERS_TO_LIVE")
    if left is not None:
        os.environ["ANSWERS_TO_LIVE"] = str(int(left) - len(responses))
        if int(left) <= len(responses):
            os.kill(os.getpid(), signal.SIGKILL)
    return [sum(map(str.isalpha, response)) / 3 for response in responses]


def length(prompts, responses):
    return [float(len(prompt) + len(response)) for prompt, response in zip(prompts, responses, strict=True)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a base model and a reward model, a file of prompts and one of methods."""
    folder = tmp_path_factory.mktemp("models")
    tiny_base_model(vocab_size=SIZE).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    RewardModel(tiny_reward_model(vocab_size=SIZE), tiny_tokenizer()).save_pretrained(folder / "rm")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    (folder / "methods.yaml").write_text(
        f"- name: base\n- {{name: guided, guide: {folder / 'rm'}, beta: [1, 3]}}\n"
        f"- {{name: best, best_of: 3, ranked_by: 'test_evaluation:letters', top_k: 5}}\n"
        f"- {{name: ARGS, guide: {folder / 'rm'}, beta: 1, greedy: true}}\n"
    )
    return folder


def arguments(models, output, *more):
    values = [models / "base", "--prompts", models / "texts.jsonl", "--methods", models / "methods.yaml", "--judge"]
    values += [
        "letters=test_evaluation:letters",
        "--output",
        output,
        "--seeds",
        2,
        "--max_new_tokens",
        6,
        "--batch_size",
        2,
    ]
    return ["evaluate", *map(str, [*values, "--compare", "guided=base", *more])]


@pytest.fixture
def settings(models, tmp_path):
    methods = (Method(name="base"), Method(name="guided", guide=(str(models / "rm"),), beta=(2.0,)))
    return EvaluationSettings(
        base=str(models / "base"), prompts=str(models / "texts.jsonl"), methods=methods,
        judges={"letters": "test_evaluation:letters"}, output=str(tmp_path / "out"), seeds=2, max_new_tokens=6,
        batch_size=2, resamples=100,
    )  # fmt: skip


def records(output):
    return pd.read_parquet(Path(output) / "records.parquet").drop(columns=TIMES)


def run(arguments, **environment):
    """The command in a process of its own."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "rgtg_logits.cli", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """What the command shows and leaves, without interruption."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return CliRunner().invoke(app, arguments(models, output)), output


def test_the_command_writes_records_tables_and_one_page(whole):
    result, output = whole
    assert result.exit_code == 0, result.output
    assert "guided" in result.output and "report.html" in result.output
    assert {"records.parquet", "results.json", "table.md", "report.html"} <= {path.name for path in output.iterdir()}
    found = records(output)
    # Five prompts that are not empty; two answers by four policies, and one by the greedy one.
    assert len(found) == 5 * (4 * 2 + 1)
    assert found.groupby(["method", "beta"], sort=False).size().to_dict() == {
        ("base", 0.0): 10, ("guided", 1.0): 10, ("guided", 3.0): 10, ("best", 0.0): 10, ("ARGS", 1.0): 5,
    }  # fmt: skip
    assert set(found["prompt"]) == {0, 1, 2, 4, 5}
    for _, row in found.iterrows():
        assert row["reward_letters"] == pytest.approx(letters([row["prompt_text"]], [row["answer"]])[0])
    results = json.loads((output / "results.json").read_text())
    assert results["prompts"] == 5 and results["prompts_left_out"] == {"empty": 1}
    assert [policy["name"] for policy in results["policies"]] == ["base", "guided", "guided", "best", "ARGS"]
    mean = found[found["method"] == "base"]["reward_letters"].mean()
    assert results["policies"][0]["judges"]["letters"]["reward"][0] == pytest.approx(mean)
    assert str(Path(output).parent) not in (output / "results.json").read_text()


def test_an_evaluation_that_was_killed_goes_on_where_it_was(models, whole, tmp_path):
    output = tmp_path / "out"
    killed = run(arguments(models, output), ANSWERS_TO_LIVE="60")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = {path: path.stat().st_mtime_ns for path in (output / "answers").rglob("*.parquet")}
    assert 3 < len(done) < 27 and not (output / "records.parquet").exists()
    again = run(arguments(models, output))
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    pd.testing.assert_frame_equal(records(output), records(whole[1]), rtol=1e-5)


def test_only_what_is_new_is_done(settings):
    run_evaluation(settings)
    answers = sorted((Path(settings.output) / "answers").rglob("*.parquet"))
    times = [path.stat().st_mtime_ns for path in answers]
    before, judged[:] = records(settings.output), []
    # A strength and a judge more, another name for the curve.
    guided = replace(settings.methods[1], beta=(2.0, 4.0), family="curve")
    judges = {"letters": "test_evaluation:letters", "length": "test_evaluation:length"}
    results = run_evaluation(replace(settings, methods=(settings.methods[0], guided), judges=judges, device="cpu"))
    assert sum(judged) == 10
    assert [path.stat().st_mtime_ns for path in answers] == times
    after = records(settings.output)
    assert len(after) == 30 and set(after["curve"]) == {"base", "curve"}
    kept = after[after["beta"] != 4].drop(columns=["reward_length", "curve"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before.drop(columns="curve"))
    assert after["reward_length"].tolist() == length(after["prompt_text"], after["answer"])
    assert [policy.beta for policy in results.policies] == [0, 2, 4]
    # A judge that changes under the same name is asked again.
    run_evaluation(replace(settings, judges={"letters": "test_evaluation:length"}))
    swapped = records(settings.output)
    assert swapped["reward_letters"].tolist() == length(swapped["prompt_text"], swapped["answer"])


def test_answers_of_other_settings_are_not_taken(settings):
    run_evaluation(replace(settings, methods=settings.methods[:1], seeds=1))
    for changes, message in (
        ({"max_new_tokens": 5}, "max_new_tokens was 6 and is 5"),
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"limit": 2}, "prompts_digest was "),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            run_evaluation(replace(settings, **{"seeds": 1, **changes}))


def test_draws_do_not_depend_on_what_else_is_evaluated(settings, tmp_path):
    run_evaluation(settings)
    alone = replace(settings, methods=settings.methods[1:], output=str(tmp_path / "alone"))
    run_evaluation(alone)
    both = records(settings.output)
    expected = both[both["method"] == "guided"].reset_index(drop=True)
    pd.testing.assert_frame_equal(records(alone.output), expected, rtol=1e-5)


def test_bad_input_is_told_before_any_answer(settings, models):
    wrong = (
        ({"prompts": "nowhere.jsonl"}, "'nowhere.jsonl' does not exist", InvalidArgumentError),
        ({"base": str(models / "nowhere")}, "to be a Hub id or a folder with a causal language model", CheckpointError),
        ({"max_new_tokens": 10**6}, "that leave room for 1000000 new tokens", InvalidArgumentError),
        ({"judges": {"a": "no_module:function"}}, "to be a function that Python can import", InvalidArgumentError),
    )
    for number, (changes, message, error) in enumerate(wrong):
        output = Path(settings.output) / str(number)
        with pytest.raises(error, match=message):
            run_evaluation(replace(settings, output=str(output), **changes))
        assert not list(output.rglob("*.parquet"))


def test_progress_counts_answers(settings):
    progress = Progress(console=Console(file=io.StringIO()))
    run_evaluation(settings, progress)
    (task,) = progress.tasks
    assert (task.total, task.completed) == (20, 20)


def test_a_pair_without_equals_is_a_mistake(models, tmp_path):
    run = CliRunner().invoke(app, [*arguments(models, tmp_path / "out"), "--judge", "letters"])
    assert isinstance(run.exception, InvalidArgumentError) and "two names with = between" in str(run.exception)


@pytest.mark.slow
def test_two_processes_share_the_work(models, whole, tmp_path):
    output = tmp_path / "out"
    both = run(arguments(models, output, "--num_processes", 2, "--device", "cpu"))
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("report.html") == 1
    pd.testing.assert_frame_equal(records(output), records(whole[1]), rtol=1e-5)
