"""Makes the folders of the two models of this example as they would be pushed to the Hub, cards included.

    python examples/reviews/publish.py --run runs/reviews --base runs/base/final --output_dir model_cards

`--run` is the output folder of the other scripts, `--base` that of train_base.py. Without them the present folders are
kept, and only the scores of the usage example are computed again. Cards hold measured numbers only; `rgtg card` (for
the base model, base_card.py) renders them again from the `facts.json` beside them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from base_card import write_base_card
from files import write
from train_base import Arguments as BaseTraining
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, HfArgumentParser

from rgtg_logits.card import (
    CardFacts,
    DataFacts,
    Guidance,
    GuidedPoint,
    PrefixEvaluation,
    read_facts,
    render_folder,
    score_example,
    write_card,
)

CITATION = "Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011"
DATASET = "stanfordnlp/imdb"
PUBLISHED = "partial_bt"
EXAMPLE = (
    "<|endoftext|>The acting in this movie is",
    (" great and the story is moving.", " awful and the story is a bore."),
)


@dataclass
class Arguments:
    """Folders to read and to write."""

    run: str | None = None
    base: str | None = None
    output_dir: str = "model_cards"
    base_name: str = "tiny-imdb-base"
    reward_name: str = "tiny-imdb-partial-rm"


def base_facts(base: Path, name: str) -> dict[str, Any]:
    """Facts about the base model, for its card."""
    report = json.loads((base.parent / "validation.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(base)
    training = BaseTraining(model="")
    return {
        # Tells it from the facts of a reward model, which `rgtg card` reads.
        "card": "base model",
        "model_id": name,
        "data": {"name": DATASET, "on_hub": True},
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "tokens": report["tokens"],
        "loss_before": report["before"],
        "loss_after": report["after"],
        "hyperparameters": {
            name: getattr(training, name) for name in ("learning_rate", "batch_size", "window", "seed")
        },
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "license": "apache-2.0",
        "language": ["en"],
        "tags": ["rgtg-logits"],
        "notes": [
            "It writes half-fluent film reviews and is good for nothing but tests and demonstrations of guided "
            f"decoding on a CPU. It learnt from the Large Movie Review Dataset ({CITATION}): reviews of the training "
            "and of the unsupervised part, each led by `<|endoftext|>`. Start a prompt with that token.",
            "The tokens and the first loss below are those of its last training; the model that this training began "
            "with had been trained from scratch on 9.8 million tokens of the same reviews.",
        ],
    }


def reward_facts(run: Path, name: str, base_name: str) -> CardFacts:
    """Facts about the reward model trained on prefixes: those that its training wrote, and those measured here."""
    facts = read_facts(run / "reward_models" / PUBLISHED)
    source = f"samples of {base_name} on the first words of reviews of {DATASET}"
    return replace(
        facts,
        model_id=name,
        data=replace(facts.data or DataFacts(), name=source),
        language=("en",),
        license="apache-2.0",
        suggested_beta=4.0,
        beta_source="what `rgtg demo` uses; see the table of reward against KL",
        evaluations=evaluations(read(run / "prefix_accuracy.json")),
        guidance=guidance(read(run / "evaluation" / "val-cut" / "results.json"), base_name),
        notes=_notes(run, base_name),
    )


def evaluations(accuracy: dict[str, Any]) -> tuple[PrefixEvaluation, ...]:
    """Prefix accuracy of the model and of its twin, as facts."""
    names = {PUBLISHED: "this model", "full_bt": "the same trained on finished texts only"}
    return tuple(
        PrefixEvaluation(
            name=label,
            pairs=accuracy["pairs"],
            prefix_accuracy=dict(zip(accuracy["percents"], accuracy["accuracy"][key]["mean"], strict=True)),
            standard_error=dict(zip(accuracy["percents"], accuracy["accuracy"][key]["standard_error"], strict=True)),
            baseline=key != PUBLISHED,
        )
        for key, label in names.items()
    )


def guidance(results: dict[str, Any], base_name: str) -> Guidance:
    """Reward against KL of guidance cut to its candidates, as facts."""
    policies = [policy for policy in results["policies"] if policy["name"] in ("base", "PARGS")]
    settings = results["settings"]
    return Guidance(
        points=tuple(_point(policy) for policy in sorted(policies, key=lambda policy: policy["beta"])),
        reward="log-odds of positive sentiment, in nats, by the classifier that labelled the pairs",
        kl="nats per answer",
        prompts=results["prompts"],
        confidence=95,
        base_model=base_name,
        setting=f"sampling from the {settings['top_k']} most probable tokens, {settings['max_new_tokens']} new tokens; "
        "that truncation alone is the KL at beta 0",
    )


def _point(policy: dict[str, Any]) -> GuidedPoint:
    reward, *reward_interval = policy["judges"]["gold"]["reward"]
    kl, *kl_interval = policy["kl"]
    return GuidedPoint(
        beta=policy["beta"], reward=reward, reward_interval=tuple(reward_interval), kl=kl,
        kl_interval=tuple(kl_interval),
    )  # fmt: skip


def _notes(run: Path, base_name: str) -> tuple[str, ...]:
    accuracy, gold = read(run / "prefix_accuracy.json"), read(run / "gold.json")
    errors = accuracy["accuracy"][PUBLISHED]["standard_error"]
    return (
        f"It prefers film reviews of positive sentiment, was trained from `{base_name}`, shares its tokenizer and "
        "is small enough for tests and demonstrations on a CPU. It knows nothing else.",
        "Pairs: two samples of the base model (temperature 1, 64 new tokens) after `<|endoftext|>` and the first 12 "
        "tokens of a review. A sample that was cut at the limit has no end-of-text token. The label is a Bradley-Terry "
        "draw on the log-odds of a sentiment classifier (TF-IDF and logistic regression; "
        f"{gold['accuracy']:.3f} accurate on held-out reviews). Reviews: the Large Movie Review Dataset ({CITATION}).",
        "The accuracies below were measured with these bfloat16 weights, computed with in float32, on pairs from "
        f"reviews that were used in no training; their standard errors are at most {max(errors):.3f}. The "
        f"classifier itself agrees with {accuracy['gold']['mean'][0]:.3f} of the drawn labels of finished texts.",
    )


def read(file: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    return json.loads(file.read_text(encoding="utf-8"))


def save_bfloat16(source: Path, target: Path, model_class: type) -> None:
    """Stores a checkpoint in bfloat16, with its tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    model_class.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)
    _make_readable_by_transformers_4(target / "tokenizer_config.json")


def _make_readable_by_transformers_4(file: Path) -> None:
    """Names a tokenizer class that transformers 4.57 knows (5 reads both names), and no token types."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    for name in ("backend", "is_local", "local_files_only"):
        settings.pop(name, None)
    write(file, json.dumps(settings, indent=2) + "\n")


def main(args: Arguments) -> None:
    """Makes both folders."""
    base_folder = Path(args.output_dir) / args.base_name
    reward_folder = Path(args.output_dir) / args.reward_name
    if args.base is not None:
        save_bfloat16(Path(args.base), base_folder, AutoModelForCausalLM)
        write_base_card(base_folder, base_facts(Path(args.base), args.base_name))
    if args.run is not None:
        source = Path(args.run) / "reward_models" / PUBLISHED
        save_bfloat16(source, reward_folder, AutoModelForSequenceClassification)
        write_card(reward_folder, reward_facts(Path(args.run), args.reward_name, args.base_name))
    score_example(reward_folder, *EXAMPLE)
    render_folder(reward_folder)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
