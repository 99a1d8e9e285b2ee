"""The card of the base model of this example, rendered from its `facts.json`.

    python examples/reviews/base_card.py model_cards/tiny-imdb-base

`rgtg card` does the same for reward models.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from files import write
from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("base_card.md.jinja")


def write_base_card(folder: Path, facts: dict[str, Any]) -> None:
    """Writes `facts.json` and the card."""
    write(folder / "facts.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    write(folder / "README.md", render(facts))


def render(facts: dict[str, Any]) -> str:
    """The card as Markdown with the YAML header that the Hub reads."""
    header = ModelCardData(
        datasets=facts["data"]["name"],
        language=facts["language"],
        library_name="transformers",
        license=facts["license"],
        pipeline_tag="text-generation",
        tags=facts["tags"],
    )
    return ModelCard.from_template(header, template_path=str(TEMPLATE), facts=facts).content + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_base_card(folder, json.loads((folder / "facts.json").read_text(encoding="utf-8")))
