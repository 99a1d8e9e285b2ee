"""The body of `rgtg pairs`: reads prompts, draws answers, judges them, writes rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, BinaryIO

from jaxtyping import Int
from rich.progress import Progress, TaskID
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rgtg_logits
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically
from rgtg_logits.pairs.journal import Journal
from rgtg_logits.pairs.report import PairReport, facts_path
from rgtg_logits.pairs.rows import Counts, Judged, make_rows
from rgtg_logits.pairs.settings import PairSettings
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.sampling import (
    Judge,
    Prompt,
    Sampler,
    digest,
    encode_prompts,
    listed,
    load_base_model,
    load_reward,
    read_prompts,
    resolve_device,
    usable_prompts,
)
from rgtg_logits.scorers import load_scorer


def make_pairs(settings: PairSettings, progress: Progress | None = None) -> PairReport:
    """Draws answers to prompts from a base model, judges them by a reward, and writes preference pairs or labels.

    The rows are what TRL's `RewardTrainer` and `rgtg train` take: `prompt`, `chosen` and `rejected` (or `prompt`,
    `completion` and `reward`), as texts, or as messages where the prompts are messages. The rewards and which answers
    were cut are in further columns that trainers do not look at. There is no column `margin`, which TRL would subtract
    from the difference of rewards: labels drawn by Bradley-Terry hold the size of the difference already.

    An answer that was cut at `max_new_tokens` says so in its row, because trainers close every text with an end-of-text
    token: where many are cut, a reward model learns that texts end there. Leave such rows out, or allow longer answers.

    By default answers are draws from the base model itself (temperature 1, nothing cut), because the objectives that
    estimate an expectation under it (`value`, `soft_value`) are about the policy that the answers come from. With a
    guide that is the guided policy, which strong guidance leads to texts that the base model hardly writes: a reward
    model that is to guide further has to have learnt from such texts.

    Progress is kept beside the output, in a file of the same name that ends in .part. A run that was killed goes on
    from there when it is started with the same settings and the same prompts, and the output is that of a run without
    interruption, byte for byte; only `batch_size` and `device` may differ, which changes rounding. The output and the
    facts about it (.facts, JSON) appear whole or not at all. Weights are not compared: do not go on with a model that
    was trained on in between.

    Args:
        settings: What to do.
        progress: Where to show how far it is.

    Raises:
        InvalidArgumentError: If the output exists, the prompts cannot be read or used, the .part file is of another
            run, or no row is left.
        CheckpointError: If a model cannot be loaded.
        RewardModelError: If the reward model is none.
    """
    device, dtype = resolve_device(settings.device, settings.dtype)
    settings = replace(settings, device=device, dtype=dtype)
    output = Path(settings.output)
    part = output.with_suffix(".part")
    _check_free(output, part)
    values = read_prompts(settings.prompts, settings.prompt_column, settings.split, settings.limit)
    journal = Journal(part, {**settings.identity(), "prompts_digest": digest(values)})
    model, tokenizer = load_base_model(settings.base, device, dtype)
    judge = load_reward(settings.reward, label_name=settings.label_name, dtype=dtype, device=device)
    sampler = _sampler(model, tokenizer, settings)
    prompts, left_out = usable_prompts(
        encode_prompts(
            values, tokenizer, prompt_tokens=settings.prompt_tokens, prompt_prefix=settings.prompt_prefix
        ),
        model, settings.max_new_tokens,
    )  # fmt: skip
    _answer(prompts, sampler, judge, journal, settings, progress)
    revision = getattr(model.config, "_commit_hash", None)
    return _finish(journal, prompts, left_out, settings, revision)


def _sampler(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: PairSettings) -> Sampler:
    sample = partial(
        Sampler, model, tokenizer, max_new_tokens=settings.max_new_tokens, seed=settings.seed,
        temperature=settings.temperature,
    )  # fmt: skip
    if settings.guide is None:
        return sample(top_k=settings.top_k, top_p=settings.top_p)
    scorer = load_scorer(settings.guide, tokenizer, dtype=str(settings.dtype), device=str(settings.device))

    def guide(mask: Int[Tensor, "batch length"]) -> PartialRewardLogitsProcessor:
        return PartialRewardLogitsProcessor(
            scorer, beta=settings.beta, top_k=settings.top_k or sys.maxsize, top_p=settings.top_p, rest=settings.rest,
            tokenizer=tokenizer, pad_token_id=sampler.pad, attention_mask=mask,
        )  # fmt: skip

    sampler = sample(guide=guide)
    return sampler


def _check_free(output: Path, part: Path) -> None:
    """Refuses to write over anything but what an interrupted run of its own has left."""
    for path in (output, facts_path(output)):
        if path.exists() and not part.exists():
            raise InvalidArgumentError(
                f"Expected --output {str(output)!r} to be new, but {path.name!r} exists there. Move it away, or write "
                "to another file."
            )


def _answer(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    judge: Judge,
    journal: Journal,
    settings: PairSettings,
    progress: Progress | None,
) -> None:
    """Draws and judges every answer that the journal does not have yet."""
    total = len(prompts) * settings.drawn
    if len(journal) < total:
        # From the beginning of a batch, because the same batches give the same rounding.
        journal.keep(len(journal) - len(journal) % settings.batch_size)
    task = _begin(progress, total, len(journal))
    for start in range(len(journal), total, settings.batch_size):
        places = [divmod(place, settings.drawn) for place in range(start, min(start + settings.batch_size, total))]
        asked = [prompts[prompt] for prompt, _ in places]
        answers = sampler.draw(asked, [number for _, number in places])
        said = [index for index, answer in enumerate(answers) if answer.text]
        rewards = judge([asked[index] for index in said], [answers[index].text for index in said]) if said else []
        found = dict(zip(said, rewards, strict=True))
        journal.append([{**answer._asdict(), "reward": found.get(index)} for index, answer in enumerate(answers)])
        if progress is not None and task is not None:
            progress.advance(task, len(places))


def _begin(progress: Progress | None, total: int, done: int) -> TaskID | None:
    return None if progress is None else progress.add_task("answers", total=total, completed=done)


def _finish(
    journal: Journal,
    prompts: Sequence[Prompt],
    left_out: Mapping[str, int],
    settings: PairSettings,
    revision: str | None,
) -> PairReport:
    """Writes the rows, then the facts, then forgets the journal."""
    judged, counts = [Judged(**record) for record in journal.records()], Counts()
    rows = list(make_rows(prompts, judged, settings, counts))
    if not rows:
        raise InvalidArgumentError(
            f"Expected answers to make {settings.format} of, but none could be used: {listed(counts.left_out)}. "
            "Draw more or longer answers, or use another reward."
        )
    rewards = [answer.reward for answer in judged if answer.reward is not None and isfinite(answer.reward)]
    report = PairReport(
        settings=settings.public(),
        versions={
            "rgtg_logits": rgtg_logits.__version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
        prompts=len(prompts),
        prompts_left_out=dict(sorted(left_out.items())),
        answers=len(judged),
        truncated=fmean(answer.truncated for answer in judged),
        mean_reward=fmean(rewards) if rewards else None,
        reward_deviation=pstdev(rewards) if rewards else None,
        rows=counts.rows,
        left_out=dict(sorted(counts.left_out.items())),
        ties=counts.ties,
        base_revision=revision,
    )
    output = Path(settings.output)
    write_atomically(output, lambda file: _write_rows(file, rows, output.suffix))
    write_atomically(facts_path(output), report.write)
    journal.remove()
    return report


def _write_rows(file: BinaryIO, rows: Iterable[dict[str, Any]], suffix: str) -> None:
    if suffix == ".parquet":
        from pyarrow import Table, parquet  # noqa: PLC0415  (comes with datasets)

        parquet.write_table(Table.from_pylist(list(rows)), file)
        return
    file.writelines(_json_lines(rows))


def _json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
