"""`rgtg pairs` from the prompts to the file, interrupted anywhere, and on to `rgtg train`."""

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from test_pairs_parts import CHATML, SIZE
from transformers import TemperatureLogitsWarper
from typer.testing import CliRunner

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel
from rgtg_logits.cli import app
from rgtg_logits.errors import CheckpointError, InvalidArgumentError
from rgtg_logits.pairs import PairSettings, make_pairs
from rgtg_logits.pairs.journal import Journal
from rgtg_logits.sampling.prompts import read_prompts
from rgtg_logits.sampling.sampler import InverseTransformProcessor, hashed_uniforms
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer

datasets = pytest.importorskip("datasets")

TEXTS = ["the film was", "a good plot, a bad cast and", "the", "the music of", "we'll see"]
CHATS = [
    [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}],
    [{"role": "system", "content": "the cast"}, {"role": "user", "content": "music"}],
]


def letters(prompts, responses):
    """A reward; kills the process instead when it is asked about enough answers."""
    left = os.environ.get("ANSWERS_TO_LIVE")
    if left is not None:
        os.environ["ANSWERS_TO_LIVE"] = str(int(left) - len(responses))
        if int(left) <= len(responses):
            os.kill(os.getpid(), signal.SIGKILL)
    return [sum(map(str.isalpha, response)) / 3 for response in responses]


def seldom_finite(prompts, responses):
    return [float("nan") if "a" in response else 1.0 for response in responses]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a base model, one that chats, and a reward model; and files of prompts."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("base", None), ("chat", CHATML)):
        tiny_base_model(vocab_size=SIZE).save_pretrained(folder / name)
        tiny_tokenizer(chat_template=template).save_pretrained(folder / name)
    RewardModel(tiny_reward_model(vocab_size=SIZE), tiny_tokenizer(chat_template=CHATML)).save_pretrained(folder / "rm")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    return folder


@pytest.fixture
def make(models, tmp_path):
    """Settings of a small run."""

    def build(**changes):
        values = {
            "base": str(models / "base"), "prompts": str(models / "texts.jsonl"), "reward": "test_pairs:letters",
            "output": str(tmp_path / "out" / "pairs.jsonl"), "samples": 4, "max_new_tokens": 8, "batch_size": 3,
            "seed": 1,
        }  # fmt: skip
        return PairSettings(**{**values, **changes})

    return build


@pytest.fixture(scope="module")
def killed(models, tmp_path_factory):
    """What a run in a process of its own left when it was killed; put beside another output, it belongs to that."""
    folder = tmp_path_factory.mktemp("killed") / "out"
    code = "from rgtg_logits.cli import main; main()"
    arguments = ["--prompts", models / "texts.jsonl", "--reward", "test_pairs:letters", "--samples", 4]
    arguments += ["--max_new_tokens", 8, "--batch_size", 3, "--seed", 1, "--output", folder / "pairs.jsonl"]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", code, "pairs", *map(str, [models / "base", *arguments])],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "ANSWERS_TO_LIVE": "11"},
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert [path.name for path in folder.iterdir()] == ["pairs.part"]
    return (folder / "pairs.part").read_bytes()


def leave(settings, **contents):
    """Puts files beside the output, by their suffix, and nothing else."""
    output = Path(settings.output)
    output.parent.mkdir(exist_ok=True)
    for path in output.parent.iterdir():
        path.unlink()
    for suffix, content in contents.items():
        output.with_suffix(f".{suffix}").write_bytes(content)


def rows_of(settings):
    return [json.loads(line) for line in Path(settings.output).read_text().splitlines()]


def facts_of(settings):
    return json.loads(Path(settings.output).with_suffix(".facts").read_text())


def files(settings):
    folder = Path(settings.output).parent
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_of_texts(make, tmp_path):
    settings = make(label="argmax", scale=2.0)
    report = make_pairs(settings)
    rows, facts = rows_of(settings), facts_of(settings)
    assert set(files(settings)) == {"pairs.jsonl", "pairs.facts"}
    assert set(rows[0]) == {
        "prompt", "chosen", "rejected", "chosen_reward", "rejected_reward", "chosen_truncated", "rejected_truncated"
    }  # fmt: skip
    assert report.rows == len(rows) and len(rows) + sum(report.left_out.values()) == 2 * len(TEXTS)
    assert {row["prompt"] for row in rows} <= set(TEXTS)
    for row in rows:
        wanted = letters([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert [row["chosen_reward"], row["rejected_reward"]] == pytest.approx(wanted, rel=1e-6)
        assert row["chosen_reward"] > row["rejected_reward"] and "<|endoftext|>" not in row["chosen"]
    assert facts["answers"] == 20 and facts["prompts"] == 5 and facts["rows"] == len(rows)
    assert facts["settings"]["reward"] == "test_pairs:letters" and facts["settings"]["base"] == "base"
    assert str(tmp_path) not in json.dumps(facts)


def test_the_batch_size_changes_no_draw(make, models):
    runs = []
    for size in (1, 3, 64):
        settings = make(batch_size=size, reward=str(models / "rm"), format="labels", samples=3)
        settings = replace(settings, output=settings.output.replace("pairs.jsonl", f"{size}.jsonl"))
        make_pairs(settings)
        runs.append(rows_of(settings))
    texts = [[(row["prompt"], row["completion"], row["truncated"]) for row in run] for run in runs]
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) > 10
    for other in runs[1:]:
        assert [row["reward"] for row in other] == pytest.approx([row["reward"] for row in runs[0]], abs=1e-5)
    reader = RewardModel.from_pretrained(models / "rm")
    wanted = reader.score([row["prompt"] for row in runs[0]], [row["completion"] for row in runs[0]])
    assert [row["reward"] for row in runs[0]] == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.parametrize("more", [{}, {"rest": "keep", "top_p": 0.9}, {"top_k": 0, "temperature": 0.7}], ids=str)
def test_answers_of_the_guided_policy(make, models, more):
    """They are those that the processor and the numbers of each answer make; without strength, the base model's own."""
    cut = {"top_k": 5, "top_p": 1.0, "rest": "drop", "temperature": 1.0, **more}
    settings = make(format="labels", samples=2, guide=str(models / "rm"), beta=3.0, **cut)
    make_pairs(settings)
    found = [(row["prompt"], row["completion"]) for row in rows_of(settings)]
    facts = facts_of(settings)["settings"]
    assert (facts["guide"], facts["beta"], facts["rest"]) == ("rm", 3.0, cut["rest"])

    base, tokenizer, wanted = tiny_base_model(vocab_size=SIZE), tiny_tokenizer(), []
    warpers = [TemperatureLogitsWarper(cut["temperature"])]
    for index, text in enumerate(TEXTS):
        ids = {name: tokenizer(text, return_tensors="pt")[name] for name in ("input_ids", "attention_mask")}
        for number in range(2):
            processor = PartialRewardLogitsProcessor(
                str(models / "rm"), beta=3.0, top_k=cut["top_k"] or SIZE, top_p=cut["top_p"], rest=cut["rest"]
            )
            draw = InverseTransformProcessor(
                hashed_uniforms(f"1:{index}:{number}", 8)[None], ids["input_ids"].shape[1], warpers
            )
            whole = base.generate(**ids, max_new_tokens=8, do_sample=False, logits_processor=[processor, draw])
            answer = tokenizer.decode(whole[0], skip_special_tokens=True)[len(text) :].rstrip("\ufffd")
            wanted += [(text, answer)] if answer else []
    assert found == wanted

    others = []
    for changes in ({"guide": settings.guide, "beta": 0.0}, {}):
        unguided = make(format="labels", samples=2, **cut, **changes)
        leave(unguided)
        make_pairs(unguided)
        others.append([(row["prompt"], row["completion"]) for row in rows_of(unguided)])
    assert found not in others
    assert "beta" not in facts_of(unguided)["settings"]
    # Without strength the candidates are what is drawn from, unless the rest is kept.
    assert (others[0] == others[1]) == (cut["rest"] == "drop")


def test_pairs_of_messages(make, models):
    settings = make(base=str(models / "chat"), reward=str(models / "rm"), prompts=str(models / "chats.jsonl"))
    make_pairs(settings)
    rows = rows_of(settings)
    assert {json.dumps(row["prompt"]) for row in rows} == {json.dumps(CHATS[0][:1]), json.dumps(CHATS[1])}
    (answer,) = rows[0]["chosen"]
    reader = RewardModel.from_pretrained(models / "rm")
    chat = reader.tokenizer.apply_chat_template(
        [*rows[0]["prompt"], answer], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert answer["role"] == "assistant"
    assert rows[0]["chosen_reward"] == pytest.approx(float(reader.score_tokens(chat["input_ids"])[0, -1]), abs=1e-5)


def test_a_table_sums_it_up(make):
    report = make_pairs(make(reward="test_pairs:seldom_finite", samples=6, max_new_tokens=4))
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(report.table())
    rows = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]
    found = {row[0]: row[1] for row in rows if len(row) == 2}
    assert found["prompts"] == "5" and found["answers"] == "30" and found["mean reward"] == "1"
    assert int(found["pairs"]) == report.rows > 0
    assert int(found["left out: reward not finite"]) == report.left_out["reward not finite"] > 0
    assert int(found["ties, drawn by a fair coin"]) == report.ties == report.rows


# Interrupted


def test_killed_anywhere_it_goes_on_to_the_same_bytes(make, killed, tmp_path):
    whole, settings = make(output=str(tmp_path / "whole" / "pairs.jsonl")), make()
    make_pairs(whole)
    assert 4 <= killed.count(b"\n") < 13
    # In the middle of a batch, of a line, of the only line.
    for cut in (len(killed), len(killed) - 1, len(killed) // 2, killed.index(b"\n") + 1):
        leave(settings, part=killed[:cut])
        with Progress(disable=True) as progress:
            make_pairs(settings, progress)
            assert progress.tasks[0].completed == progress.tasks[0].total == 20
        assert files(settings) == files(whole)


@pytest.fixture
def finished(make, models, monkeypatch):
    """A run judged by a reward model, and what it wrote, as if it had been killed when only the journal was left."""
    settings = make(reward=str(models / "rm"))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        make_pairs(settings)
    return settings, {name.removeprefix("pairs."): content for name, content in files(settings).items()}


def test_killed_while_the_output_is_written(finished):
    settings, whole = finished
    journal = whole.pop("part")
    for written in ([], ["jsonl"], ["jsonl", "facts"]):
        leave(settings, part=journal, **{suffix: whole[suffix] for suffix in written})
        make_pairs(settings)
        assert files(settings) == {f"pairs.{suffix}": content for suffix, content in whole.items()}


def test_what_is_done_again_is_rounded_alike(finished):
    settings, whole = finished
    lines = whole.pop("part").splitlines(keepends=True)
    for kept in range(1, len(lines), 2):
        leave(settings, part=b"".join(lines[: kept + 1]))
        make_pairs(settings)
        assert files(settings)["pairs.jsonl"] == whole["jsonl"]


def test_answers_that_are_there_are_not_drawn_again(make, killed):
    settings = make()
    header, first, *rest = killed.splitlines(keepends=True)
    marked = {**json.loads(first), "text": "marked", "reward": 1e6}
    leave(settings, part=b"".join([header, json.dumps(marked).encode() + b"\n", *rest]))
    # Another batch size changes nothing but rounding.
    make_pairs(replace(settings, batch_size=2))
    assert rows_of(settings)[0]["chosen"] == "marked"


def test_other_settings_are_refused(make, models, killed, tmp_path):
    settings = make()
    leave(settings, part=killed)
    with pytest.raises(InvalidArgumentError, match=r"but temperature was 1.0 and is 0.5, seed was 1 and is 2. Use"):
        make_pairs(replace(settings, seed=2, temperature=0.5))
    texts = (models / "texts.jsonl").read_text()
    (models / "texts.jsonl").write_text(texts + '{"prompt": "one more"}\n')
    try:
        with pytest.raises(InvalidArgumentError, match=r"but prompts_digest was"):
            make_pairs(settings)
    finally:
        (models / "texts.jsonl").write_text(texts)
    assert files(settings) == {"pairs.part": killed}


# Files


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet", "txt", "jsonl.gz", "csv.gz", "txt.gz"])
def test_files_of_prompts(tmp_path, suffix):
    path, kind = tmp_path / f"prompts.{suffix}", suffix.removesuffix(".gz")
    plain = tmp_path / f"plain.{kind}"
    if kind == "txt":
        plain.write_text("\n".join(["", *TEXTS, " ", ""]))
    else:
        getattr(datasets.Dataset.from_dict({"id": [1] * 5, "text": TEXTS}), f"to_{kind.removesuffix('l')}")(plain)
    path.write_bytes(gzip.compress(plain.read_bytes()) if suffix.endswith(".gz") else plain.read_bytes())
    assert read_prompts(str(path), None, None, None) == TEXTS
    assert read_prompts(str(path), "text", "train", 2) == TEXTS[:2]


def test_a_folder_with_splits(tmp_path):
    for name, text in (("test", "a"), ("validation", "b")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": text}) + "\n")
    assert read_prompts(str(tmp_path), "question", "validation", None) == ["b"]
    with pytest.raises(InvalidArgumentError, match=r"have the split 'train', but it has .*'test'.* with --split"):
        read_prompts(str(tmp_path), "question", "train", None)


def test_parquet_holds_the_same_rows(make):
    jsonl = make()
    parquet = replace(jsonl, output=jsonl.output.replace("pairs.jsonl", "rows.parquet"))
    make_pairs(jsonl)
    make_pairs(parquet)
    table = datasets.load_dataset("parquet", data_files=parquet.output, split="train", streaming=True)
    assert list(table) == rows_of(jsonl)


def test_prompts_that_cannot_be_answered_are_counted(make, tmp_path):
    (tmp_path / "odd.json").write_text(json.dumps([{"text": None}, {"text": "the " * 200}, {"text": "the film"}]))
    report = make_pairs(make(prompts=str(tmp_path / "odd.json"), format="labels"))
    assert report.prompts == 1 and report.prompts_left_out == {"empty": 1, "too long for the base model": 1}
    with pytest.raises(InvalidArgumentError, match=r"none is left of 2: 1 empty, 1 too long .* lower --max_new_tokens"):
        make_pairs(make(prompts=str(tmp_path / "odd.json"), limit=2, output=str(tmp_path / "new.jsonl")))


def test_what_exists_is_not_written_over(make):
    settings = make()
    make_pairs(settings)
    with pytest.raises(InvalidArgumentError, match=r"Expected --output .* to be new, but 'pairs.jsonl' exists there"):
        make_pairs(settings)
    Path(settings.output).unlink()
    with pytest.raises(InvalidArgumentError, match=r"but 'pairs.facts' exists there. Move it away"):
        make_pairs(settings)
    assert list(files(settings)) == ["pairs.facts"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": "nothing.jsonl"}, InvalidArgumentError, r"'nothing.jsonl' does not exist. Check --prompts"),
        ({"prompt_column": "question"}, InvalidArgumentError, r"a column 'question', but got 'prompt'. Name the"),
        ({"device": "cuda:77"}, InvalidArgumentError, r"a device of this machine, .* got 'cuda:77'"),
        ({"base": "/no/such/folder"}, CheckpointError, r"Check the name of the base model"),
        ({"reward": "test_pairs:no_such"}, InvalidArgumentError, r"Write it as package.module:function"),
        ({"max_new_tokens": 500}, InvalidArgumentError, r"none is left of 5: 5 too long for the base model"),
    ],
)  # fmt: skip
def test_mistakes(make, changes, error, message):
    with pytest.raises(error, match=message):
        make_pairs(make(**changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": 3}\n', r"texts or lists of messages, but row 0 holds int"),
        ('{"good": "a", "bad": "b"}\n', r"'prompt' or 'messages' or 'text', but got 'good', 'bad'"),
        ("not json\n", r"but reading it failed: .* Check --prompts"),
    ],
)
def test_data_that_hold_no_prompts(tmp_path, content, message):
    (tmp_path / "odd.jsonl").write_text(content)
    with pytest.raises(InvalidArgumentError, match=message):
        read_prompts(str(tmp_path / "odd.jsonl"), None, None, None)


def test_nothing_that_can_be_used(make):
    with pytest.raises(InvalidArgumentError, match=r"none could be used: .* reward not finite, \d tie. Draw more"):
        make_pairs(make(reward="test_pairs:seldom_finite", label="argmax"))


def test_without_the_package_that_reads_data(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InvalidArgumentError,
        match=r'Expected the package datasets, .* Run: pip install datasets, or pip install "rgtg_logits',
    ):
        read_prompts("prompts.jsonl", None, None, None)


def test_a_run_that_failed_before_its_first_answer(make):
    """Its settings do not refuse the corrected ones, and neither do those of a run that was killed then."""
    wrong = make(reward="test_pairs:no_such_function")
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="no_such_function"):
            make_pairs(wrong)
    settings = make()
    make_pairs(settings)
    assert sorted(path.name for path in Path(settings.output).parent.iterdir()) == ["pairs.facts", "pairs.jsonl"]


# On to training


def test_the_command_and_training_on_what_it_made(make, models, tmp_path):
    run = pytest.importorskip("rgtg_logits.train.run")
    settings = make(output=str(tmp_path / "data" / "train.jsonl"))
    arguments = ["pairs", settings.base, "--prompts", settings.prompts, "--reward", str(models / "rm")]
    arguments += ["--output", settings.output, "--samples", "4", "--max-new-tokens", "6", "--top_k", "50"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and "mean reward" in result.output
    assert facts_of(settings)["settings"]["max_new_tokens"] == 6
    quick = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--report_to", "none", "--save_strategy", "no"]
    # The folder, which holds the facts, too.
    data = ["--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "trained")]
    run.train(["--model_name_or_path", settings.base, *data, *quick])
    assert RewardModel.from_pretrained(tmp_path / "trained").config.objective == "partial_bt"


def test_training_on_messages(make, models, tmp_path):
    run = pytest.importorskip("rgtg_logits.train.run")
    settings = make(
        base=str(models / "chat"), prompts=str(models / "chats.jsonl"),
        output=str(tmp_path / "data" / "chats.parquet"),
    )  # fmt: skip
    make_pairs(settings)
    quick = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--report_to", "none", "--save_strategy", "no"]
    data = ["--dataset_name", settings.output, "--output_dir", str(tmp_path / "trained")]
    run.train(["--model_name_or_path", settings.base, *data, *quick])
    assert RewardModel.from_pretrained(tmp_path / "trained").config.objective == "partial_bt"
