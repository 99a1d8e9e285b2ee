"""The body of `rgtg demo`: the same prompts continued with and without guidance, side by side."""

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
"""Where a clone of the repository keeps the tiny models."""

PROMPTS = (
    "I watched this film last night and",
    "The acting in this movie is",
    "What I remember most is the ending, which",
)


@dataclass(frozen=True)
class DemoResult:
    """One prompt, continued twice.

    Attributes:
        prompt: The prompt.
        unguided: Continuation drawn from the base model cut to its top-k tokens.
        guided: Continuation drawn from the guided policy, with the same seed.
        unguided_reward: Reward of prompt and unguided continuation as a finished text, in the reward model's unit.
        guided_reward: The same of the guided one.
        unguided_ms: Milliseconds per token without guidance, the prompt's forward included.
        guided_ms: The same with guidance.
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
    """Continues each prompt with and without guidance and prints both, their rewards and what a token cost.

    Costs half a minute on two CPU cores with the repository's own models, which are the default.

    Args:
        prompts: Beginnings of texts; by default a few neutral openings of a film review.
        base: Hub id or folder of the base model.
        reward_model: Hub id or folder of the reward model.
        beta: Guidance strength in nats per reward unit; 0 is none.
        top_k: Candidates at each step, for both texts.
        max_new_tokens: Longest continuation in tokens.
        seed: Seed of the first prompt's two continuations; each further prompt takes the next number.
        trace: Where to write the page that shows each guided token (see `Trace.save_html`); not written by default.
        console: Where to print; by default standard output.

    Raises:
        CheckpointError: If a model cannot be loaded, or none is named outside a clone of the repository.
        InvalidArgumentError: If a value is out of its range.
        RGTGError: If the models do not fit each other; see `PartialRewardLogitsProcessor`.
    """
    console = console or Console()
    prompts = list(PROMPTS) if prompts is None else prompts
    _check(prompts, max_new_tokens)
    base, reward_model = base or _shipped("tiny-imdb-base"), reward_model or _shipped("tiny-imdb-partial-rm")
    with console.status("Loading the base model and the reward model"):
        pair = _Pair.load(base, reward_model, beta=beta, top_k=top_k)
        # The first calls probe the reward model and fill caches, which is not what a token costs.
        pair.compare(prompts[0], min(4, max_new_tokens), seed)
    record, results = None if trace is None else Trace(), []
    with Progress(console=console, transient=True) as progress:
        for index, prompt in enumerate(progress.track(prompts, description="Writing with and without guidance")):
            # With one seed for all, similar prompts get nearly the same text.
            results.append(pair.compare(prompt, max_new_tokens, seed + index, record))
    _show(results, beta, console)
    if trace is not None and record is not None:
        record.save_html(trace, pair.tokenizer)
        console.print(Text(f"Wrote what guidance did to each token to {trace}; open it in a browser."))
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
        rewards = RewardModel.from_pretrained(reward_model, dtype=dtype)
        rewards.model.to(device)
        # This one compares the vocabularies and chooses the scorer; those of the prompts share it.
        first = PartialRewardLogitsProcessor(rewards, beta=beta, top_k=top_k, tokenizer=tokenizer)
        return cls(model, tokenizer, rewards, first.scorer, beta, top_k)

    def compare(self, prompt: str, new_tokens: int, seed: int, trace: Trace | None = None) -> DemoResult:
        """Continues a prompt twice."""
        ids = encode_prompt(self.tokenizer, _opened(prompt, self.tokenizer))
        input_ids = torch.tensor([ids], device=self.model.device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        processor = PartialRewardLogitsProcessor(
            self.scorer, beta=self.beta, top_k=self.top_k, tokenizer=self.tokenizer, trace=trace,
            # The opening token may be the padding token, so the mask has to say that it is text.
            attention_mask=inputs["attention_mask"],
        )  # fmt: skip
        arguments = {**inputs, "max_new_tokens": new_tokens}
        unguided, unguided_ms, _ = self._continue(arguments, seed, top_k=self.top_k)
        # The processor has chosen the candidates; a second cut would be one more thing to explain.
        guided, guided_ms, rows = self._continue(arguments, seed, top_k=0, processor=processor)
        if trace is not None:
            trace.finish(rows)
        reads = self.reward_model.tokenizer
        read = prompt if reads is None else _opened(prompt, reads)
        unguided_reward, guided_reward = self.reward_model.score([read, read], [unguided, guided]).tolist()
        return DemoResult(prompt, unguided, guided, unguided_reward, guided_reward, unguided_ms, guided_ms)

    def _continue(
        self, arguments: dict[str, Any], seed: int, *, top_k: int, processor: LogitsProcessor | None = None
    ) -> tuple[str, float, torch.Tensor]:
        """The continuation, its milliseconds per token, and the row of token ids."""
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        # `generate` draws from the global generator, so that is seeded here and put back afterwards.
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            begun = time.perf_counter()
            rows = self.model.generate(
                **arguments, do_sample=True, temperature=1.0, top_p=1.0, top_k=top_k, pad_token_id=pad,
                logits_processor=[] if processor is None else [processor],
            )  # fmt: skip
            # Reading the row waits for the device.
            new = rows[0, arguments["input_ids"].shape[1] :].tolist()
            seconds = time.perf_counter() - begun
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


def _shipped(name: str) -> str:
    """The folder of a model that comes with the repository."""
    folder = SHIPPED / name
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"Expected the demo's own model in {folder}, but it is not there: a clone of the repository has it, an "
            "installed package does not. Pass --base and --reward-model (Hub ids or folders), or run it in a clone."
        )
    return str(folder)


def _opened(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt behind the token that opens every text, if the tokenizer has one and does not add it by itself."""
    opening = tokenizer.bos_token
    if opening is None or encode_prompt(tokenizer, prompt)[:1] == [tokenizer.bos_token_id]:
        return prompt
    return f"{opening}{prompt}"


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
    means = {name: fmean(getattr(result, name) for result in results) for name in _MEANS}
    summary.add_row("reward (reward units)", f"{means['unguided_reward']:+.2f}", f"{means['guided_reward']:+.2f}")
    summary.add_row("time per token (ms)", f"{means['unguided_ms']:.1f}", f"{means['guided_ms']:.1f}")
    summary.add_row("time per token (ratio)", "1.0", f"{means['guided_ms'] / means['unguided_ms']:.1f}")
    console.print(summary)
    console.print("One text per prompt shows what guidance does, not how well.", style="dim")


_MEANS = ("unguided_reward", "guided_reward", "unguided_ms", "guided_ms")


def _line(text: str) -> str:
    """A text on one line and without control characters, which a terminal would obey."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
