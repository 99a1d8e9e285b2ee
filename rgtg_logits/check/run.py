"""The body of `rgtg check`: loads the two models, looks at everything, and goes on when something fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import torch
import transformers
from rich.progress import Progress

from rgtg_logits.check.cost import describe_strategy, measure_cost
from rgtg_logits.check.exactness import (
    STEPS,
    Exactness,
    Scorers,
    TextExactness,
    compare_alone,
    compare_text,
    random_histories,
    spread_out,
    write,
)
from rgtg_logits.check.findings import CheckReport, Finding
from rgtg_logits.check.models import ModelPair
from rgtg_logits.check.pairs import measure_prefix_accuracy, read_pairs
from rgtg_logits.check.uncached import RelativeScorer, ReshapedScorer
from rgtg_logits.errors import InvalidArgumentError, RGTGError, VocabularyError
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
VARIATION = 0.05
"""Total variation from which rounding changes noticeably what is drawn."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """How to check a pair of models.

    Attributes:
        beta: Guidance strength, above 0.
        top_k: Number of candidates, 2 or more.
        dtype: One of `DTYPES`, "auto" being the checkpoints' own; by default float32 on a CPU, where half precision is
            slow, and "auto" elsewhere.
        device: Where to run; by default a GPU if there is one.
        kind: How rewards are read, for checkpoints that do not say: "causal", "vocabulary" or "log_ratio".
        prompt_format: "chat" for a reward model that reads chats: it reads text by its own chat template, and the base
            model continues prompts put by its own, if it has one. None: the text as it is.
        prompts: What to continue.
        pairs: File or Hub id of preference pairs; None measures no prefix accuracy.
        max_new_tokens: Length of the continuations in tokens, which has to fit into the contexts.
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
        settings: How to check.
        progress: Where to show what is being done.

    Raises:
        InvalidArgumentError: If the preference pairs cannot be read.
        CheckpointError: If a model cannot be loaded.
        RewardModelError: If the reward model is not of its kind, such as one without a scalar head.
    """
    settings = settings or CheckSettings()
    say = _teller(progress)
    say("reading pairs" if settings.pairs else "loading")
    rows = read_pairs(settings.pairs, PAIRS) if settings.pairs else []
    say("loading the models")
    pair = load_pair(base, reward_model, settings)
    findings = check_models(pair, settings, rows, say=say)
    machine = {"torch": torch.__version__, "transformers": transformers.__version__}
    return CheckReport({"base": base, "reward_model": reward_model, **asdict(settings)}, machine, findings)


def load_pair(base: str, reward_model: str, settings: CheckSettings) -> ModelPair:
    """Loads both onto one device; see `run_check`."""
    device, dtype = resolve_device(settings.device, settings.dtype)
    model, tokenizer = load_base_model(base, device, dtype)
    with warnings.catch_warnings():
        # A finding says the same.
        warnings.filterwarnings("ignore", message=".*does not say how it was trained")
        rewards = RewardModel.from_pretrained(reward_model, kind=settings.kind, dtype=dtype)
    rewards.model.to(device)
    return ModelPair(model, tokenizer, rewards, settings.prompt_format)


def check_models(
    pair: ModelPair,
    settings: CheckSettings | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    scorer: Scorer | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Checks a pair of loaded models.

    Args:
        pair: The models.
        settings: How to check; `dtype`, `device`, `kind`, `prompt_format` and `pairs` are not looked at.
        rows: Preference pairs; see `measure_prefix_accuracy`.
        scorer: A scorer of your own to check; by default the one that the processor makes.
        say: Is told what is being done.

    Raises:
        InvalidArgumentError: If a prompt has no token, or the preference pairs cannot be used.
    """
    settings = settings or CheckSettings()
    prompts = [pair.encode(prompt) for prompt in settings.prompts]
    if not all(prompts):
        raise InvalidArgumentError("Expected prompts of one token or more, but one has none. Pass longer texts.")
    findings = [*pair.describe(), pair.check_vocabulary(), *pair.check_padding()]
    findings.append(pair.check_context(prompts, settings.max_new_tokens))
    if rows:
        say(f"reading the beginnings of {len(rows)} pairs")
        findings += _attempt("pairs", "prefix accuracy", lambda: [_prefix_accuracy(pair, rows)])
    say("probing the reward model")
    try:
        scorers = build_scorers(pair, scorer, prompts)
    except VocabularyError:
        return [*findings, Finding("exactness", "scorer", "note", "not checked, because the vocabularies differ")]
    except RGTGError as error:
        return [*findings, Finding("exactness", "scorer", "fail", str(error))]
    if pair.prompt_format is None:
        # Random tokens are no chat.
        say("asking about random rows")
        findings += _attempt("exactness", "random rows", lambda: [_random_rows(pair, scorers, settings.seed)])
    say("writing under guidance")
    findings += _attempt("exactness", "guided text", lambda: _guided_text(pair, scorers, prompts, settings, say))
    say("timing")
    findings.append(describe_strategy(scorers.fast))
    return [*findings, *measure_cost(pair, scorers.fast, settings.prompts, top_k=settings.top_k, seed=settings.seed)]


def build_scorers(pair: ModelPair, scorer: Scorer | None = None, prompts: Sequence[Sequence[int]] = ()) -> Scorers:
    """The scorer that the processor makes for the pair (or another one), and those it is compared with.

    Raises:
        VocabularyError: If the reward model does not share the base model's tokens, and cannot read text.
        RewardModelError: If it cannot give rewards of prefixes.
    """
    fast = scorer or make_scorer(pair.reward_model, pair.tokenizer, prompt_format=pair.prompt_format)
    models, tokenizer = [pair.reward_model], pair.tokenizer if pair.reads_text else None
    if isinstance(fast, LogRatioScorer) and fast.reference is not None:
        models.append(fast.reference)
    plain, reshaped = (
        [way(model, tokenizer, prompt_format=pair.prompt_format, prompts=prompts) for model in models]
        for way in (ReferenceScorer, ReshapedScorer)
    )
    # Of two models, the coarser type decides what is rounding.
    dtype = max((model.dtype for model in models), key=lambda dtype: torch.finfo(dtype).eps)
    if pair.reward_model.kind == "log_ratio":
        return Scorers(fast, RelativeScorer(plain), RelativeScorer(reshaped), dtype)
    return Scorers(fast, plain[0], reshaped[0], dtype)


def _teller(progress: Progress | None) -> Callable[[str], None]:
    if progress is None:
        return lambda text: None
    task = progress.add_task("", total=None)
    return lambda text: progress.update(task, description=text)


def _attempt(topic: str, name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """What is found; an error that the user's own program would meet is a finding as well."""
    try:
        return look()
    except InvalidArgumentError:
        raise
    except RGTGError as error:
        return [Finding(topic, name, "fail", str(error))]


def _random_rows(pair: ModelPair, scorers: Scorers, seed: int) -> Finding:
    size = scorers.fast.vocab_size or scorers.plain.vocab_size
    exactness, broken = random_histories(scorers, vocab_size=size, pad_token_id=pair.pad_token_id or 0, seed=seed)
    return _compared("random rows", exactness, broken)


def _guided_text(
    pair: ModelPair,
    scorers: Scorers,
    prompts: Sequence[Sequence[int]],
    settings: CheckSettings,
    say: Callable[[str], None],
) -> list[Finding]:
    room = pair.room(prompts)
    new_tokens = settings.max_new_tokens if room is None else max(1, min(settings.max_new_tokens, room))
    written = write(
        pair.base, scorers.fast, prompts, beta=settings.beta, top_k=settings.top_k,
        new_tokens=new_tokens, pad_token_id=pair.pad_token_id or 0, seed=settings.seed,
    )  # fmt: skip
    questions, done = spread_out(written, STEPS), count(1)
    text = compare_text(
        questions, scorers, beta=settings.beta,
        advance=lambda: say(f"computing rewards without a cache, step {next(done)} of {len(questions)}"),
    )  # fmt: skip
    say("asking about each row alone")
    batch, padding = compare_alone(spread_out(questions, 3), scorers.fast)
    return [
        _compared("cached = uncached", text.rewards),
        _compared("batch = alone", replace(text.rewards, worst=batch)),
        _compared("padded = bare", replace(text.rewards, worst=padding)),
        *_rounding(text, scorers.dtype),
        *_distributions(text, settings.beta),
    ]


def _compared(name: str, found: Exactness, broken: str | None = None) -> Finding:
    value = (
        f"{found.worst:.1e} at worst, {found.ratio:.1e} of the spread "
        f"(allowed {found.tolerance / found.spread if found.spread else 0:.1e})"
    )
    figures = {"worst": found.worst, "spread": found.spread, "noise": found.noise, "tolerance": found.tolerance}
    if found.exact:
        return Finding("exactness", name, "ok", value, figures=figures)
    advice = "Do not use this pair as it is. Try --dtype float32; if that fails too, report the architecture."
    return Finding("exactness", name, "fail", value if broken is None else f"{value}. {broken}", advice, figures)


def _rounding(text: TextExactness, dtype: torch.dtype) -> list[Finding]:
    """In half precision, how little the comparison proves."""
    if text.rewards.tolerance <= 0.01 * text.rewards.spread:
        return []
    value = (
        f"{str(dtype).removeprefix('torch.')}: without any cache, two batch shapes are {text.rewards.noise:.1e} apart "
        f"and move {text.noise_variation:.1e} of the probability"
    )
    return [Finding("exactness", "rounding", "note", value, "Run again with --dtype float32 for a strict test.")]


def _distributions(text: TextExactness, beta: float) -> list[Finding]:
    noisy, weak = text.variation > VARIATION, text.shift < 0.01
    status = "ok" if not noisy else "note" if text.rewards.exact else "fail"
    drawn = f"{text.variation:.1e} of the probability moves at worst, {text.mean_variation:.1e} on average"
    moves = f"beta {beta:g} moves {text.shift:.2f} of the probability; rewards spread by {text.rewards.spread:.2g}"
    return [
        Finding(
            "exactness", "guided draws", status, drawn,
            "Load the reward model in float32, or lower beta." if status == "note" else "",
            {"worst": text.variation, "mean": text.mean_variation, "two_shapes": text.noise_variation},
        ),
        Finding(
            "guidance", "strength", "note" if weak else "ok", moves, "Raise beta." if weak else "",
            {"shift": text.shift, "spread": text.rewards.spread},
        ),
    ]  # fmt: skip


def _prefix_accuracy(pair: ModelPair, rows: Sequence[Mapping[str, Any]]) -> Finding:
    if pair.reward_model.config.reference is not None:
        value = "not measured: the reward is the difference of two models, and only one of them is asked here"
        return Finding("pairs", "prefix accuracy", "note", value)
    found = measure_prefix_accuracy(pair.reward_model, rows)
    chance = [str(percent) for percent, share in found.accuracy.items() if share - 2 * found.standard_error <= 0.5]
    value = (
        f"{' / '.join(f'{share:.2f}' for share in found.accuracy.values())} at "
        f"{' / '.join(map(str, found.accuracy))} % of the answer ({found.pairs} pairs, standard error "
        f"{found.standard_error:.2f}"
    )
    value += f", {found.cut} cut to the context" * bool(found.cut)
    value += f", {found.left_out} left out" * bool(found.left_out) + ")"
    advice = f"At {', '.join(chance)} % it cannot be told from guessing, 0.5." if chance else ""
    figures = {f"at_{percent}": share for percent, share in found.accuracy.items()}
    return Finding("pairs", "prefix accuracy", "note" if chance else "ok", value, advice, figures)
