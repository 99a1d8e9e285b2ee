"""The body of `rgtg evaluate`: reads prompts, lets every policy answer them, judges, summarises, reports."""

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
from rgtg_logits.evaluate.methods import Policy, policies
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
    digest,
    encode_prompts,
    load_base_model,
    load_reward,
    read_prompts,
    resolve_device,
    usable_prompts,
)

SAMPLES = 6
"""Prompts of which the report shows all answers."""


def evaluate(settings: EvaluationSettings, progress: Progress | None = None) -> EvaluationResults:
    """Lets methods answer prompts, and compares reward, divergence from the base model, diversity and time.

    Every answer becomes a record; see `rgtg_logits.evaluate.records`. In the folder `settings.output` appear
    records.parquet, results.json, table.md, figures, and report.html, which holds everything in one page.

    What is done is kept in the subfolders `answers` and `rewards`, batch by batch. An evaluation that was killed goes
    on from there when it is started again. So does one with more methods, strengths or judges: only what is new is
    done. Weights are not compared: use another folder for a model that was trained on in between.

    Started as several processes (`torchrun`, `accelerate launch`, `rgtg evaluate --num_processes`), each does a share
    of the batches, and the first one reports.

    Args:
        settings: What to do.
        progress: Where to show how far this process is.

    Raises:
        InvalidArgumentError: If a package of the evaluate extra is missing, the prompts cannot be read or used, a
            function cannot be imported, or the folder holds an evaluation with other settings.
        CheckpointError: If a model cannot be loaded.
        RewardModelError: If a reward model is none.
        VocabularyError: If a guide does not share the base model's tokens.
    """
    check_matplotlib()
    processes = _Processes.current(settings.device)
    device, dtype = resolve_device(processes.device or settings.device, settings.dtype)
    settings = replace(settings, device=device, dtype=dtype, guide_dtype=settings.guide_dtype or dtype)
    values = read_prompts(settings.prompts, settings.prompt_column, settings.split, settings.limit)
    identity = {**settings.identity(), "prompts_digest": digest(values)}
    with processes.first_one_first():
        answers, rewards = (Store(Path(settings.output) / name, identity) for name in ("answers", "rewards"))
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
    batches = list(_batches(settings, prompts))
    _work(processes.share(batches), decoders, answers, judges, progress)
    processes.wait()
    found = _records(batches, answers, judges)
    results = _results(found, settings, prompts, left_out)
    if processes.first:
        output = Path(settings.output)
        write_table(output / "records.parquet", found.to_dict("records"))
        write_report(results, output)
    return results


class _Batch(NamedTuple):
    """Answers that are drawn at once: number `number` of a policy to each of some prompts."""

    policy: Policy
    number: int
    start: int
    prompts: Sequence[Prompt]

    @property
    def name(self) -> str:
        return f"{self.policy.key}/{self.number}-{self.start}"


def _batches(settings: EvaluationSettings, prompts: Sequence[Prompt]) -> Iterator[_Batch]:
    for policy in policies(settings.methods):
        # A greedy policy says the same each time.
        for number in range(1 if policy.method.greedy else settings.seeds):
            for start in range(0, len(prompts), settings.batch_size):
                yield _Batch(policy, number, start, prompts[start : start + settings.batch_size])


class _Processes:
    """Which of how many processes this is.

    Args:
        state: What accelerate knows; None of a process on its own.
    """

    def __init__(self, state: Any = None) -> None:
        self._state = state
        self.device = None if state is None else str(state.device)
        self.first = state is None or state.is_main_process

    @classmethod
    def current(cls, device: str | None) -> _Processes:
        if not is_worker():
            return cls()
        from accelerate import PartialState  # noqa: PLC0415  (several processes need it, and it takes long to import)

        return cls(PartialState(cpu=device is not None and device.startswith("cpu")))

    def share(self, batches: Sequence[_Batch]) -> Sequence[_Batch]:
        """Every policy is shared by all, so that none waits long for another at the end."""
        return batches if self._state is None else batches[self._state.process_index :: self._state.num_processes]

    def first_one_first(self) -> AbstractContextManager[Any]:
        """What follows is done by the first process before the others."""
        return nullcontext() if self._state is None else self._state.main_process_first()

    def wait(self) -> None:
        """Until all processes are here."""
        if self._state is not None:
            self._state.wait_for_everyone()


class _Judges:
    """All judges, and what they have said.

    Args:
        settings: Which judges.
        store: Where their rewards are.
    """

    def __init__(self, settings: EvaluationSettings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._loaded: dict[str, Judge] = {}

    def missing(self, batch: _Batch) -> list[str]:
        """Judges that have not judged a batch."""
        return [judge for judge in self._settings.judges if self._name(judge, batch) not in self._store]

    def load(self, batches: Iterable[_Batch]) -> None:
        """Loads those who have not judged all of some batches."""
        for judge in dict.fromkeys(judge for batch in batches for judge in self.missing(batch)):
            label = (self._settings.label_names or {}).get(judge)
            dtype, device = str(self._settings.dtype), str(self._settings.device)
            self._loaded[judge] = load_reward(
                self._settings.judges[judge], label_name=label, dtype=dtype, device=device
            )

    def judge(self, batch: _Batch, answers: Sequence[str]) -> None:
        """Lets those judge it who have not."""
        for judge in self.missing(batch):
            rewards = self._loaded[judge](batch.prompts, answers)
            column = reward_column(judge)
            self._store.write(self._name(judge, batch), [{column: _number(reward)} for reward in rewards])

    def rewards(self, batch: _Batch) -> Iterator[dict[str, float]]:
        """What all of them say of each answer."""
        columns = [self._store.read(self._name(judge, batch)) for judge in self._settings.judges]
        for rewards in zip(*columns, strict=True):
            yield {column: value for reward in rewards for column, value in reward.items()}

    def _name(self, judge: str, batch: _Batch) -> str:
        # Two judges may have had the same name one after another.
        source = repr((self._settings.judges[judge], (self._settings.label_names or {}).get(judge)))
        return f"{judge}-{hashlib.sha256(source.encode()).hexdigest()[:8]}/{batch.name}"


def _number(reward: float | None) -> float:
    return float("nan") if reward is None else float(reward)


def _work(
    batches: Iterable[_Batch], decoders: Decoders, answers: Store, judges: _Judges, progress: Progress | None
) -> None:
    """Draws and judges whatever is not on disk yet."""
    missing = [batch for batch in batches if batch.name not in answers or judges.missing(batch)]
    judges.load(missing)
    decoders.check(list(dict.fromkeys(batch.policy for batch in missing if batch.name not in answers)))
    task = None if progress is None else progress.add_task("answers", total=sum(len(b.prompts) for b in missing))
    for policy, of_policy in groupby(missing, key=lambda batch: batch.policy):
        decoder: Decoder | None = None
        for batch in of_policy:
            if progress is not None and task is not None:
                progress.update(task, description=policy.title)
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
            # The curve changes nothing, so it may have another name than when the answer was drawn.
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
    found = []
    for prompt in prompts[:SAMPLES]:
        rows = records[(records["prompt"] == prompt.index) & (records["seed"] == 0)].to_dict("records")
        titles = [policy_title(row["method"], row["beta"]) for row in rows]
        judged = [{judge: row[reward_column(judge)] for judge in settings.judges} for row in rows]
        texts = [row["answer"] for row in rows]
        found.append(Sample(prompt=prompt.text, answers=tuple(zip(titles, texts, judged, strict=True))))
    return tuple(found)


def _public(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings that are set, without the place of anything on this machine."""
    values = asdict(settings)
    for method in values["methods"]:
        for name in ("model", "ranked_by"):
            method[name] = method[name] and display_name(method[name])
        method["guide"] = tuple(map(display_name, method["guide"]))
    values["methods"] = [{name: value for name, value in m.items() if value not in _UNSET} for m in values["methods"]]
    values["judges"] = {name: display_name(judge) for name, judge in settings.judges.items()}
    for name in ("base", "prompts", "output"):
        values[name] = display_name(values[name])
    return {name: value for name, value in values.items() if value not in _UNSET}


_UNSET: tuple[Any, ...] = (None, "", (), [], {})
