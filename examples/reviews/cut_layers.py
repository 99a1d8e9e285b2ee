"""Smaller models to train reward models from: the first layers of the base model.

    python examples/reviews/cut_layers.py --model PATH_OR_ID --output_dir runs/reviews --layers 2 4

Writes the folders `bases/layers-2`, ... with the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from files import draft_of
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser


@dataclass
class Arguments:
    """The model, and the numbers of layers to keep."""

    model: str
    output_dir: str = "runs/reviews"
    layers: list[int] = field(default_factory=lambda: [2, 4])


def main(args: Arguments) -> None:
    """Writes the folders that are missing."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for layers in args.layers:
        folder = Path(args.output_dir) / "bases" / f"layers-{layers}"
        if folder.exists():
            continue
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[:layers]
        draft = draft_of(folder)
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.rename(folder)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
