"""Makes the folders of the two models of this example as they would be pushed to the Hub, cards included.

    python examples/imdb_sentiment/publish.py --run runs/imdb --base runs/base/final --output_dir model_cards

`--run` is what run.py wrote, `--base` what train_base.py wrote. Cards hold measured numbers only; `facts.json` beside a
card is what it was rendered from.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from stages import write
from train_base import Arguments as BaseTraining
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser

from rgtg_logits.card import BaseCardFacts, CardFacts, Evaluation, render_card

CITATION = "Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011"
DATASET = "stanfordnlp/imdb"


@dataclass
class Arguments:
    """Where the parts are, and where the folders go."""

    run: str
    base: str
    output_dir: str = "model_cards"
    base_name: str = "tiny-imdb-base"
    reward_name: str = "tiny-imdb-partial-rm"


def base_facts(args: Arguments) -> BaseCardFacts:
    """What is known of the base model."""
    report = json.loads((Path(args.base).parent / "validation.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(args.base)
    training = BaseTraining(model="")
    return BaseCardFacts(
        model_id=args.base_name,
        dataset=DATASET,
        dataset_on_hub=True,
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


def reward_facts(args: Arguments) -> CardFacts:
    """What is known of the reward model trained on prefixes."""
    run = Path(args.run)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    training = json.loads((run / "reward_models" / "partial_bt.json").read_text(encoding="utf-8"))
    accuracy, settings = results["prefix_accuracy"], results["settings"]
    facts: dict[str, Any] = {
        **training["facts"],
        "model_id": args.reward_name,
        "language": ("en",),
        "license": "apache-2.0",
    }
    facts["evaluations"] = tuple(
        Evaluation(name=name, pairs=accuracy["pairs"], prefix_accuracy=_by_percent(accuracy, key))
        for name, key in (("this model", "partial_bt"), ("the same trained on finished texts only", "full_bt"))
    )
    facts["dataset"] = f"samples of {args.base_name} on the first words of reviews of {DATASET}"
    errors = accuracy["partial_bt"]["standard_error"]
    facts["notes"] = (
        f"It prefers film reviews of positive sentiment, was trained from `{args.base_name}`, shares its tokenizer and "
        "is small enough for tests and demonstrations on a CPU. It knows nothing else.",
        f"Pairs: two samples of the base model (temperature 1, {settings['new_tokens']} new tokens) after "
        "`<|endoftext|>` and the first 12 tokens of a review. A sample that was cut at the limit has no end-of-text "
        "token. The label is a Bradley-Terry draw on the log-odds of a sentiment classifier (TF-IDF and logistic "
        f"regression; {results['sentiment']['gold']['accuracy']:.3f} accurate on held-out reviews). Reviews: the Large "
        f"Movie Review Dataset ({CITATION}).",
        f"The accuracies below were measured with these bfloat16 weights, computed with in float32, on pairs from "
        f"reviews that were used in no training; their standard errors are {min(errors):.3f} to {max(errors):.3f}. The "
        f"classifier itself agrees with {accuracy['gold']['mean'][0]:.3f} of the drawn labels of finished texts.",
    )
    return CardFacts(**facts)


def _by_percent(accuracy: dict[str, Any], key: str) -> dict[int, float]:
    return dict(zip(accuracy["percents"], accuracy[key]["mean"], strict=True))


def publish(source: Path, target: Path, facts: CardFacts | BaseCardFacts) -> None:
    """Copies a checkpoint and writes its card.

    Raises:
        ValueError: If the weights are not bfloat16, which is what the card was measured on.
    """
    if AutoConfig.from_pretrained(source).dtype != torch.bfloat16:
        raise ValueError(f"Expected bfloat16 weights in {source}. Save the model in bfloat16 first.")
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.suffix in {".json", ".safetensors"}:
            shutil.copyfile(file, target / file.name)
    _readable_by_older_transformers(target / "tokenizer_config.json")
    write(target / "facts.json", json.dumps(asdict(facts), indent=2) + "\n")
    write(target / "README.md", render_card(facts))


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
    publish(Path(args.base), target / args.base_name, base_facts(args))
    publish(Path(args.run) / "reward_models" / "partial_bt", target / args.reward_name, reward_facts(args))


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
