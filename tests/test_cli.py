"""The command line, in process where a process of its own would show nothing more."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import rgtg_logits
from rgtg_logits import RewardModel
from rgtg_logits.cli import app, main
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer

COMMANDS = typer.main.get_command(app).commands
SIZE = ("--layers", 1, "--width", 64, "--prompt-length", 8, "--top-k", 3, "--new-tokens", 3, "--rounds", 1)


def rgtg(*arguments):
    """Runs the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def options(command):
    """The options of a command that take a value, without those of every click command."""
    return [param for param in command.params if param.param_type_name == "option" and not param.is_flag]


def test_help_names_every_command():
    result = rgtg("--help")
    assert result.exit_code == 0
    assert set(COMMANDS) == {"demo", "train", "data", "pairs", "evaluate", "push", "check", "card", "benchmark"}
    assert all(name in result.output for name in (*COMMANDS, "--version", "--install-completion"))
    assert all(rgtg(name, "--help").exit_code == 0 for name in COMMANDS if name != "train")


def test_the_version():
    assert rgtg("--version").output == f"rgtg_logits {rgtg_logits.__version__}\n"


def test_help_version_and_mistyped_options_import_nothing_heavy():
    """These answer in a fraction of a second; a second of processor time would be gone with torch alone."""
    arguments = [["--help"], ["--version"], *([name, "--no-such-option"] for name in COMMANDS if name != "train")]
    code = f"""
import sys
from rgtg_logits.cli import main
statuses = []
for arguments in {arguments}:
    sys.argv = ["rgtg", *arguments]
    try:
        main()
    except SystemExit as stop:
        statuses.append(stop.code)
heavy = ("torch", "transformers", "pandas", "numpy", "matplotlib", "huggingface_hub", "jinja2")
print(statuses, [name for name in heavy if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    statuses = [0, 0, *[2] * (len(arguments) - 2)]
    assert result.stdout.splitlines()[-1] == f"{statuses} []"


def test_a_mistyped_option_names_the_nearest():
    result = rgtg("check", "base", "rm", "--max-new-tokns", "3")
    assert result.exit_code == 2 and "--max-new-tokns" in result.output and "--max-new-tokens" in result.output


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_options_take_dashes_and_underscores(name):
    written = [option for param in options(COMMANDS[name]) for option in param.opts if "-" in option[2:]]
    for option in written:
        # Without a value, an option that is known is an error of another kind.
        assert "requires an argument" in rgtg(name, option.replace("-", "_").replace("__", "--", 1)).output


def test_placeholders_of_values_are_words():
    for command in COMMANDS.values():
        for param in command.params:
            if not getattr(param, "is_flag", False):
                assert param.metavar, f"{command.name} {param.name}"
                assert param.metavar not in ("TEXT", "PATH") and param.metavar == param.metavar.upper()


def test_completion(tmp_path):
    script = Path(sys.executable).with_name("rgtg")
    typed = {"_RGTG_COMPLETE": "complete_bash", "COMP_WORDS": "rgtg ben", "COMP_CWORD": "1"}
    result = subprocess.run([script], env={**os.environ, **typed}, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["benchmark"]


def test_a_mistake_ends_in_one_message(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rgtg", "demo", "--base", "/no/[such]/folder", "--reward-model", "/no/[such]/x"])
    with pytest.raises(SystemExit) as stop:
        main()
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert "CheckpointError: Expected" in message and "Traceback" not in message and "[such]" in message


def test_benchmark_prints_a_table_and_writes_json(tmp_path):
    result = rgtg("benchmark", *SIZE, "--output", tmp_path / "cost.json")
    assert result.exit_code == 0, result.output
    assert "replicated" in result.output
    assert len(json.loads((tmp_path / "cost.json").read_text())["measurements"]) == 5


def test_the_former_name_of_method_warns(tmp_path):
    with pytest.warns(FutureWarning, match="--way is now called --method"):
        result = rgtg("benchmark", *SIZE, "--way", "plain", "--method", "floor", "--output", tmp_path / "cost.json")
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "cost.json").read_text())["measurements"]) == 2


def test_help_names_every_method():
    from rgtg_logits.benchmark import METHODS

    option = next(param for param in COMMANDS["benchmark"].params if param.name == "method")
    assert set(METHODS) <= set(re.findall(r"\w+", option.help))


def test_check_ends_with_its_status(tmp_path):
    tiny_base_model(vocab_size=300).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    short = tiny_reward_model(vocab_size=300, max_position_embeddings=40)
    RewardModel(short, tiny_tokenizer()).save_pretrained(tmp_path / "rm")
    arguments = ("check", tmp_path / "base", tmp_path / "rm", "--prompt", "the film was good", "--max-new-tokens")
    fits, too_long = rgtg(*arguments, 8), rgtg(*arguments, 80)
    assert (fits.exit_code, too_long.exit_code) == (0, 1), fits.output + too_long.output
    assert "Nothing failed" in fits.output and "failed: context: prompt + new." in too_long.output


def test_card_is_made_again_from_its_facts_and_checked(tmp_path):
    (tmp_path / "facts.json").write_text('{"card": "reward model", "model_id": "org/rm", "objective": "arm"}')
    assert rgtg("card", tmp_path).exit_code == 0
    fresh = rgtg("card", "--check", tmp_path)
    assert (fresh.exit_code, fresh.output) == (0, "")
    (tmp_path / "facts.json").write_text('{"card": "reward model", "model_id": "org/other", "objective": "arm"}')
    stale = rgtg("card", "--check", tmp_path)
    assert stale.exit_code == 1 and "-# org/rm" in stale.output and "+# org/other" in stale.output
    assert "# org/rm\n" in (tmp_path / "README.md").read_text()
    (tmp_path / "facts.json").write_text('{"card": "reward model", "model": "org/rm"}')
    wrong = rgtg("card", tmp_path)
    assert "but got 'model'" in str(wrong.exception)
