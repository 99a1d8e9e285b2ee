"""True values of the candidates of a step, by Monte Carlo rollouts of the base model.

    export PYTHONPATH=examples/reviews RGTG_REVIEWS=runs/reviews
    python examples/reviews/candidate_values.py --model PATH_OR_ID --data PATH_OR_ID --output_dir runs/reviews

At some steps of some answers to train prompts, every candidate (the k most probable tokens) is followed by many
continuations of the base model, and these are scored. This gives, for every candidate v, the mean reward m(v) of the
answers that follow, and the soft value S(v) = log mean exp(beta · r); guided by S, the base model becomes the optimum
of KL-regularised RLHF. The table holds

- the standard deviations of beta · m, S and S − beta · m between the candidates of a step, weighted by their
  probabilities. The last one is the advantage of a soft value over a mean: if it is small, no training can make
  guidance by S much better than guidance by m;
- the agreement of each reward model with m and with S (correlation within steps).

Continuations are split into two halves: the product of an estimate from one half with one from the other is free of
bias by sampling noise. Writes the rewards of the continuations (`candidate_values/REWARD.json`) and the table
(`candidate_values.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import judges
import numpy as np
import torch
from files import once, write
from make_data import text_rewards
from rich.progress import track
from splits import train_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from rgtg_logits import RewardModel
from rgtg_logits.sampling import Sampler
from rgtg_logits.scorers import make_scorer

FIRST_PROMPT = 17_000
"""The prompts before it belong to the training data."""

VALUES = {"sd of beta m": "m", "sd of S": "S", "sd of S - beta m": "difference"}
"""Columns of the table, and the values of candidates that they describe."""


@dataclass
class Arguments:
    """The base model, the steps, the number of rollouts, and the reward models."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/reviews"
    reward: str = "gold"
    reward_models: list[str] = field(
        default_factory=lambda: ["partial_bt", "full_bt", "value", "soft_value", "value_td", "soft_value_td"]
    )
    betas: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    steps: list[int] = field(default_factory=lambda: [0, 16, 40])
    prompts: int = 12
    first_prompt: int = FIRST_PROMPT
    top_k: int = 10
    rollouts: int = 64
    new_tokens: int = 64
    seed: int = 0


def main(args: Arguments) -> None:
    """Samples the rollouts, if they are missing, and writes the table."""
    out = Path(args.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    file = out / "candidate_values" / f"{args.reward}.json"
    steps = once(file, lambda: [*roll_out(args, tokenizer, getattr(judges, args.reward))])
    spreads = {}
    for beta in args.betas:
        estimates = [halves(step, beta) for step in steps]
        spreads[f"{beta:g}"] = [f"{spread(estimates, value):.3f}" for value in VALUES.values()]
    agreements = {}
    for name in args.reward_models:
        rewards = candidate_rewards(out / "reward_models" / name, steps)
        cells = [f"{agreement(rewards, steps, 1.0, 'm'):.2f}"]
        cells += [f"{agreement(rewards, steps, beta, 'S'):.2f}" for beta in args.betas]
        agreements[name] = cells
    size = f"{len(steps)} steps, {args.top_k} candidates at each, {args.rollouts} continuations of each.\n"
    columns = ("with m", *(f"with S, beta {beta:g}" for beta in args.betas))
    text = "\n".join([size, table("beta", [*VALUES], spreads), table("correlation of", columns, agreements)])
    write(out / "candidate_values.md", text)
    print(text)


def table(corner: str, columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    """A Markdown table, with rows by name and a heading over the names."""
    lines = [(corner, *columns), ("---",) * (len(columns) + 1)]
    lines += [(name, *cells) for name, cells in rows.items()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


@torch.no_grad()
def roll_out(args: Arguments, tokenizer: Any, reward: Callable[..., list[float]]) -> Any:
    """For each step: its prefix, its candidates with their probabilities, and the rewards of their continuations."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", attn_implementation="eager").eval()
    end = tokenizer.eos_token_id

    def continued(rows: list[list[int]], new_tokens: int, key: str) -> list[list[int]]:
        """Continuations of rows by the base model; nothing continues a row that has ended."""
        continuations: list[list[int]] = [[] for _ in rows]
        unfinished = [index for index, row in enumerate(rows) if row[-1] != end]
        if unfinished and new_tokens:
            keys = [f"{args.seed}:{key}:{number}" for number in range(len(unfinished))]
            sampler = Sampler(model, tokenizer, max_new_tokens=new_tokens)
            drawn = sampler.draw_tokens([rows[index] for index in unfinished], keys)
            for index, tokens in zip(unfinished, drawn, strict=True):
                continuations[index] = tokens
        return continuations

    prompts = train_prompts(args.data, tokenizer, args.first_prompt + args.prompts, 0)[args.first_prompt :]
    for number, prompt in enumerate(track(prompts, description="Rolling out")):
        answer = continued([prompt], args.new_tokens, f"{number}")[0]
        for step in args.steps:
            # In the answer alone, because the prompt begins with the end-of-text token.
            if len(answer) < step or end in answer[:step]:
                continue
            prefix = [*prompt, *answer[:step]]
            shares, tokens = model(torch.tensor([prefix])).logits[0, -1].float().softmax(-1).topk(args.top_k)
            starts = [[*prefix, token] for token in tokens.tolist() for _ in range(args.rollouts)]
            continuations = continued(starts, args.new_tokens - step - 1, f"{number}:{step}")
            answers = [[*start[len(prompt) :], *new] for start, new in zip(starts, continuations, strict=True)]
            rewards = text_rewards(reward, tokenizer, [(prompt, row) for row in answers])
            yield {
                "prefix": prefix, "tokens": tokens.tolist(), "shares": shares.tolist(),
                "rewards": np.reshape(rewards, (args.top_k, args.rollouts)).tolist(),
            }  # fmt: skip


def halves(step: dict[str, Any], beta: float) -> list[dict[str, np.ndarray]]:
    """Estimates of beta · m, S and their difference for every candidate, centred, from each half of the rollouts."""
    shares = np.array(step["shares"]) / sum(step["shares"])
    estimates = []
    for rewards in np.split(beta * np.array(step["rewards"]), 2, axis=1):
        mean = rewards.mean(1)
        soft = np.logaddexp.reduce(rewards, 1) - np.log(rewards.shape[1])
        values = {"m": mean, "S": soft, "difference": soft - mean}
        centred = {name: value - shares @ value for name, value in values.items()}
        estimates.append({"shares": shares, **centred})
    return estimates


def spread(estimates: list[list[dict[str, np.ndarray]]], value: str) -> float:
    """Standard deviation between the candidates of a step, without sampling noise.

    It is negative where the noise hides it, because the variance is estimated as the covariance of the two halves.
    """
    square = np.mean([one["shares"] @ (one[value] * other[value]) for one, other in estimates])
    return float(np.sign(square) * np.sqrt(abs(square)))


def candidate_rewards(folder: Path, steps: list[dict[str, Any]]) -> list[np.ndarray]:
    """The rewards of the candidates of each step by a reward model."""
    scorer = make_scorer(RewardModel.from_pretrained(folder, dtype=torch.float32), None)
    rewards = []
    for step in steps:
        rows = torch.tensor([step["prefix"]])
        rewards.append(scorer.score(rows, torch.ones_like(rows), torch.tensor([step["tokens"]]))[0].numpy())
    return rewards


def agreement(rewards: list[np.ndarray], steps: list[dict[str, Any]], beta: float, value: str) -> float:
    """Correlation of rewards with the true values within steps, corrected for the noise of the latter."""
    covariance = variance_of_values = variance_of_rewards = 0.0
    for reward, step in zip(rewards, steps, strict=True):
        one, other = halves(step, beta)
        centred = reward - one["shares"] @ reward
        covariance += one["shares"] @ (centred * (one[value] + other[value]) / 2)
        variance_of_values += one["shares"] @ (one[value] * other[value])
        variance_of_rewards += one["shares"] @ centred**2
    return float(covariance / np.sqrt(variance_of_rewards * max(variance_of_values, 1e-12)))


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
