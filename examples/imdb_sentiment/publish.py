"""Makes the folders of the two models of this example as they would be pushed to the Hub, cards included.

    python examples/imdb_sentiment/publish.py --run runs/imdb --base runs/base/final --output_dir model_cards

`--run` is what run.py wrote, `--base` what train_base.py wrote; without them, the folders that are there are kept, and
only what the usage example prints is computed anew. Cards hold measured numbers only; `rgtg card` makes them from the
`facts.json` beside them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from stages import write
from train_base import Arguments as BaseTraining
from transformers import AutoConfig, AutoModelForCausalLM, HfArgumentParser

from rgtg_logits.card import BaseCardFacts, CardFacts, DataFacts, Evaluation, Guidance, GuidedPoint
from rgtg_logits.card.files import render_folder, score_example, write_card

CITATION = "Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011"
DATASET = "stanfordnlp/imdb"
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
    """What is known of the reward model trained on prefixes."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    training = json.loads((run / "reward_models" / "partial_bt.json").read_text(encoding="utf-8"))
    facts = CardFacts.from_dict(training["facts"])
    source = f"samples of {base_name} on the first words of reviews of {DATASET}"
    return replace(
        facts,
        model_id=name,
        data=replace(facts.data or DataFacts(), name=source),
        language=("en",),
        license="apache-2.0",
        notes=_notes(results, base_name),
        **measured(results, base_name),
    )


def measured(results: dict[str, Any], base_name: str) -> dict[str, Any]:
    """The figures of the run, as facts."""
    accuracy, settings = results["prefix_accuracy"], results["settings"]
    names = {"partial_bt": "this model", "full_bt": "the same trained on finished texts only"}
    evaluations = tuple(
        Evaluation(
            name=label,
            pairs=accuracy["pairs"],
            prefix_accuracy=dict(zip(accuracy["percents"], accuracy[key]["mean"], strict=True)),
            standard_error=dict(zip(accuracy["percents"], accuracy[key]["standard_error"], strict=True)),
            baseline=key != "partial_bt",
        )
        for key, label in names.items()
    )
    lines = [line for line in results["policies"] if line["method"] in ("base sampling", "PARGS sampling")]
    guidance = Guidance(
        points=tuple(
            GuidedPoint(
                beta=line["beta"],
                reward=line["gold"],
                kl=line["kl_per_token"],
                reward_interval=tuple(line["gold_interval"]),
                kl_interval=tuple(line["kl_per_token_interval"]),
            )
            for line in sorted(lines, key=lambda line: line["beta"])
        ),
        reward="log-odds of positive sentiment, in nats, by the classifier that labelled the pairs",
        kl="nats per token",
        prompts=lines[0]["prompts"],
        confidence=95,
        base_model=base_name,
        setting=f"sampling from the {settings['top_k']} most probable tokens, {settings['new_tokens']} new tokens; "
        "that truncation alone is the KL at beta 0",
    )
    return {
        "evaluations": evaluations,
        "guidance": guidance,
        "suggested_beta": 4.0,
        "beta_source": "what `rgtg demo` uses; see the table of reward against KL",
    }


def _notes(results: dict[str, Any], base_name: str) -> tuple[str, ...]:
    accuracy, settings = results["prefix_accuracy"], results["settings"]
    errors = accuracy["partial_bt"]["standard_error"]
    return (
        f"It prefers film reviews of positive sentiment, was trained from `{base_name}`, shares its tokenizer and "
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
        publish(Path(args.base), target / args.base_name, base_facts(Path(args.base), args.base_name))
    if args.run is not None:
        facts = reward_facts(Path(args.run), args.reward_name, args.base_name)
        publish(Path(args.run) / "reward_models" / "partial_bt", target / args.reward_name, facts)
    score_example(target / args.reward_name, *EXAMPLE)
    render_folder(target / args.reward_name)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
