"""The body of `rgtg check`: loads the two models, runs every check, and goes on when one fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import torch
from rich.progress import Progress

from rgtg_logits.check.cost import describe_strategy, measure_cost
from rgtg_logits.check.exactness import (
    STEPS,
    ComparedScorers,
    Exactness,
    TextExactness,
    check_random_histories,
    compare_alone,
    compare_text,
    evenly_spaced,
    record_generation,
)
from rgtg_logits.check.findings import CheckReport, Finding
from rgtg_logits.check.generation import check_generation
from rgtg_logits.check.models import ModelPair
from rgtg_logits.check.pairs import measure_prefix_accuracy, read_pairs
from rgtg_logits.check.tokens import check_ends, check_padding, check_vocabulary
from rgtg_logits.check.uncached import RelativeScorer, ReshapedScorer
from rgtg_logits.errors import InvalidArgumentError, RGTGError, VocabularyError
from rgtg_logits.instruments import machine
from rgtg_logits.reward_model import KINDS, RewardModel
from rgtg_logits.sampling import load_base_model, resolve_device
from rgtg_logits.scorers import LogRatioScorer, ReferenceScorer, Scorer, make_scorer
from rgtg_logits.settings import DTYPES, Rule, at_least, check_rules, one_of, positive

PROMPTS = (
    "The weather today is",
    "Once upon a time, in a small village by the sea, there lived",
    "My advice to anyone who wants to learn a new language:",
)
FORMATS = ("chat",)
PAIRS = 300
"""Most preference pairs to read: enough for a standard error of 0.03."""
NOTICEABLE_VARIATION = 0.05
"""Total variation above which rounding changes draws noticeably."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Settings of `rgtg check`.

    Attributes:
        beta: Guidance strength, above 0.
        top_k: Number of candidates, 2 or more.
        dtype: One of `DTYPES`, "auto" being the checkpoints' own; by default float32 on a CPU, where half precision is
            slow, and "auto" elsewhere.
        device: Where to run; by default a GPU if there is one.
        kind: How rewards are read, for checkpoints that do not say: "causal", "vocabulary" or "log_ratio".
        prompt_format: "chat" for a reward model that reads chats: it reads text by its own chat template, and the base
            model continues prompts by its chat template, if it has one. None: the text as it is.
        prompts: Texts to continue.
        pairs: File or Hub id of preference pairs; None measures no prefix accuracy.
        max_new_tokens: Length of the continuations in tokens, which must fit into the contexts.
        seed: Seed of every draw.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    beta: float = 1.0
    top_k: int = 20
    dtype: str | None = None
    device: str | None = None
    kind: str | None = None
    prompt_format: str | None = None
    prompts: tuple[str, ...] = PROMPTS
    pairs: str | None = None
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "beta": positive(self.beta, "a finite guidance strength above 0, such as 1"),
            "top_k": at_least(2, self.top_k, "2 candidates or more, such as 20"),
            "max_new_tokens": at_least(1, self.max_new_tokens, "1 token or more, such as 32"),
            "prompts": Rule(bool(self.prompts) and all(map(str.strip, self.prompts)), "texts, none of them empty"),
            "dtype": one_of(self.dtype, DTYPES, optional=True),
            "prompt_format": one_of(self.prompt_format, FORMATS, optional=True),
            "kind": one_of(self.kind, KINDS, optional=True),
        }
        check_rules(self, rules, "Leave it out for the default.")


def run_check(
    base: str, reward_model: str, settings: CheckSettings | None = None, progress: Progress | None = None
) -> CheckReport:
    """Loads a base model and a reward model and checks whether they fit each other.

    Costs some 500 uncached forwards: seconds with the repository's own models, one or two minutes with 100M parameters
    on one CPU core.

    Args:
        base: Hub id or folder of the base model.
        reward_model: Hub id or folder of the reward model.
        settings: The settings; by default those of `CheckSettings()`.
        progress: Where to show the check under way.

    Raises:
        InvalidArgumentError: If the preference pairs cannot be read.
        CheckpointError: If a model cannot be loaded.
        RewardModelError: If the reward model is not of its kind, such as one without a scalar head.
    """
    settings = settings or CheckSettings()
    report_step = _step_reporter(progress)
    report_step("reading pairs" if settings.pairs else "loading")
    rows = read_pairs(settings.pairs, PAIRS) if settings.pairs else []
    report_step("loading the models")
    pair = load_pair(base, reward_model, settings)
    findings = check_models(pair, settings, rows, report_step=report_step)
    values = {"base": base, "reward_model": reward_model, **asdict(settings)}
    return CheckReport(values, machine(pair.base.device), findings)


def load_pair(base: str, reward_model: str, settings: CheckSettings) -> ModelPair:
    """Loads both models onto one device; see `run_check`."""
    device, dtype = resolve_device(settings.device, settings.dtype)
    model, tokenizer = load_base_model(base, device, dtype)
    with warnings.catch_warnings():
        # The finding on the objective says the same.
        warnings.filterwarnings("ignore", message=".*does not say how it was trained")
        loaded = RewardModel.from_pretrained(reward_model, kind=settings.kind, dtype=dtype)
    loaded.model.to(device)
    return ModelPair(model, tokenizer, loaded, settings.prompt_format)


def check_models(
    pair: ModelPair,
    settings: CheckSettings | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    scorer: Scorer | None = None,
    report_step: Callable[[str], None] = lambda step: None,
) -> list[Finding]:
    """Checks a pair of loaded models.

    Args:
        pair: The models.
        settings: The settings, of which `dtype`, `device`, `kind`, `prompt_format` and `pairs` are ignored.
        rows: Preference pairs; see `measure_prefix_accuracy`.
        scorer: A scorer of your own to check; by default the one that the processor makes.
        report_step: Called with the name of each step.

    Raises:
        InvalidArgumentError: If a prompt has no token, or the preference pairs cannot be used.
    """
    settings = settings or CheckSettings()
    prompts = [pair.encode(prompt) for prompt in settings.prompts]
    if not all(prompts):
        raise InvalidArgumentError("Expected prompts of one token or more, but one has none. Pass longer texts.")
    findings = [*pair.describe(), check_vocabulary(pair), *check_padding(pair), *check_ends(pair)]
    findings.append(pair.check_context(prompts, settings.max_new_tokens))
    findings += check_generation(pair, settings.top_k)
    if rows:
        report_step(f"scoring prefixes of {len(rows)} pairs")
        findings += _catching_errors("pairs", "prefix accuracy", lambda: [_prefix_accuracy(pair, rows)])
    report_step("probing the reward model")
    try:
        scorers = build_scorers(pair, scorer, prompts)
    except VocabularyError:
        return [*findings, Finding("exactness", "scorer", "note", "not checked, because the vocabularies differ")]
    except RGTGError as error:
        return [*findings, Finding("exactness", "scorer", "fail", str(error))]
    if pair.prompt_format is None:
        # Random tokens are no chat.
        report_step("scoring random rows")
        findings += _catching_errors("exactness", "random rows", lambda: [_random_rows(pair, scorers, settings.seed)])
    report_step("generating under guidance")
    findings += _catching_errors(
        "exactness", "guided text", lambda: _guided_text(pair, scorers, prompts, settings, report_step)
    )
    report_step("timing")
    findings.append(describe_strategy(scorers.cached))
    findings += measure_cost(pair, scorers.cached, settings.prompts, top_k=settings.top_k, seed=settings.seed)
    return findings


def build_scorers(
    pair: ModelPair, scorer: Scorer | None = None, prompts: Sequence[Sequence[int]] = ()
) -> ComparedScorers:
    """The scorer that the processor makes for the pair (or another one), and the uncached scorers beside it.

    Raises:
        VocabularyError: If the reward model does not share the base model's tokens, and cannot read text.
        RewardModelError: If it cannot give rewards of prefixes.
    """
    ends = pair.eos_token_ids
    with warnings.catch_warnings():
        # The finding on the vocabulary says the same.
        warnings.filterwarnings("ignore", message="The reward model reads text")
        cached = scorer or make_scorer(
            pair.reward_model, pair.tokenizer, prompt_format=pair.prompt_format, eos_token_id=ends
        )
    models = [pair.reward_model]
    if isinstance(cached, LogRatioScorer) and cached.reference is not None:
        models.append(cached.reference)
    tokenizer = pair.tokenizer if pair.reads_text else None
    options: dict[str, Any] = {"prompt_format": pair.prompt_format, "prompts": prompts, "eos_token_id": ends}
    references = [ReferenceScorer(model, tokenizer, **options) for model in models]
    reshaped = [ReshapedScorer(model, tokenizer, **options) for model in models]
    # Of two models, the coarser type sets the size of rounding.
    dtype = max((model.dtype for model in models), key=lambda dtype: torch.finfo(dtype).eps)
    if pair.reward_model.kind == "log_ratio":
        return ComparedScorers(cached, RelativeScorer(references), RelativeScorer(reshaped), dtype)
    return ComparedScorers(cached, references[0], reshaped[0], dtype)


def _step_reporter(progress: Progress | None) -> Callable[[str], None]:
    """A function that shows the name of a step."""
    if progress is None:
        return lambda step: None
    task = progress.add_task("", total=None)
    return lambda step: progress.update(task, description=step)


def _catching_errors(topic: str, name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Findings of a check; an error that the user's own program would meet is a finding as well."""
    try:
        return check()
    except InvalidArgumentError:
        raise
    except RGTGError as error:
        return [Finding(topic, name, "fail", str(error))]


def _random_rows(pair: ModelPair, scorers: ComparedScorers, seed: int) -> Finding:
    vocab_size = scorers.cached.vocab_size or scorers.reference.vocab_size
    exactness, broken = check_random_histories(
        scorers, vocab_size=vocab_size, pad_token_id=pair.pad_token_id or 0, seed=seed
    )
    return _exactness_finding("random rows", exactness, broken)


def _guided_text(
    pair: ModelPair,
    scorers: ComparedScorers,
    prompts: Sequence[Sequence[int]],
    settings: CheckSettings,
    report_step: Callable[[str], None],
) -> list[Finding]:
    new_tokens = settings.max_new_tokens
    room = pair.room(prompts)
    if room is not None:
        new_tokens = max(1, min(new_tokens, room))
    generated = record_generation(
        pair.base, scorers.cached, prompts, beta=settings.beta, top_k=settings.top_k,
        new_tokens=new_tokens, pad_token_id=pair.pad_token_id or 0, seed=settings.seed,
    )  # fmt: skip
    requests = evenly_spaced(generated, STEPS)
    numbers = count(1)
    text = compare_text(
        requests, scorers, beta=settings.beta,
        advance=lambda: report_step(f"scoring without a cache, step {next(numbers)} of {len(requests)}"),
    )  # fmt: skip
    report_step("scoring each row alone")
    in_batch, in_padding = compare_alone(evenly_spaced(requests, 3), scorers.cached)
    return [
        _exactness_finding("cached = uncached", text.rewards),
        _exactness_finding("batch = alone", replace(text.rewards, worst=in_batch)),
        _exactness_finding("padded = bare", replace(text.rewards, worst=in_padding)),
        *_rounding(text, scorers.dtype),
        *_distributions(text, settings.beta),
    ]


def _exactness_finding(name: str, exactness: Exactness, broken: str | None = None) -> Finding:
    allowed = exactness.tolerance / exactness.spread if exactness.spread else 0
    value = f"{exactness.worst:.1e} at worst, {exactness.ratio:.1e} of the spread (allowed {allowed:.1e})"
    figures = {
        "worst": exactness.worst, "spread": exactness.spread, "noise": exactness.noise,
        "tolerance": exactness.tolerance,
    }  # fmt: skip
    if exactness.exact:
        return Finding("exactness", name, "ok", value, figures=figures)
    advice = "Do not use this pair as it is. Try --dtype float32; if that fails too, report the architecture."
    if broken is not None:
        value += f". {broken}"
    return Finding("exactness", name, "fail", value, advice, figures)


def _rounding(text: TextExactness, dtype: torch.dtype) -> list[Finding]:
    """A note where rounding is so large, as in half precision, that the comparison proves little."""
    if text.rewards.tolerance <= 0.01 * text.rewards.spread:
        return []
    value = (
        f"{str(dtype).removeprefix('torch.')}: without any cache, two batch shapes are {text.rewards.noise:.1e} apart "
        f"and move {text.noise_variation:.1e} of the probability"
    )
    return [Finding("exactness", "rounding", "note", value, "Run again with --dtype float32 for a strict test.")]


def _distributions(text: TextExactness, beta: float) -> list[Finding]:
    status = "ok"
    advice = ""
    if text.variation > NOTICEABLE_VARIATION:
        status = "fail"
        if text.rewards.exact:
            status = "note"
            advice = "Load the reward model in float32, or lower beta."
    is_weak = text.shift < 0.01
    drawn = f"{text.variation:.1e} of the probability moves at worst, {text.mean_variation:.1e} on average"
    moves = f"beta {beta:g} moves {text.shift:.2f} of the probability; rewards spread by {text.rewards.spread:.2g}"
    return [
        Finding(
            "exactness", "guided draws", status, drawn, advice,
            {"worst": text.variation, "mean": text.mean_variation, "two_shapes": text.noise_variation},
        ),
        Finding(
            "guidance", "strength", "note" if is_weak else "ok", moves, "Raise beta." if is_weak else "",
            {"shift": text.shift, "spread": text.rewards.spread},
        ),
    ]  # fmt: skip


def _prefix_accuracy(pair: ModelPair, rows: Sequence[Mapping[str, Any]]) -> Finding:
    if pair.reward_model.config.reference is not None:
        value = "not measured: the reward is the difference of two models, and only one of them is read here"
        return Finding("pairs", "prefix accuracy", "note", value)
    result = measure_prefix_accuracy(pair.reward_model, rows)
    chance = []
    for percent, accuracy in result.accuracy.items():
        if accuracy - 2 * result.standard_error <= 0.5:
            chance.append(str(percent))
    details = f"{result.pairs} pairs, standard error {result.standard_error:.2f}"
    if result.cut:
        details += f", {result.cut} cut to the context"
    if result.left_out:
        details += f", {result.left_out} left out"
    accuracies = " / ".join(f"{accuracy:.2f}" for accuracy in result.accuracy.values())
    percents = " / ".join(map(str, result.accuracy))
    value = f"{accuracies} at {percents} % of the answer ({details})"
    advice = f"At {', '.join(chance)} % it cannot be told from guessing, 0.5." if chance else ""
    figures = {f"at_{percent}": accuracy for percent, accuracy in result.accuracy.items()}
    return Finding("pairs", "prefix accuracy", "note" if chance else "ok", value, advice, figures)
