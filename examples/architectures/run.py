"""Sweeps every decoder of the installed transformers and checks that the scorer chosen for it is exact.

    python examples/architectures/run.py --output examples/architectures/transformers-5.24.md
    python examples/architectures/run.py llama jamba bert

Each is built tiny with random weights. Without model types it takes all that have a sequence-classification class, all
language models for which the library builds one, and some settings that change how a decoder attends. A table that is
written beside a README also brings the README's counts up to date.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from sweep import ROUNDING, SENSITIVE, Row, examine
from table import markdown, update_counts
from tiny import SETTINGS
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

CLASSIFIERS = "Sequence classifiers"
BUILT = "Language models"
OTHER = "Settings"


def main() -> None:
    """Prints each row at once, and writes the table at the end."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("types", nargs="*", metavar="TYPE", help="model types; all by default")
    arguments.add_argument("--output", type=Path, help="markdown file to write")
    arguments.add_argument("--prepack", action="store_true", help="lay the weights out beforehand")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sections = {
        title: list(_rows(names, prepack=options.prepack)) for title, names in _sections(options.types).items() if names
    }
    text = "\n".join([_heading(), *(markdown(title, rows) for title, rows in sections.items())])
    if options.output is None:
        print(text)
        return
    options.output.write_text(text, encoding="utf8")
    readme = options.output.parent / "README.md"
    if readme.exists():
        update_counts(readme)


def _sections(selected: list[str]) -> dict[str, list[str]]:
    classifiers = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    models = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    sections = {
        CLASSIFIERS: sorted(classifiers),
        BUILT: sorted(set(models) - set(classifiers)),
        OTHER: [name for name in SETTINGS if name.partition(",")[0] in classifiers],
    }
    unknown = set(selected) - {name for names in sections.values() for name in names}
    if unknown:
        raise SystemExit(f"Expected model types that transformers {version('transformers')} has, but got {unknown}.")
    return {title: [name for name in names if not selected or name in selected] for title, names in sections.items()}


def _rows(names: list[str], *, prepack: bool) -> Iterator[Row]:
    for name in names:
        row = examine(name, prepack=prepack, **SETTINGS.get(name, {}))
        print(row.name, row.outcome, "" if row.error is None else f"{row.error:.0e}", file=sys.stderr, flush=True)
        yield row


def _heading() -> str:
    release = ".".join(version("transformers").split(".")[:2])
    return f"""# Architectures of transformers {release}

Made with transformers {transformers.__version__} and torch {torch.__version__.split("+")[0]} by

    python examples/architectures/run.py --output examples/architectures/transformers-{release}.md

"In spreads" is the worst error over the standard deviation of the rewards of one row's candidates; up to {ROUNDING:.0e}
it is rounding. A row whose spread, or the part of it that the prefix decides, is below {SENSITIVE} would say nothing.
"""


if __name__ == "__main__":
    main()
