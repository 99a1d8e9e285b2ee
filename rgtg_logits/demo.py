"""`rgtg demo`: the same prompts continued with and without guidance, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from rgtg_logits.errors import CheckpointError, InvalidArgumentError
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.sampling import load_base_model, resolve_device
from rgtg_logits.scorers import Scorer
from rgtg_logits.tokenization import encode_prompt
from rgtg_logits.trace import Trace

SHIPPED = Path(__file__).resolve().parent.parent / "model_cards"
"""Folder of the tiny models in a clone of the repository."""

PROMPTS = (
    "I watched this film last night and",
    "The acting in this movie is",
    "What I remember most is the ending, which",
)


@dataclass(frozen=True)
class DemoResult:
    """One prompt with two continuations.

    Attributes:
        prompt: The prompt.
        unguided: Continuation sampled from the top-k tokens of the base model.
        guided: Continuation sampled from the guided policy, with the same seed.
        unguided_reward: Reward of prompt and unguided continuation as a finished text, in the reward model's unit.
        guided_reward: Likewise with the guided continuation.
        unguided_ms: Milliseconds per token without guidance, the forward of the prompt included.
        guided_ms: Likewise with guidance.
    """

    prompt: str
    unguided: str
    guided: str
    unguided_reward: float
    guided_reward: float
    unguided_ms: float
    guided_ms: float


def run_demo(
    *,
    prompts: list[str] | None = None,
    base: str | None = None,
    reward_model: str | None = None,
    beta: float = 4.0,
    top_k: int = 20,
    max_new_tokens: int = 48,
    seed: int = 0,
    trace: Path | None = None,
    console: Console | None = None,
) -> list[DemoResult]:
    """Continues each prompt with and without guidance, and prints both, their rewards and the time per token.

    Takes half a minute on two CPU cores with the repository's own models, which are the default.

    Args:
        prompts: Beginnings of texts; by default a few neutral openings of a film review.
        base: Hub id or folder of the base model.
        reward_model: Hub id or folder of the reward model.
        beta: Guidance strength in nats per reward unit; 0 is none.
        top_k: Number of candidates at each step, for both texts.
        max_new_tokens: Longest continuation in tokens.
        seed: Seed of the first prompt's two continuations; each further prompt uses the next number.
        trace: File for the page that shows each guided token (see `Trace.save_html`); not written by default.
        console: Console to print to; by default standard output.

    Raises:
        CheckpointError: If a model cannot be loaded, or none is named outside a clone of the repository.
        InvalidArgumentError: If a value is out of its range.
        RGTGError: If the models do not fit each other; see `PartialRewardLogitsProcessor`.
    """
    console = console or Console()
    prompts = list(PROMPTS) if prompts is None else prompts
    _check(prompts, max_new_tokens)
    base = base or _shipped_model("tiny-imdb-base")
    reward_model = reward_model or _shipped_model("tiny-imdb-partial-rm")
    with console.status("Loading the base model and the reward model"):
        pair = _Pair.load(base, reward_model, beta=beta, top_k=top_k)
        # Warm-up: the first calls probe the reward model and allocate memory.
        pair.compare(prompts[0], min(4, max_new_tokens), seed, None)
    steps = Trace()
    results = []
    with Progress(console=console, transient=True) as progress:
        for index, prompt in enumerate(progress.track(prompts, description="Writing with and without guidance")):
            # With one seed for all, similar prompts get nearly the same text.
            results.append(pair.compare(prompt, max_new_tokens, seed + index, None if trace is None else steps))
    _show(results, beta, console)
    if trace is not None:
        steps.save_html(trace, pair.tokenizer)
        console.print(Text(f"Wrote the effect of guidance on each token to {trace}; open it in a browser."))
    return results


@dataclass(frozen=True)
class _Pair:
    """A base model and a reward model, on one device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward_model: RewardModel
    scorer: Scorer
    beta: float
    top_k: int

    @classmethod
    def load(cls, base: str, reward_model: str, *, beta: float, top_k: int) -> _Pair:
        """Loads both; float32 on CPU, where half precision is slow, and the checkpoints' own type on a GPU."""
        device, dtype = resolve_device(None, None)
        model, tokenizer = load_base_model(base, device, dtype)
        loaded = RewardModel.from_pretrained(reward_model, dtype=dtype)
        loaded.model.to(device)
        # Compares the vocabularies and chooses the scorer, which the processors of all prompts then share.
        processor = PartialRewardLogitsProcessor(loaded, beta=beta, top_k=top_k, tokenizer=tokenizer)
        return cls(model, tokenizer, loaded, processor.scorer, beta, top_k)

    def compare(self, prompt: str, new_tokens: int, seed: int, trace: Trace | None) -> DemoResult:
        """Continues a prompt with and without guidance."""
        ids = encode_prompt(self.tokenizer, _with_bos(prompt, self.tokenizer))
        input_ids = torch.tensor([ids], device=self.model.device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        processor = PartialRewardLogitsProcessor(
            self.scorer, beta=self.beta, top_k=self.top_k, tokenizer=self.tokenizer, trace=trace,
            # The BOS token may also be the padding token, so the mask has to mark it as text.
            attention_mask=inputs["attention_mask"],
        )  # fmt: skip
        arguments = {**inputs, "max_new_tokens": new_tokens}
        unguided, unguided_ms, _ = self._generate(arguments, seed, top_k=self.top_k)
        # The processor chooses the candidates itself, so that `generate` has none to cut (top_k=0).
        guided, guided_ms, rows = self._generate(arguments, seed, top_k=0, processor=processor)
        if trace is not None:
            trace.finish(rows)
        tokenizer = self.reward_model.tokenizer
        scored_prompt = prompt if tokenizer is None else _with_bos(prompt, tokenizer)
        unguided_reward, guided_reward = self.reward_model.score([scored_prompt] * 2, [unguided, guided]).tolist()
        return DemoResult(prompt, unguided, guided, unguided_reward, guided_reward, unguided_ms, guided_ms)

    def _generate(
        self, arguments: dict[str, Any], seed: int, *, top_k: int, processor: LogitsProcessor | None = None
    ) -> tuple[str, float, torch.Tensor]:
        """The continuation, its milliseconds per token, and the row of token ids."""
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        # `generate` draws from the global random generator, which is seeded here and restored afterwards.
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            started = time.perf_counter()
            rows = self.model.generate(
                **arguments, do_sample=True, temperature=1.0, top_p=1.0, top_k=top_k, pad_token_id=pad,
                logits_processor=[] if processor is None else [processor],
            )  # fmt: skip
            # `tolist` waits for the device, so that the clock includes all of its work.
            new = rows[0, arguments["input_ids"].shape[1] :].tolist()
            seconds = time.perf_counter() - started
        return self.tokenizer.decode(new, skip_special_tokens=True), 1000 * seconds / len(new), rows


def _check(prompts: Sequence[str], max_new_tokens: int) -> None:
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise InvalidArgumentError(
            f"Expected one or more prompts with some text in each, but got {prompts!r}. "
            "Leave prompts out to use the demo's own."
        )
    if max_new_tokens < 1:
        raise InvalidArgumentError(
            f"Expected max_new_tokens to be 1 or more, but got {max_new_tokens!r}. Typical values are 20 to 200."
        )


def _shipped_model(name: str) -> str:
    """Folder of a model that comes with the repository."""
    folder = SHIPPED / name
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"Expected the demo's own model in {folder}, but it is not there: a clone of the repository has it, an "
            "installed package does not. Pass --base and --reward-model (Hub ids or folders), or run it in a clone."
        )
    return str(folder)


def _with_bos(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt after the BOS token, if the tokenizer has one and does not add it itself."""
    if tokenizer.bos_token is None or encode_prompt(tokenizer, prompt)[:1] == [tokenizer.bos_token_id]:
        return prompt
    return f"{tokenizer.bos_token}{prompt}"


def _show(results: Sequence[DemoResult], beta: float, console: Console) -> None:
    for result in results:
        table = Table(title=Text(_line(result.prompt), style="bold"), title_justify="left", expand=True)
        table.add_column("unguided", ratio=1)
        table.add_column(f"guided, beta {beta:g}", ratio=1)
        table.add_row(Text(_line(result.unguided)), Text(_line(result.guided)), end_section=True)
        table.add_row(
            f"{result.unguided_reward:+.2f} reward units\n{result.unguided_ms:.1f} ms per token",
            f"{result.guided_reward:+.2f} reward units\n{result.guided_ms:.1f} ms per token "
            f"({result.guided_ms / result.unguided_ms:.1f} times)",
        )
        console.print(table)
    summary = Table(title="Means", title_justify="left", title_style="bold")
    for heading in ("", "unguided", "guided"):
        summary.add_column(heading, justify="right" if heading else "left")
    unguided_reward = fmean(result.unguided_reward for result in results)
    guided_reward = fmean(result.guided_reward for result in results)
    unguided_ms = fmean(result.unguided_ms for result in results)
    guided_ms = fmean(result.guided_ms for result in results)
    summary.add_row("reward (reward units)", f"{unguided_reward:+.2f}", f"{guided_reward:+.2f}")
    summary.add_row("time per token (ms)", f"{unguided_ms:.1f}", f"{guided_ms:.1f}")
    summary.add_row("time per token (ratio)", "1.0", f"{guided_ms / unguided_ms:.1f}")
    console.print(summary)
    console.print("One text per prompt shows the effect of guidance, not its quality.", style="dim")


def _line(text: str) -> str:
    """A text on one line, without control characters, which would act on the terminal."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())
