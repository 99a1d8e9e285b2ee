"""The body of `rgtg benchmark --churn`: what the reward model reads at steps at which requests come and go.

Tokens are counted, not timed, so the figures are the same on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Int
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from rgtg_logits.benchmark.settings import BenchmarkSettings
from rgtg_logits.benchmark.workload import load_reward_model
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_json
from rgtg_logits.instruments import ForwardCount, count_forwards, machine
from rgtg_logits.scorers import CausalScorer

LENGTHS = (50, 200, 400, 800)
"""Tokens of the texts that most events happen to."""
UNEVEN = (*[50] * 7, 2000)
"""Tokens of prompts of which one is far longer than the others."""

Text = Int[Tensor, " length"]


@dataclass(frozen=True)
class ChurnLine:
    """One step.

    Attributes:
        event: What happens at it.
        read: Tokens that the reward model reads.
        needed: Tokens that are new: of texts, and the candidates of each.
    """

    event: str
    read: int
    needed: int

    @property
    def ratio(self) -> float:
        """Tokens read for each token needed."""
        return self.read / self.needed


@dataclass(frozen=True)
class ChurnReport:
    """All steps of one run.

    Attributes:
        settings: The model and the number of candidates.
        machine: Where it ran.
        strategy: The strategy by which candidates share a prefix; see `CausalScorer`.
        lines: The steps.
        cache_bytes: Memory of the cache that holds prompts of the lengths `UNEVEN`.
    """

    settings: BenchmarkSettings
    machine: dict[str, str]
    strategy: str
    lines: list[ChurnLine]
    cache_bytes: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything as JSON."""
        write_json(path, asdict(self))

    def table(self) -> Table:
        """A table of the steps."""
        table = Table(title=f"Tokens that the reward model reads at a step ({self.strategy})", box=SIMPLE_HEAD)
        table.add_column("what happens")
        for column in ("read", "needed", "ratio"):
            table.add_column(column, justify="right")
        for line in self.lines:
            table.add_row(line.event, f"{line.read:,}", f"{line.needed:,}", f"{line.ratio:.2f}")
        return table

    def notes(self) -> list[str]:
        """The memory that the uneven prompts take."""
        return [f"cache of the {sum(UNEVEN):,} tokens of the uneven prompts: {self.cache_bytes / 2**20:.1f} MiB"]


def run_churn(settings: BenchmarkSettings, progress: Progress | None = None) -> ChurnReport:
    """Counts what the reward model reads at each event, with the first number of candidates in the settings.

    Raises:
        InvalidArgumentError: If the reward model has no scalar head, or too short a context.
        CheckpointError: If the reward model cannot be loaded.
    """
    reward_model = load_reward_model(settings)
    k = settings.top_ks[0]
    needed = max(UNEVEN) + k
    if reward_model.max_length is not None and reward_model.max_length < needed:
        raise InvalidArgumentError(
            f"Expected a reward model that reads {needed} tokens, but this one reads {reward_model.max_length}. Give "
            "another one with --reward-model, or leave it out."
        )
    scorer = CausalScorer(reward_model, prepack=settings.prepack)
    with count_forwards([reward_model.backbone]) as count:
        requests = _Requests(scorer, count, k, settings.seed)
        lines = []
        task = progress.add_task("churn", total=None) if progress else None
        for line in requests.lines():
            lines.append(line)
            if progress and task is not None:
                progress.advance(task)
    return ChurnReport(settings, machine(reward_model.device), scorer.strategy, lines, scorer.cache_bytes())


class _Requests:
    """Texts of random tokens, and the steps at which they are asked about.

    Args:
        scorer: The scorer.
        count: Counts what its model reads.
        k: Number of candidates.
        seed: Seed of texts and candidates.

    Attributes:
        grown: The texts of the last step, each with one of its candidates.
    """

    def __init__(self, scorer: CausalScorer, count: ForwardCount, k: int, seed: int) -> None:
        self._scorer, self._count, self._k = scorer, count, k
        self._generator = torch.Generator().manual_seed(seed)
        self.grown: list[Text] = []

    def lines(self) -> Iterator[ChurnLine]:
        """Every event; it begins with a cache that holds what the event needs, or goes on from the one before."""
        yield from self._rows_that_come_and_go()
        yield from self._texts_that_begin_alike()
        yield from self._threads()
        self._scorer.reset()
        yield self._step(f"7 prompts of 50 tokens and one of {max(UNEVEN):,} begin", self._texts(*UNEVEN), sum(UNEVEN))

    def _rows_that_come_and_go(self) -> Iterator[ChurnLine]:
        yield self._step("4 prompts begin", self._texts(*LENGTHS), sum(LENGTHS))
        yield self._step("nothing", self.grown)
        for length in (30, 1200):
            yield self._step(f"a row of {length:,} joins", [*self._begun(), *self._texts(length)], length)
        yield self._step("the shortest leaves", self._begun()[1:])
        yield self._step("rows change places", self._begun()[::-1])
        *others, longest = self._begun()
        yield self._step("the longest leaves", others)
        yield self._step("the longest comes back", [*self.grown, longest])
        yield self._step("the shortest is replaced by one of 60", [*self._texts(60), *self._begun()[1:]], 60)

    def _texts_that_begin_alike(self) -> Iterator[ChurnLine]:
        self._scorer.reset()
        (system,) = self._texts(400)
        first, second = (torch.cat([system, *self._texts(50)]) for _ in range(2))
        self._step("", [first])
        yield self._step("a text behind a known system prompt", [second], 50)
        candidates = self._candidates(1)
        self._ask([first], candidates)
        beams = [torch.cat([first, token[None]]) for token in candidates[0, : min(4, self._k)]]
        yield self._step("beams part", beams)
        turn = torch.cat([self.grown[0], *self._texts(60)])
        yield self._step("the next turn of a chat", [turn], 60)
        yield self._step("a draft of 5 tokens is rejected", [turn[:-5]])

    def _threads(self) -> Iterator[ChurnLine]:
        texts = self._begun()
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._step, "", self._texts(*LENGTHS)).result()
            others = self.grown
            yield self._step("another thread has asked about others", texts)
            yield thread.submit(self._step, "the other thread asks again", others).result()

    def _texts(self, *lengths: int) -> list[Text]:
        return [self._random(1, length)[0] for length in lengths]

    def _random(self, *shape: int) -> Tensor:
        vocab_size = self._scorer.reward_model.vocab_size
        return torch.randint(min(3, vocab_size - 1), vocab_size, shape, generator=self._generator)

    def _candidates(self, rows: int) -> Int[Tensor, "rows k"]:
        # No token twice, because that would be read once.
        return (self._random(rows, 1) + torch.arange(self._k)) % self._scorer.reward_model.vocab_size

    def _begun(self) -> list[Text]:
        """Texts after two steps, in a cache that holds nothing else."""
        self._scorer.reset()
        self._step("", self._texts(*LENGTHS))
        self._step("", self.grown)
        return self.grown

    def _step(self, event: str, texts: list[Text], new: int = 0) -> ChurnLine:
        """Asks about texts, in which so many tokens are new besides one that was a candidate."""
        before = self._count.tokens
        self._ask(texts, self._candidates(len(texts)))
        return ChurnLine(event, self._count.tokens - before, new + len(texts) * self._k)

    def _ask(self, texts: list[Text], candidates: Int[Tensor, "rows k"]) -> None:
        self._scorer.score_sequences(texts, candidates)
        self.grown = [torch.cat([text, row[:1]]) for text, row in zip(texts, candidates, strict=True)]
