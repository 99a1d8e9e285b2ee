"""Makes the folders of the two models of this example as they would be pushed to the Hub, cards included.

    python examples/reviews/publish.py --run runs/reviews --base runs/base/final --output_dir model_cards

`--run` is what the other scripts wrote, `--base` what train_base.py wrote; without them, the folders that are there are
kept, and only what the usage example prints is computed anew. Cards hold measured numbers only; `rgtg card` makes them
from the `facts.json` beside them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from files import write
from train_base import Arguments as BaseTraining
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, HfArgumentParser

from rgtg_logits.card import (
    BaseCardFacts,
    CardFacts,
    DataFacts,
    Evaluation,
    Guidance,
    GuidedPoint,
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
    """Where the parts are, and where the folders go."""

    run: str | None = None
    base: str | None = None
    output_dir: str = "model_cards"
    base_name: str = "tiny-imdb-base"
    reward_name: str = "tiny-imdb-partial-rm"


def base_facts(base: Path, name: str) -> BaseCardFacts:
    """What is known of the base model."""
    report = json.loads((base.parent / "validation.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(base)
    training = BaseTraining(model="")
    return BaseCardFacts(
        model_id=name,
        data=DataFacts(name=DATASET, on_hub=True),
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        tokens=report["tokens"],
        loss_before=report["before"],
        loss_after=report["after"],
        hyperparameters={name: getattr(training, name) for name in ("learning_rate", "batch_size", "window", "seed")},
        versions={name: version(name) for name in ("torch", "transformers")},
        license="apache-2.0",
        language=("en",),
        tags=("rgtg-logits",),
        notes=(
            "It writes half-fluent film reviews and is good for nothing but tests and demonstrations of guided "
            f"decoding on a CPU. It learnt from the Large Movie Review Dataset ({CITATION}): reviews of the training "
            "and of the unsupervised part, each led by `<|endoftext|>`. Start a prompt with that token.",
            "The tokens and the first loss below are those of its last training; the model that this training began "
            "with had been trained from scratch on 9.8 million tokens of the same reviews.",
        ),
    )


def reward_facts(run: Path, name: str, base_name: str) -> CardFacts:
    """What is known of the reward model trained on prefixes: what its training wrote, and what was measured here."""
    facts = read_facts(run / "reward_models" / PUBLISHED)
    if not isinstance(facts, CardFacts):
        raise ValueError(f"Expected the facts of a reward model in {run / 'reward_models' / PUBLISHED}.")
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


def evaluations(accuracy: dict[str, Any]) -> tuple[Evaluation, ...]:
    """Prefix accuracy of the model and of its twin, as facts."""
    names = {PUBLISHED: "this model", "full_bt": "the same trained on finished texts only"}
    return tuple(
        Evaluation(
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
    lines = sorted((p for p in results["policies"] if p["name"] in ("base", "PARGS")), key=lambda p: p["beta"])
    points = (
        GuidedPoint(
            beta=line["beta"], reward=reward[0], reward_interval=tuple(reward[1:]), kl=kl[0], kl_interval=tuple(kl[1:])
        )
        for line in lines
        for reward, kl in [(line["judges"]["gold"]["reward"], line["kl"])]
    )
    settings = results["settings"]
    return Guidance(
        points=tuple(points),
        reward="log-odds of positive sentiment, in nats, by the classifier that labelled the pairs",
        kl="nats per answer",
        prompts=results["prompts"],
        confidence=95,
        base_model=base_name,
        setting=f"sampling from the {settings['top_k']} most probable tokens, {settings['max_new_tokens']} new tokens; "
        "that truncation alone is the KL at beta 0",
    )


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
    """A JSON object."""
    return json.loads(file.read_text(encoding="utf-8"))


def publish(source: Path, target: Path, kind: type, facts: CardFacts | BaseCardFacts) -> None:
    """Stores a checkpoint in bfloat16, with its tokenizer and its card."""
    target.mkdir(parents=True, exist_ok=True)
    kind.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)
    _readable_by_older_transformers(target / "tokenizer_config.json")
    write_card(target, facts)


def _readable_by_older_transformers(file: Path) -> None:
    """Says of the tokenizer what transformers 4.57 needs: a class it knows (5 reads both names), and no token types."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    for name in ("backend", "is_local", "local_files_only"):
        settings.pop(name, None)
    write(file, json.dumps(settings, indent=2) + "\n")


def main(args: Arguments) -> None:
    """Makes both folders."""
    target = Path(args.output_dir)
    if args.base is not None:
        facts = base_facts(Path(args.base), args.base_name)
        publish(Path(args.base), target / args.base_name, AutoModelForCausalLM, facts)
    if args.run is not None:
        facts = reward_facts(Path(args.run), args.reward_name, args.base_name)
        source = Path(args.run) / "reward_models" / PUBLISHED
        publish(source, target / args.reward_name, AutoModelForSequenceClassification, facts)
    score_example(target / args.reward_name, *EXAMPLE)
    render_folder(target / args.reward_name)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
