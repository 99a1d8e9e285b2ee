"""The demo continues prompts twice, prints both, and says what is wrong with its arguments."""

import html
import io
from statistics import fmean

import pytest
import torch
from rich.console import Console
from tokenizers.processors import TemplateProcessing

from rgtg_logits import RewardModel, RewardModelConfig, demo
from rgtg_logits.demo import DemoResult, run_demo
from rgtg_logits.errors import CheckpointError, InvalidArgumentError
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_tokenizer

PROMPTS = ["the film was", "a good [b]plot[/b]"]
OPENING = "<|endoftext|>"


def save(folder, tokenizer):
    """Saves a base model and a reward model, and returns them as arguments of the demo."""
    size = len(tokenizer)
    base, rewards = folder / "base", folder / "rewards"
    tiny_base_model(vocab_size=size).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = RewardModelConfig(objective="partial_bt")
    RewardModel(tiny_reward_model(vocab_size=size), tokenizer, config=config).save_pretrained(rewards)
    return {"base": str(base), "reward_model": str(rewards)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models"), tiny_tokenizer())


def run(**arguments):
    """Runs the demo on a page so wide that no line breaks, and returns its results and what it printed."""
    page = io.StringIO()
    arguments = {"prompts": PROMPTS, "max_new_tokens": 8, "console": Console(file=page, width=600), **arguments}
    return run_demo(**arguments), page.getvalue()


def texts(results):
    return [(result.prompt, result.unguided, result.guided) for result in results]


def test_prints_both_texts_with_rewards_and_times(models):
    results, page = run(**models)
    assert [result.prompt for result in results] == PROMPTS
    for result in results:
        assert isinstance(result, DemoResult)
        assert result.unguided != result.guided
        for text in (result.prompt, result.unguided, result.guided):
            assert demo._line(text) in page
        for reward in (result.unguided_reward, result.guided_reward):
            assert f"{reward:+.2f} reward units" in page
        for ms in (result.unguided_ms, result.guided_ms):
            assert f"{ms:.1f} ms per token" in page
    assert "guided, beta 4" in page
    assert "time per token (ratio)" in page


def test_rewards_are_those_of_the_finished_texts(models):
    (result, _), _ = run(**models)
    reward_model = RewardModel.from_pretrained(models["reward_model"])
    prompt = OPENING + result.prompt
    expected = reward_model.score([prompt, prompt], [result.unguided, result.guided])
    torch.testing.assert_close(torch.tensor([result.unguided_reward, result.guided_reward]), expected)


def test_a_seed_gives_the_same_texts_and_leaves_the_global_generator_alone(models):
    before = torch.get_rng_state()
    first, _ = run(**models, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert texts(run(**models, seed=5)[0]) == texts(first)
    assert texts(run(**models, seed=6)[0]) != texts(first)


def test_without_guidance_both_texts_are_the_same(models):
    results, _ = run(**models, beta=0)
    assert all(result.unguided == result.guided for result in results)


def test_trace_page_opens_each_prompt_once(models, tmp_path):
    path = tmp_path / "pages" / "trace.html"
    results, printed = run(**models, prompts=[*PROMPTS, f"{OPENING}the end"], trace=path)
    assert str(path) in printed
    page = html.unescape(path.read_text(encoding="utf-8"))
    for prompt in [*PROMPTS, "the end"]:
        assert f'<span class="prompt">{OPENING}{prompt}</span>' in page
    assert page.count('class="row"') == len(results)


def test_a_tokenizer_that_opens_texts_itself_is_left_to_it(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{OPENING} $A", special_tokens=[(OPENING, tokenizer.bos_token_id)]
    )
    path = tmp_path / "trace.html"
    run(**save(tmp_path, tokenizer), prompts=PROMPTS[:1], trace=path)
    assert f'<span class="prompt">{OPENING}{PROMPTS[0]}</span>' in html.unescape(path.read_text(encoding="utf-8"))


def test_a_tokenizer_without_an_opening_token(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    path = tmp_path / "trace.html"
    run(**save(tmp_path, tokenizer), prompts=PROMPTS[:1], trace=path)
    assert f'<span class="prompt">{PROMPTS[0]}</span>' in html.unescape(path.read_text(encoding="utf-8"))


def test_printed_texts_cannot_drive_the_terminal():
    assert demo._line("a\x1b[31m\n\n b\u202e") == "a [31m b"


@pytest.mark.parametrize("prompts", [[], [" "]])
def test_prompts_need_text(prompts):
    with pytest.raises(InvalidArgumentError, match="some text in each"):
        run(prompts=prompts)


def test_new_tokens_are_at_least_one():
    with pytest.raises(InvalidArgumentError, match="max_new_tokens to be 1 or more, but got 0"):
        run(max_new_tokens=0)


def test_outside_a_clone_it_asks_for_models(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "SHIPPED", tmp_path)
    with pytest.raises(CheckpointError, match="Pass --base and --reward-model"):
        run()


def test_a_base_model_that_cannot_be_loaded(models, tmp_path):
    with pytest.raises(CheckpointError, match="causal language model in safetensors and its tokenizer"):
        run(**{**models, "base": str(tmp_path)})


@pytest.mark.skipif(
    not all((demo.SHIPPED / name / "config.json").is_file() for name in ("tiny-imdb-base", "tiny-imdb-partial-rm")),
    reason="the repository's own models are not here",
)
def test_without_arguments():
    page = io.StringIO()
    results = run_demo(console=Console(file=page, width=100))
    assert [result.prompt for result in results] == list(demo.PROMPTS)
    assert fmean(r.guided_reward for r in results) > fmean(r.unguided_reward for r in results)
