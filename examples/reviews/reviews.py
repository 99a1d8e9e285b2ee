"""The Large Movie Review Dataset (Maas et al., ACL 2011), from a local folder or from the Hub.

A local folder holds `train.jsonl.gz`, `val.jsonl.gz` and `unsup.jsonl.gz` (fields: `text`, `rating`, `label`, `id`).
On the Hub the same reviews are `stanfordnlp/imdb`, whose `test` split takes the place of `val`.
"""

from __future__ import annotations

import re
from pathlib import Path

from datasets import Dataset, load_dataset

HUB_SPLITS = {"train": "train", "val": "test", "unsup": "unsupervised"}


def load_reviews(data: str, split: str) -> Dataset:
    """Loads one split with clean text: `<br />` tags and runs of spaces become one space."""
    local = Path(data) / f"{split}.jsonl.gz"
    if local.exists():
        reviews = load_dataset("json", data_files=str(local), split="train")
    elif Path(data).exists():
        raise FileNotFoundError(
            f"Expected {local.name} in the data folder {data}, but it is not there. Name another folder or a Hub id."
        )
    else:
        reviews = load_dataset(data, split=HUB_SPLITS[split])
    return reviews.map(lambda row: {"text": clean(row["text"])}, desc=f"clean {split}")


def clean(text: str) -> str:
    """Removes the markup of a scraped review."""
    return re.sub(r"\s+", " ", text.replace("<br />", " ")).strip()
