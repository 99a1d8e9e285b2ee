"""Data as they lie on disks: kinds of files and folders, damaged and empty ones, and nothing written beside them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import datasets
import pyarrow
import pytest
from conftest import make_pairs
from datasets import Dataset, DatasetDict

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.sampling import read_prompts
from rgtg_logits.train import PartialRewardTrainer
from rgtg_logits.train.run import load_training_data

ROWS = [{"prompt": f"film {index}?", "chosen": " good", "rejected": " bad"} for index in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "prompt\tchosen\trejected\n" + "".join("\t".join(row.values()) + "\n" for row in ROWS)
PROMPTS = [row["prompt"] for row in ROWS]


def write(folder: Path, name: str) -> str:
    file = folder / name
    if name.endswith(".zst"):
        file.write_bytes(pyarrow.Codec("zstd").compress(LINES.encode(), asbytes=True))
    elif name.endswith(".arrow"):
        table = pyarrow.Table.from_pylist(ROWS)
        with pyarrow.ipc.new_stream(str(file), table.schema) as stream:
            stream.write_table(table)
    elif name.lower().endswith(".tsv"):
        file.write_text(TABLE)
    elif name == "one":
        Dataset.from_list(ROWS).save_to_disk(str(file))
    elif name == "several":
        rows = Dataset.from_list(ROWS)
        DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(file))
    else:
        file.write_bytes((codecs.BOM_UTF8 if "bom" in name else b"") + LINES.encode())
    return str(file)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.JSONL", "a.tsv", "a.TSV", "a.arrow", "bom.jsonl", "one", "several"])
def test_files_and_folders(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    for streaming in (False, True):
        assert list(load_training_data(path, streaming=streaming)["train"]) == ROWS
    assert read_prompts(path, "prompt", None, None) == PROMPTS
    assert sorted(tmp_path.rglob("*")) == before


def test_a_text_file_begins_behind_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + b"one\n\ntwo\n")
    assert read_prompts(str(tmp_path / "a.txt"), None, None, None) == ["one", "two"]


@pytest.mark.parametrize("name", ["one", "several"])
def test_nothing_is_written_beside_saved_data(base: str, make_config, tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    data = load_training_data(path)["train"]
    PartialRewardTrainer(base, make_config(), train_dataset=data, eval_dataset=data).train()
    assert [file for file in sorted(tmp_path.rglob("*")) if "reward-model" not in str(file)] == before
    assert datasets.is_caching_enabled()
    assert read_prompts(path, "prompt", None, None) == PROMPTS


DAMAGED = {
    "empty.jsonl": ("", "but the file is empty"),
    "blank.jsonl": ("\n\n", "reading it failed"),
    "cut.jsonl": (LINES + '{"prompt": "cut of', "reading it failed: row 3 is no JSON"),
    "surrogate.jsonl": (LINES + r'{"prompt": "x \ud83d", "chosen": "a", "rejected": "b"}', "row 3 holds half of a"),
    "empty.csv": ("", "but the file is empty"),
    "header.csv": ("prompt,chosen,rejected\n", "reading it failed"),
    "latin.csv": (b"prompt,chosen,rejected\n\xe9,b,c\n", "reading it failed: 'utf-8' codec can't decode"),
    "cut.parquet": (b"PAR1garbage", "reading it failed: Parquet magic bytes not found"),
    "cut.jsonl.gz": (b"\x1f\x8bgarbage", "reading it failed"),
    "cut.jsonl.zst": (b"garbage", "reading it failed"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_empty_files(tmp_path: Path, name: str) -> None:
    content, message = DAMAGED[name]
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidArgumentError, match=rf"'.*{name}'.*{message}.* Check --dataset_name\."):
        load_training_data(str(file))
    with pytest.raises(InvalidArgumentError, match=rf"'.*{name}'.*(Check --prompts|no rows)"):
        read_prompts(str(file), "prompt", None, None)


def test_lists_of_texts(base: str, make_config, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}\n')
    with pytest.raises(InvalidArgumentError, match="column 'prompt' of .*row 0 holds list"):
        read_prompts(str(tmp_path / "a.jsonl"), "prompt", None, None)
    data = load_training_data(str(tmp_path / "a.jsonl"))["train"]
    with pytest.raises(InvalidArgumentError, match="'chosen' of row 0 of the train data .* but got list of str"):
        PartialRewardTrainer(base, make_config(), train_dataset=data)


def test_the_splits_of_made_data_are_cached(base: str, make_config) -> None:
    """Data of the cache of `datasets`, or of none, are prepared as ever."""
    assert datasets.is_caching_enabled()
    PartialRewardTrainer(base, make_config(), train_dataset=make_pairs(3, seed=0))
    assert datasets.is_caching_enabled()
