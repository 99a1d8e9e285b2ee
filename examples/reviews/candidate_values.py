"""What guidance should have known: the true values of the candidates of a step, by rolling the base model out.

    export PYTHONPATH=examples/reviews RGTG_REVIEWS=runs/reviews
    python examples/reviews/candidate_values.py --model PATH_OR_ID --data PATH_OR_ID --output_dir runs/reviews

At some steps of some answers to train prompts, every candidate (the k likeliest tokens) is followed by many
continuations of the base model, and these are judged. So there are, for every candidate v, the mean reward m(v) that
it leads to, and the soft value S(v) = log mean exp(beta · r); guided by S, the base model becomes the optimum of
KL-regularised RLHF. Reported is

- how much beta · m, S and S − beta · m differ between the candidates of a step (standard deviation, each candidate
  weighing as likely as it is). The last one is all that a soft value knows and a mean does not: if it is small, no
  training can make guidance by S much better than guidance by m;
- how well the rewards of each reward model agree with m and with S (correlation within steps).

Continuations are split into two halves: products of one half with the other are free of the noise of sampling. Writes
the continuations (`candidate_values/REWARD.json`) and the table (`candidate_values.md`).
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
from make_data import judged
from rich.progress import track
from splits import train_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from rgtg_logits import RewardModel
from rgtg_logits.sampling import Sampler
from rgtg_logits.scorers import make_scorer

FIRST_PROMPT = 17_000
"""Prompts before are those of the training data."""


@dataclass
class Arguments:
    """Where to look, how often to roll out, and whom to compare."""

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
    """Rolls out, if that has not been done, and reports."""
    out = Path(args.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    file = out / "candidate_values" / f"{args.reward}.json"
    steps = once(file, lambda: [*roll_out(args, tokenizer, getattr(judges, args.reward))])
    spreads = {}
    for beta in args.betas:
        both = [halves(step, beta) for step in steps]
        spreads[f"{beta:g}"] = [f"{spread(both, part):.3f}" for part in PARTS.values()]
    agreements = {}
    for name in args.reward_models:
        rewards = candidate_rewards(out / "reward_models" / name, steps)
        wanted = [("m", 1.0), *(("S", beta) for beta in args.betas)]
        agreements[name] = [f"{agreement(rewards, steps, beta, part):.2f}" for part, beta in wanted]
    measured = f"{len(steps)} steps, {args.top_k} candidates at each, {args.rollouts} continuations behind each.\n"
    truths = ("with m", *(f"with S, beta {beta:g}" for beta in args.betas))
    text = "\n".join([measured, table("beta", [*PARTS], spreads), table("correlation of", truths, agreements)])
    write(out / "candidate_values.md", text)
    print(text)


def table(what: str, columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    """Rows by name, in Markdown."""
    lines = [(what, *columns), ("---",) * (len(columns) + 1), *((name, *cells) for name, cells in rows.items())]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


@torch.no_grad()
def roll_out(args: Arguments, tokenizer: Any, reward: Callable[..., list[float]]) -> Any:
    """For each step: its prefix, its candidates with their probabilities, and the rewards behind each."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", attn_implementation="eager").eval()
    end = tokenizer.eos_token_id

    def continued(rows: list[list[int]], new_tokens: int, key: str) -> list[list[int]]:
        """What the base model says behind each row; a row that has ended is followed by nothing."""
        open_rows = [row for row in rows if row[-1] != end]
        if not open_rows or not new_tokens:
            return [[] for _ in rows]
        keys = [f"{args.seed}:{key}:{i}" for i in range(len(open_rows))]
        new = iter(Sampler(model, tokenizer, max_new_tokens=new_tokens).draw_tokens(open_rows, keys))
        return [next(new) if row[-1] != end else [] for row in rows]

    prompts = train_prompts(args.data, tokenizer, args.first_prompt + args.prompts, 0)[args.first_prompt :]
    for number, prompt in enumerate(track(prompts, description="Rolling out")):
        # A prompt begins with the end of the text before it.
        answer = continued([prompt], args.new_tokens, f"{number}")[0]
        for step in args.steps:
            if len(answer) < step or end in answer[:step]:
                continue
            prefix = [*prompt, *answer[:step]]
            shares, tokens = model(torch.tensor([prefix])).logits[0, -1].float().softmax(-1).topk(args.top_k)
            starts = [[*prefix, token] for token in tokens.tolist() for _ in range(args.rollouts)]
            behind = continued(starts, args.new_tokens - step - 1, f"{number}:{step}")
            answers = [[*start[len(prompt) :], *new] for start, new in zip(starts, behind, strict=True)]
            rewards = judged(reward, tokenizer, [(prompt, row) for row in answers])
            yield {
                "prefix": prefix, "tokens": tokens.tolist(), "shares": shares.tolist(),
                "rewards": np.reshape(rewards, (args.top_k, args.rollouts)).tolist(),
            }  # fmt: skip


PARTS = {"sd of beta m": "m", "sd of S": "S", "sd of S - beta m": "rest"}


def halves(step: dict[str, Any], beta: float) -> list[dict[str, np.ndarray]]:
    """For each half of the continuations beta · m, S and their difference of every candidate, centred."""
    shares = np.array(step["shares"]) / sum(step["shares"])
    found = []
    for rewards in np.split(beta * np.array(step["rewards"]), 2, axis=1):
        mean, soft = rewards.mean(1), np.logaddexp.reduce(rewards, 1) - np.log(rewards.shape[1])
        parts = {"m": mean, "S": soft, "rest": soft - mean}
        found.append({"shares": shares, **{name: part - shares @ part for name, part in parts.items()}})
    return found


def spread(steps: list[list[dict[str, np.ndarray]]], part: str) -> float:
    """Standard deviation between the candidates of a step, without the noise of sampling; negative if none is seen."""
    square = np.mean([one["shares"] @ (one[part] * other[part]) for one, other in steps])
    return float(np.sign(square) * np.sqrt(abs(square)))


def candidate_rewards(folder: Path, steps: list[dict[str, Any]]) -> list[np.ndarray]:
    """What a reward model says of the candidates of each step."""
    scorer = make_scorer(RewardModel.from_pretrained(folder, dtype=torch.float32), None)
    found = []
    for step in steps:
        rows = torch.tensor([step["prefix"]])
        found.append(scorer.score(rows, torch.ones_like(rows), torch.tensor([step["tokens"]]))[0].numpy())
    return found


def agreement(rewards: list[np.ndarray], steps: list[dict[str, Any]], beta: float, part: str) -> float:
    """Correlation of rewards with the true values within steps, corrected for the noise of the latter."""
    product = square = own = 0.0
    for reward, step in zip(rewards, steps, strict=True):
        one, other = halves(step, beta)
        centred = reward - one["shares"] @ reward
        product += one["shares"] @ (centred * (one[part] + other[part]) / 2)
        square += one["shares"] @ (one[part] * other[part])
        own += one["shares"] @ centred**2
    return float(product / np.sqrt(own * max(square, 1e-12)))


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
