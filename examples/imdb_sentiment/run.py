"""Guidance by a partial and by a full-sequence reward model, on film reviews, from raw data to table and figure.

    python examples/imdb_sentiment/run.py --data PATH_OR_ID --model PATH_OR_ID --output_dir runs/imdb

`--data` is `stanfordnlp/imdb` or a folder with the same reviews (see reviews.py), `--model` a small causal LM of
reviews, such as train_base.py makes. About half an hour on two cores. Stopped at any point, it goes on after the last
stage that had finished when started again with the same arguments; `--smoke` runs all of it on very little in under a
minute. `--close_texts` ends every training text with the end-of-text token, as TRL does to pairs of texts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import figure
import report
import torch
from decoding import Policy, decode, judged
from pairs import close, compare, first_tokens, sample
from reviews import load_reviews
from reward_models import OBJECTIVES, prefix_accuracies, train
from rich.console import Console
from sentiment import SentimentModel, gold_and_judge
from stages import once, once_rows, same_settings, write
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed

from rgtg_logits import PartialRewardLogitsProcessor, RewardModel


@dataclass
class Arguments:
    """What to run on, how much of it, and where the results go."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/imdb"
    seed: int = 0
    max_reviews: int | None = None
    prompts: int = 4000
    samples: int = 4
    held_out_prompts: int = 1000
    evaluation_prompts: int = 500
    new_tokens: int = 48
    top_k: int = 20
    betas: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 8.0])
    learning_rate: float = 3e-4
    train_batch_size: int = 32
    batch_size: int = 512
    close_texts: bool = False
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.smoke:
            self.max_reviews = 1000
            self.prompts, self.held_out_prompts, self.evaluation_prompts = 32, 16, 8
            self.new_tokens, self.betas = 8, [1.0, 4.0]


def main(args: Arguments) -> None:
    """Runs every stage that has not been run, and shows the results."""
    out = Path(args.output_dir)
    same_settings(out / "settings.json", asdict(args))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    # In full precision, because the divergence from this model is a result.
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    reviews, held_out = (load_reviews(args.data, split).shuffle(seed=args.seed) for split in ("train", "val"))
    if args.max_reviews is not None:
        reviews, held_out = (part.select(range(min(args.max_reviews, len(part)))) for part in (reviews, held_out))

    sentiment = once(out / "sentiment.json", lambda: gold_and_judge(reviews, held_out))
    gold, judge = (SentimentModel.from_dict(sentiment[name]) for name in ("gold", "judge"))

    # Shuffled once more, because otherwise all prompts came from the half that the gold model has learnt.
    train_prompts = first_tokens(reviews.shuffle(seed=args.seed + 1), tokenizer, args.prompts)
    prompts = first_tokens(held_out, tokenizer, args.evaluation_prompts + args.held_out_prompts)
    evaluation_prompts, pair_prompts = prompts[: args.evaluation_prompts], prompts[args.evaluation_prompts :]

    def draw_pairs(prompts: list[list[int]], seed: int) -> list[dict[str, Any]]:
        set_seed(seed)
        sampler = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto").eval()
        drawn = sample(
            sampler, tokenizer, prompts, samples=args.samples, new_tokens=args.new_tokens, batch_size=args.batch_size
        )
        return compare(gold, tokenizer, prompts, drawn, seed)

    train_pairs = once_rows(out / "pairs" / "train.jsonl", lambda: draw_pairs(train_prompts, args.seed))
    test_pairs = once_rows(out / "pairs" / "held_out.jsonl", lambda: draw_pairs(pair_prompts, args.seed + 1))

    if args.close_texts:
        train_pairs, test_pairs = (close(pairs, tokenizer.eos_token_id) for pairs in (train_pairs, test_pairs))

    folders = {objective: out / "reward_models" / objective for objective in OBJECTIVES}
    training = {
        objective: once(
            out / "reward_models" / f"{objective}.json",
            lambda objective=objective, folder=folder: train(
                objective, args.model, train_pairs, folder,
                learning_rate=args.learning_rate, batch_size=args.train_batch_size, seed=args.seed,
            ),
        )
        for objective, folder in folders.items()
    }  # fmt: skip
    accuracy = once(out / "prefix_accuracy.json", lambda: prefix_accuracies(folders, test_pairs, args.batch_size))

    # As they ship, in bfloat16: guidance by exactly these models is what is measured, and it is twice as fast.
    reward_models = {name: RewardModel.from_pretrained(path) for name, path in folders.items()}

    def run_policy(policy: Policy) -> dict[str, Any]:
        set_seed(args.seed)
        # Without a guide any reward model will do: at beta = 0 the processor does not ask it.
        processor = PartialRewardLogitsProcessor(
            reward_models[policy.guide or "partial_bt"], beta=policy.beta, top_k=args.top_k
        )
        found = decode(
            base, tokenizer, policy, evaluation_prompts,
            processor=processor, new_tokens=args.new_tokens, batch_size=args.batch_size,
        )  # fmt: skip
        return judged(found, policy, evaluation_prompts, tokenizer=tokenizer, gold=gold, judge=judge)

    policies = [Policy(None, 0.0, greedy) for greedy in (False, True)]
    policies += [Policy(guide, beta, greedy) for greedy in (False, True) for guide in OBJECTIVES for beta in args.betas]
    records = [once(out / "policies" / policy.file, lambda policy=policy: run_policy(policy)) for policy in policies]

    results = {
        "settings": {key: value for key, value in asdict(args).items() if key not in ("model", "data", "output_dir")},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "scikit-learn")},
        "sentiment": {name: {"accuracy": sentiment[name]["accuracy"]} for name in ("gold", "judge")},
        "pairs": {"train": _describe(train_pairs), "held_out": _describe(test_pairs)},
        "training": {name: {key: stage[key] for key in ("loss", "seconds")} for name, stage in training.items()},
        "prefix_accuracy": accuracy,
        "policies": report.summarise(records, args.seed),
        "same_beta": report.at_same_beta(records, args.seed),
        "equal_kl": [report.at_equal_kl(records, reward, args.seed) for reward in ("gold", "judge")],
    }
    write(out / "results.json", json.dumps(results, indent=1) + "\n")
    write(out / "table.md", report.markdown(results))
    figure.draw(results["policies"], out / "figure.png")
    console = Console()
    for table in report.console(results):
        console.print(table)
    console.print(f"results.json, table.md and figure.png are in {out}")


def _describe(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """How many pairs there are, and how many of their texts ended before they were cut."""
    lengths = [len(pair[key]) for pair in pairs for key in ("chosen_ids", "rejected_ids")]
    return {"pairs": len(pairs), "shorter_than_limit": sum(n < max(lengths) for n in lengths) / len(lengths)}


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
