"""The body of `rgtg evaluate`: reads prompts, samples answers of every policy, judges them, and reports."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.progress import Progress

import rgtg_logits
from rgtg_logits.evaluate.decoding import Decoder, Decoders
from rgtg_logits.evaluate.figures import check_matplotlib
from rgtg_logits.evaluate.methods import Policy, list_policies
from rgtg_logits.evaluate.records import Store, reward_column, write_table
from rgtg_logits.evaluate.report import write_report
from rgtg_logits.evaluate.results import EvaluationResults, Sample, policy_title
from rgtg_logits.evaluate.settings import EvaluationSettings
from rgtg_logits.evaluate.statistics import at_equal_kl, summarise
from rgtg_logits.files import display_name
from rgtg_logits.launcher import is_worker
from rgtg_logits.sampling import (
    Judge,
    Prompt,
    digest_prompts,
    encode_prompts,
    load_base_model,
    load_reward,
    read_prompts,
    resolve_device,
    usable_prompts,
)

SAMPLES = 6
"""Prompts whose answers the report shows."""


def run_evaluation(settings: EvaluationSettings, progress: Progress | None = None) -> EvaluationResults:
    """Compares methods by reward, divergence from the base model, diversity and time of their answers to prompts.

    Every answer becomes a record; see `rgtg_logits.evaluate.records`. The output folder holds records.parquet,
    results.json, table.md, figures, and report.html, a page with everything.

    Answers and rewards are kept in the subfolders `answers` and `rewards`, batch by batch. An evaluation that was
    killed resumes from there when it is started again. One with more methods, strengths or judges does only what is
    new. Weights are not compared: use another folder for a model that has been trained further in between.

    Several processes (`torchrun`, `accelerate launch`, `rgtg evaluate --num_processes`) share the batches, and the
    first one reports.

    Args:
        settings: Settings of the evaluation.
        progress: Progress bar of the answers of this process.

    Raises:
        InvalidArgumentError: If a package of the evaluate extra is missing, the prompts cannot be read or used, a
            function cannot be imported, or the folder holds an evaluation with other settings.
        CheckpointError: If a model cannot be loaded.
        RewardModelError: If a checkpoint that has to be a reward model is none.
        VocabularyError: If a guide does not share the base model's tokens.
    """
    check_matplotlib()
    processes = _Processes.current(settings.device)
    device, dtype = resolve_device(processes.device or settings.device, settings.dtype)
    settings = replace(settings, device=device, dtype=dtype, guide_dtype=settings.guide_dtype or dtype)
    values = read_prompts(settings.prompts, settings.prompt_column, settings.split, settings.limit)
    identity = {**settings.identity(), "prompts_digest": digest_prompts(values)}
    output = Path(settings.output)
    with processes.main_process_first():
        answers = Store(output / "answers", identity)
        rewards = Store(output / "rewards", identity)
    judges = _Judges(settings, rewards)
    model, tokenizer = load_base_model(settings.base, device, dtype)
    encoded = encode_prompts(
        values, tokenizer, prompt_tokens=settings.prompt_tokens, prompt_prefix=settings.prompt_prefix
    )
    prompts, left_out = usable_prompts(encoded, model, settings.max_new_tokens)
    decoders = Decoders(
        model, tokenizer, max_new_tokens=settings.max_new_tokens, top_k=settings.top_k, seed=settings.seed, dtype=dtype,
        guide_dtype=str(settings.guide_dtype), device=device,
    )  # fmt: skip
    # Every process lists all batches and works on its share, so that the first one can report on all of them.
    batches = list(_batches(settings, prompts))
    _answer_batches(processes.share(batches), decoders, answers, judges, progress)
    processes.wait()
    records = _records(batches, answers, judges)
    results = _results(records, settings, prompts, left_out)
    if processes.is_first:
        write_table(output / "records.parquet", records.to_dict("records"))
        write_report(results, output)
    return results


class _Batch(NamedTuple):
    """Answers sampled at once: the answer with number `number` of a policy to each of some prompts."""

    policy: Policy
    number: int
    start: int
    prompts: Sequence[Prompt]

    @property
    def name(self) -> str:
        """Name of its table in a `Store`."""
        return f"{self.policy.key}/{self.number}-{self.start}"


def _batches(settings: EvaluationSettings, prompts: Sequence[Prompt]) -> Iterator[_Batch]:
    for policy in list_policies(settings.methods):
        # All answers of a greedy policy to a prompt are equal.
        for number in range(1 if policy.method.greedy else settings.seeds):
            for start in range(0, len(prompts), settings.batch_size):
                yield _Batch(policy, number, start, prompts[start : start + settings.batch_size])


class _Processes:
    """The processes that share an evaluation.

    Args:
        state: `PartialState` of accelerate; None for a single process.
    """

    def __init__(self, state: Any = None) -> None:
        self._state = state
        self.device = None if state is None else str(state.device)
        self.is_first = state is None or state.is_main_process

    @classmethod
    def current(cls, device: str | None) -> _Processes:
        """The processes that this one was launched with."""
        if not is_worker():
            return cls()
        from accelerate import PartialState  # noqa: PLC0415  (several processes need it, and it takes long to import)

        return cls(PartialState(cpu=device is not None and device.startswith("cpu")))

    def share(self, batches: Sequence[_Batch]) -> Sequence[_Batch]:
        """The batches of this process, some of every policy, so that all processes finish at about the same time."""
        return batches if self._state is None else batches[self._state.process_index :: self._state.num_processes]

    def main_process_first(self) -> AbstractContextManager[Any]:
        """A block that the first process executes before the others."""
        return nullcontext() if self._state is None else self._state.main_process_first()

    def wait(self) -> None:
        """Waits for all processes."""
        if self._state is not None:
            self._state.wait_for_everyone()


class _Judges:
    """All judges, and their rewards on disk.

    Args:
        settings: Settings with the judges.
        store: Store of their rewards.
    """

    def __init__(self, settings: EvaluationSettings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._loaded: dict[str, Judge] = {}

    def missing(self, batch: _Batch) -> list[str]:
        """Names of the judges that have not judged a batch."""
        return [judge for judge in self._settings.judges if self._name(judge, batch) not in self._store]

    def load(self, batches: Iterable[_Batch]) -> None:
        """Loads the judges that have not judged all of some batches."""
        missing = dict.fromkeys(judge for batch in batches for judge in self.missing(batch))
        for judge in missing:
            self._loaded[judge] = load_reward(
                self._settings.judges[judge], label_name=self._label_name(judge), dtype=str(self._settings.dtype),
                device=str(self._settings.device),
            )  # fmt: skip

    def judge(self, batch: _Batch, answers: Sequence[str]) -> None:
        """Judges a batch by all judges that have not judged it."""
        for judge in self.missing(batch):
            rewards = self._loaded[judge](batch.prompts, answers)
            column = reward_column(judge)
            self._store.write(self._name(judge, batch), [{column: _number(reward)} for reward in rewards])

    def rewards(self, batch: _Batch) -> Iterator[dict[str, float]]:
        """The reward columns of each answer."""
        tables = [self._store.read(self._name(judge, batch)) for judge in self._settings.judges]
        for columns in zip(*tables, strict=True):
            yield {name: value for column in columns for name, value in column.items()}

    def _label_name(self, judge: str) -> str | None:
        return (self._settings.label_names or {}).get(judge)

    def _name(self, judge: str, batch: _Batch) -> str:
        # A name may have stood for another reward in an earlier run.
        source = repr((self._settings.judges[judge], self._label_name(judge)))
        return f"{judge}-{hashlib.sha256(source.encode()).hexdigest()[:8]}/{batch.name}"


def _number(reward: float | None) -> float:
    return float("nan") if reward is None else float(reward)


def _answer_batches(
    batches: Iterable[_Batch], decoders: Decoders, answers: Store, judges: _Judges, progress: Progress | None
) -> None:
    """Samples and judges the answers that are not on disk yet."""
    missing = [batch for batch in batches if batch.name not in answers or judges.missing(batch)]
    judges.load(missing)
    decoders.check(list(dict.fromkeys(batch.policy for batch in missing if batch.name not in answers)))
    task = None if progress is None else progress.add_task("answers", total=sum(len(b.prompts) for b in missing))
    # Batches of a policy are consecutive, so each policy's models are loaded once.
    for policy, batches_of_policy in groupby(missing, key=lambda batch: batch.policy):
        decoder: Decoder | None = None
        for batch in batches_of_policy:
            if progress is not None and task is not None:
                progress.update(task, description=policy.title)
            # Loaded only when it is needed: of a finished policy, perhaps only a new judge has to read the answers.
            if batch.name not in answers:
                decoder = decoder or decoders.open(policy)
                answers.write(batch.name, decoder.answer(batch.prompts, batch.number))
            judges.judge(batch, [record["answer"] for record in answers.read(batch.name)])
            if progress is not None and task is not None:
                progress.advance(task, len(batch.prompts))


def _records(batches: Sequence[_Batch], answers: Store, judges: _Judges) -> pd.DataFrame:
    rows = []
    for batch in batches:
        for record, rewards in zip(answers.read(batch.name), judges.rewards(batch), strict=True):
            # The curve has no effect on answers, so it may have been renamed since.
            rows.append({**record, "curve": batch.policy.method.curve, **rewards})
    return pd.DataFrame(rows)


def _results(
    records: pd.DataFrame, settings: EvaluationSettings, prompts: Sequence[Prompt], left_out: Mapping[str, int]
) -> EvaluationResults:
    resampling = {"resamples": settings.resamples, "seed": settings.seed}
    baseline = settings.methods[0].name
    comparisons = [
        at_equal_kl(records, judge, first, second, **resampling)
        for first, second in settings.compare
        for judge in settings.judges
    ]
    return EvaluationResults(
        settings=_public(settings),
        versions={
            "rgtg_logits": rgtg_logits.__version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
        prompts=len(prompts),
        prompts_left_out=dict(sorted(left_out.items())),
        baseline=baseline,
        policies=summarise(records, list(settings.judges), baseline=baseline, **resampling),
        comparisons=tuple(comparison for comparison in comparisons if comparison is not None),
        samples=_samples(records, settings, prompts),
    )


def _samples(records: pd.DataFrame, settings: EvaluationSettings, prompts: Sequence[Prompt]) -> tuple[Sample, ...]:
    samples = []
    for prompt in prompts[:SAMPLES]:
        rows = records[(records["prompt"] == prompt.index) & (records["seed"] == 0)].to_dict("records")
        answers = []
        for row in rows:
            rewards = {judge: row[reward_column(judge)] for judge in settings.judges}
            answers.append((policy_title(row["method"], row["beta"]), row["answer"], rewards))
        samples.append(Sample(prompt=prompt.text, answers=tuple(answers)))
    return tuple(samples)


def _public(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings that are set, with local paths cut to their last part."""
    values = asdict(settings)
    for method in values["methods"]:
        for name in ("model", "ranked_by"):
            if method[name] is not None:
                method[name] = display_name(method[name])
        method["guide"] = tuple(display_name(name) for name in method["guide"])
    values["methods"] = [_set_values(method) for method in values["methods"]]
    values["judges"] = {name: display_name(judge) for name, judge in settings.judges.items()}
    for name in ("base", "prompts", "output"):
        values[name] = display_name(values[name])
    return _set_values(values)


def _set_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "", (), [], {})}
