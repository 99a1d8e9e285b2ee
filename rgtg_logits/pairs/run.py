"""The body of `rgtg pairs`: reads prompts, samples answers, judges them, writes rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, BinaryIO

from jaxtyping import Int
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rgtg_logits
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically
from rgtg_logits.pairs.journal import Journal
from rgtg_logits.pairs.report import PairReport, facts_path
from rgtg_logits.pairs.rows import RowCounts, ScoredAnswer, make_rows
from rgtg_logits.pairs.settings import PairSettings
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.sampling import (
    Answer,
    Judge,
    Prompt,
    Sampler,
    describe_counts,
    digest_prompts,
    encode_prompts,
    load_base_model,
    load_reward,
    read_prompts,
    resolve_device,
    usable_prompts,
)
from rgtg_logits.scorers import load_scorer


def make_pairs(settings: PairSettings, progress: Progress | None = None) -> PairReport:
    """Samples answers to prompts from a base model, scores them by a reward, and writes preference pairs or labels.

    The rows have the columns that TRL's `RewardTrainer` and `rgtg train` expect: `prompt`, `chosen` and `rejected` (or
    `prompt`, `completion` and `reward`), as texts, or as messages if the prompts are messages. Further columns, which
    trainers ignore, hold the rewards and whether an answer was cut. There is no column `margin`, which TRL would
    subtract from the difference of rewards: Bradley-Terry labels reflect the size of the difference already.

    A row says whether its answers were cut at `max_new_tokens`, because trainers close every text with an end-of-text
    token: where many answers are cut, a reward model learns that texts end there. Leave such rows out, or allow longer
    answers.

    By default answers are samples from the base model itself (temperature 1, whole vocabulary), because the objectives
    that estimate an expectation (`value`, `soft_value`) estimate it under the policy that the answers come from. With a
    guide this is the guided policy. Strong guidance leads to texts that the base model hardly ever writes, so a reward
    model that is to guide that far has to be trained on such texts.

    Progress is kept beside the output, in a file of the same name that ends in .part. A run that was killed resumes
    from this file when it is started with the same settings and the same prompts, and its output equals that of an
    uninterrupted run byte for byte; only `batch_size` and `device` may differ, which changes rounding. The output and
    the facts about it (.facts, JSON) appear whole or not at all. Weights are not compared: do not resume with a model
    that has been trained further in between.

    Args:
        settings: Settings of the run.
        progress: Progress bar of the answers.

    Raises:
        InvalidArgumentError: If the output exists, the prompts cannot be read or used, the .part file is of another
            run, or no row is left.
        CheckpointError: If a model cannot be loaded.
        RewardModelError: If the checkpoint of the reward is no reward model.
    """
    device, dtype = resolve_device(settings.device, settings.dtype)
    settings = replace(settings, device=device, dtype=dtype)
    output = Path(settings.output)
    part = output.with_suffix(".part")
    _check_free(output, part)
    values = read_prompts(settings.prompts, settings.prompt_column, settings.split, settings.limit)
    _remove_unused(part)
    # Before any model is loaded, because other settings are an error.
    journal = Journal(part, {**settings.identity(), "prompts_digest": digest_prompts(values)})
    model, tokenizer = load_base_model(settings.base, device, dtype)
    judge = load_reward(settings.reward, label_name=settings.label_name, dtype=dtype, device=device)
    sampler = _sampler(model, tokenizer, settings)
    prompts, left_out = usable_prompts(
        encode_prompts(
            values, tokenizer, prompt_tokens=settings.prompt_tokens, prompt_prefix=settings.prompt_prefix
        ),
        model, settings.max_new_tokens,
    )  # fmt: skip
    _answer_prompts(prompts, sampler, judge, journal, settings, progress)
    revision = getattr(model.config, "_commit_hash", None)
    return _finish(journal, prompts, left_out, settings, revision)


def _sampler(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: PairSettings) -> Sampler:
    make_sampler = partial(
        Sampler, model, tokenizer, max_new_tokens=settings.max_new_tokens, seed=settings.seed,
        temperature=settings.temperature,
    )  # fmt: skip
    if settings.guide is None:
        return make_sampler(top_k=settings.top_k, top_p=settings.top_p)
    scorer = load_scorer(settings.guide, tokenizer, dtype=str(settings.dtype), device=str(settings.device))

    def make_guide(attention_mask: Int[Tensor, "batch length"]) -> PartialRewardLogitsProcessor:
        return PartialRewardLogitsProcessor(
            scorer, beta=settings.beta, top_k=settings.top_k or sys.maxsize, top_p=settings.top_p, rest=settings.rest,
            tokenizer=tokenizer, pad_token_id=sampler.pad_token_id, attention_mask=attention_mask,
        )  # fmt: skip

    sampler = make_sampler(guide=make_guide)
    return sampler


def _check_free(output: Path, part: Path) -> None:
    """Refuses to overwrite files, except those that an interrupted run has left beside its journal."""
    for path in (output, facts_path(output)):
        if path.exists() and not part.exists():
            raise InvalidArgumentError(
                f"Expected --output {str(output)!r} to be new, but {path.name!r} exists there. Move it away, or write "
                "to another file."
            )


def _remove_unused(part: Path) -> None:
    """Removes the journal of a run that ended before its first answer: it holds nothing but that run's settings."""
    if not part.is_file():
        return
    with part.open("rb") as lines:
        lines.readline()
        has_answers = lines.readline().endswith(b"\n")
    if not has_answers:
        part.unlink()


def _answer_prompts(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    judge: Judge,
    journal: Journal,
    settings: PairSettings,
    progress: Progress | None,
) -> None:
    """Samples and judges every answer that is not in the journal yet."""
    per_prompt = settings.num_answers
    total = len(prompts) * per_prompt
    if len(journal) < total:
        # Resumes at the beginning of a batch, because equal batches have equal rounding.
        journal.truncate(len(journal) - len(journal) % settings.batch_size)
    task = None
    if progress is not None:
        task = progress.add_task("answers", total=total, completed=len(journal))
    for start in range(len(journal), total, settings.batch_size):
        indices = range(start, min(start + settings.batch_size, total))
        batch = [prompts[index // per_prompt] for index in indices]
        answers = sampler.draw(batch, [index % per_prompt for index in indices])
        rewards = _judge(judge, batch, answers)
        records = [{**answer._asdict(), "reward": reward} for answer, reward in zip(answers, rewards, strict=True)]
        journal.append(records)
        if progress is not None and task is not None:
            progress.advance(task, len(indices))


def _judge(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[float | None]:
    """The reward of each answer; None for an empty answer, which no judge is shown."""
    rewards: list[float | None] = [None] * len(answers)
    nonempty = [index for index, answer in enumerate(answers) if answer.text]
    if not nonempty:
        return rewards
    given = judge([prompts[index] for index in nonempty], [answers[index].text for index in nonempty])
    for index, reward in zip(nonempty, given, strict=True):
        rewards[index] = reward
    return rewards


def _finish(
    journal: Journal,
    prompts: Sequence[Prompt],
    left_out: Mapping[str, int],
    settings: PairSettings,
    revision: str | None,
) -> PairReport:
    """Writes the rows, then the facts, then removes the journal."""
    answers = [ScoredAnswer(**record) for record in journal.records()]
    counts = RowCounts()
    rows = list(make_rows(prompts, answers, settings, counts))
    if not rows:
        raise InvalidArgumentError(
            f"Expected answers to make {settings.format} of, but none could be used: "
            f"{describe_counts(counts.left_out)}. Draw more or longer answers, or use another reward."
        )
    rewards = [answer.reward for answer in answers if answer.reward is not None and isfinite(answer.reward)]
    report = PairReport(
        settings=settings.public(),
        versions={
            "rgtg_logits": rgtg_logits.__version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
        prompts=len(prompts),
        prompts_left_out=dict(sorted(left_out.items())),
        answers=len(answers),
        truncated=fmean(answer.truncated for answer in answers),
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
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
