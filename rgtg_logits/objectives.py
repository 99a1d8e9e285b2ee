"""Training objectives of reward models: their data, checkpoints, units and sources, and their words on a model card.

The one table of objectives, which training, model cards and `rgtg check` read. It needs no torch; the losses are in
`rgtg_logits.train.losses`, and the words follow the optimum of each loss, not the figures of one model.
"""

from __future__ import annotations

from dataclasses import dataclass

_LOG_ODDS = "log-odds of Bradley-Terry"
_DATA_UNIT = "unit of the data's rewards"
_GUIDES = (
    "A reward model of **unfinished** texts: it gives a score to every prefix, so that it can guide a language model "
    "token by token."
)
_MEAN_OF_TRAINING_DATA = (
    "The mean is over texts like those of the training data. Texts of a base model that continues them differently "
    "have other means."
)
_WEAK_GUIDANCE = (
    "Guidance by a mean is right for small strengths only: a rare high reward counts in proportion to its probability, "
    "however large `beta` is."
)


@dataclass(frozen=True, kw_only=True)
class CardWords:
    """Sentences about an objective on a model card; `{name}` stands for the value of a setting, or for its name.

    Attributes:
        summary: First paragraph: the purpose of such a model.
        meaning: Meaning of a score, and which scores may be compared.
        training: The loss.
        loss: Unit of a reported loss, as it follows the number.
        limits: Limits that the objective brings with it.
        papers: Papers to cite, as keys of `rgtg_logits.card.words.PAPERS`.
        beta_reason: Why `Objective.suggested_beta` is suggested.
    """

    summary: str
    meaning: str
    training: str
    loss: str
    limits: tuple[str, ...] = ()
    papers: tuple[str, ...] = ("pargs",)
    beta_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A training objective.

    Attributes:
        name: Value of `--objective` and of `config.rgtg["objective"]`.
        data: "pairs" of a preferred and another answer, or answers with "labels" (a number each).
        kinds: Kinds of checkpoint that it can train (see `RewardModelConfig`), the usual one first.
        every_prefix: Whether each prefix adds a part of its own to the loss, so that a long text may be cut. The other
            objectives need finished answers.
        scores_prefixes: Whether rewards of unfinished texts mean something, so that they can guide decoding.
        trained_on: What the loss is computed on, in a few words.
        unit: Unit of a reward.
        source: Paper or formula.
        settings: Names of the numbers in its loss that a card states, such as `td_lambda`.
        strength: The one of `settings` that is the objective's own strength, if there is one.
        suggested_beta: Guidance strength that follows from the objective itself; None if none does.
        needs_best: Whether the loss needs the largest reward one token later, for every prefix.
        card: Sentences for the model card.
    """

    name: str
    data: str
    kinds: tuple[str, ...]
    every_prefix: bool
    scores_prefixes: bool = True
    trained_on: str
    unit: str
    source: str
    settings: tuple[str, ...] = ()
    strength: str | None = None
    suggested_beta: float | None = None
    needs_best: bool = False
    card: CardWords

    @property
    def rows(self) -> str:
        """A name for the rows of its training data."""
        return "pairs" if self.data == "pairs" else "answers with a reward"


# PARGS: Bradley-Terry on every prefix pair.
_PARTIAL_BT = Objective(
    name="partial_bt",
    data="pairs",
    kinds=("causal", "vocabulary"),
    every_prefix=True,
    trained_on="every prefix of both answers of a pair",
    unit=_LOG_ODDS,
    source="PARGS, arXiv 2406.07780",
    card=CardWords(
        summary=_GUIDES,
        meaning=(
            "The score of a text belongs to the whole prefix up to its last token; higher is better. Of two prefixes "
            "of the same length and prompt, the one whose score is higher by 1 leads to the preferred answer with odds "
            "of e to 1 (73 %). Only differences between continuations of one prompt at one length are meaningful."
        ),
        training=(
            "Bradley-Terry on the prefixes of both answers at every position from the first token that differs, with "
            "the label of the finished pair (PARGS); the mean over all prefix pairs of a batch."
        ),
        loss="nats per comparison",
        limits=("Scores of different prompts or lengths cannot be compared.",),
    ),
)

# The ordinary reward model of RLHF, whose loss contains no prefix.
_FULL_BT = Objective(
    name="full_bt",
    data="pairs",
    kinds=("causal",),
    every_prefix=False,
    scores_prefixes=False,
    trained_on="the finished answers of a pair only",
    unit=_LOG_ODDS,
    source="Bradley-Terry on finished answers, arXiv 2203.02155",
    card=CardWords(
        summary=(
            "A reward model of **finished** texts. It gives a score to prefixes too, but was not trained on them: "
            "guiding a language model token by token with it is arbitrary (see the first paper below). It serves as a "
            "baseline, or to rank finished texts."
        ),
        meaning=(
            "The score belongs to a finished text, with its end-of-text token; higher is better. Of two answers to the "
            "same prompt, the one whose score is higher by 1 is preferred with odds of e to 1 (73 %). Only differences "
            "between answers to one prompt are meaningful."
        ),
        training="Bradley-Terry on the finished answers.",
        loss="nats per comparison",
        limits=("Scores of different prompts cannot be compared.",),
        papers=("pargs", "instruct"),
    ),
)

# The value function of the base model, by regression or TD(λ).
_VALUE = Objective(
    name="value",
    data="labels",
    kinds=("causal", "vocabulary"),
    every_prefix=True,
    trained_on="every prefix of an answer, fitted to the mean reward",
    unit=_DATA_UNIT,
    source="CD-FUDGE, arXiv 2310.17022",
    settings=("td_lambda",),
    card=CardWords(
        summary=_GUIDES,
        meaning=(
            "The score of a prefix estimates E[r | prefix], the mean reward r of the finished answers that begin with "
            "it; higher is better. It is in the unit of the rewards in the data, so scores of different lengths, and "
            "of different prompts, can be compared as far as those rewards can."
        ),
        training=(
            "Half the squared difference between the score of every prefix of an answer and the reward of the finished "
            "answer (CD-FUDGE); the mean over all prefixes of a batch. TD(λ) with λ = {td_lambda}: below 1, the reward "
            "is replaced by the model's own scores of the prefixes that follow."
        ),
        loss="per prefix (half the squared difference)",
        limits=(_MEAN_OF_TRAINING_DATA, _WEAK_GUIDANCE),
        papers=("pargs", "cd"),
    ),
)

# The soft value of KL-regularised RLHF, by the LINEX loss.
_SOFT_VALUE = Objective(
    name="soft_value",
    data="labels",
    kinds=("causal", "vocabulary"),
    every_prefix=True,
    trained_on="every prefix of an answer, fitted to the log of the mean of exp(beta · reward)",
    unit="nats",
    source="log E[exp(beta · r) | prefix] by the LINEX loss",
    settings=("beta", "clip", "td_lambda"),
    strength="beta",
    suggested_beta=1.0,
    card=CardWords(
        summary=_GUIDES,
        meaning=(
            "The score of a prefix estimates log E[exp({beta} · r) | prefix]: r is the reward of the finished answer "
            "in the data's own unit, and the mean is over answers that begin with the prefix; higher is better. This "
            "is {beta} times the soft value of KL-regularised RLHF. Guided by it with strength 1, the model that the "
            "answers were drawn from becomes the optimum of KL-regularised RLHF with strength {beta}, token by token, "
            "as far as the estimates are right. Other strengths do not give the optimum for another `beta`: train for "
            "that one instead."
        ),
        training=(
            "The LINEX loss exp(d) − d − 1 at every prefix of an answer, with d = {beta} · r − score; the mean over "
            "all prefixes of a batch. Its minimiser is the formula above. TD(λ) with λ = {td_lambda}: below 1, {beta} "
            "· r is replaced by the model's own scores of the prefixes that follow."
        ),
        loss="per prefix (LINEX)",
        beta_reason="the strength that the objective is made for; its own `beta` is already in the scores",
        limits=(
            _MEAN_OF_TRAINING_DATA,
            "The exponential in the LINEX loss continues as a straight line where d is larger than {clip}, so rewards "
            "far above the expected ones count less than in the formula.",
        ),
        papers=("pargs", "bayes"),
    ),
)

# RAD: the squared error of every prefix, later ones weighing more.
_CUMULATIVE = Objective(
    name="cumulative",
    data="labels",
    kinds=("causal", "vocabulary"),
    every_prefix=True,
    trained_on="every prefix of an answer, fitted to the reward, later prefixes weighing more",
    unit=_DATA_UNIT,
    source="RAD, arXiv 2310.09520",
    card=CardWords(
        summary=_GUIDES,
        meaning=(
            "The score of a prefix estimates E[r | prefix], the mean reward r of the finished answers that begin with "
            "it; higher is better. It is in the unit of the rewards in the data, so scores of different lengths, and "
            "of different prompts, can be compared as far as those rewards can. Late prefixes weighed more in training "
            "than early ones."
        ),
        training=(
            "The squared difference between the score of every prefix of an answer and the reward of the finished "
            "answer, the t-th prefix with weight t (RAD); the mean over the answers of a batch."
        ),
        loss="per answer (weighted squared difference)",
        limits=(_MEAN_OF_TRAINING_DATA, _WEAK_GUIDANCE),
        papers=("pargs", "rad"),
    ),
)

# FaRMA: each prefix is worth its best next token, as in Q-learning.
_FARMA = Objective(
    name="farma",
    data="pairs",
    kinds=("vocabulary",),
    every_prefix=False,
    trained_on="the finished answers of a pair, and every prefix, fitted to its best next token",
    unit=_LOG_ODDS,
    source="FaRMA, arXiv 2502.04517",
    settings=("farma_weight",),
    needs_best=True,
    card=CardWords(
        summary=_GUIDES,
        meaning=(
            "The score of a finished text is a reward of Bradley-Terry: of two answers to the same prompt, the one "
            "whose score is higher by 1 is preferred with odds of e to 1 (73 %). The score of an unfinished text "
            "estimates the largest score that any continuation of it can reach; higher is better. Only differences "
            "between texts with one prompt are meaningful."
        ),
        training=(
            "Bradley-Terry on the finished answers, plus {farma_weight} times the squared difference between the score "
            "of a prefix and the largest score one token later, which is held constant (FaRMA)."
        ),
        loss="per pair (nats and squared differences)",
        limits=(
            "Scores of unfinished texts are optimistic: one good continuation among many bad ones is enough.",
            "Scores of different prompts cannot be compared.",
        ),
        papers=("pargs", "farma"),
    ),
)

# GenARM: an autoregressive reward model.
_ARM = Objective(
    name="arm",
    data="pairs",
    kinds=("log_ratio",),
    every_prefix=False,
    trained_on="sums of log-probabilities of the finished answers of a pair",
    unit="nats of log-probability",
    source="GenARM, arXiv 2410.08193",
    settings=("arm_beta",),
    strength="arm_beta",
    suggested_beta=1.0,
    card=CardWords(
        summary=(
            "A reward model in the shape of a language model: the log-probabilities of the tokens add up to the reward "
            "of a text, so that it can guide a language model token by token."
        ),
        meaning=(
            "The score of a text is the sum of log π_r of its tokens, where π_r is this model; higher is better. Of "
            "two answers to the same prompt, the one whose score is higher by 1 nat is preferred with log-odds "
            "{arm_beta}. Only differences between texts with one prompt are meaningful, and longer texts have lower "
            "scores."
        ),
        training="Bradley-Terry on {arm_beta} · Σ log π_r of the finished answers (GenARM).",
        loss="nats per pair",
        beta_reason="the probabilities of the language model are multiplied by those of this one, as in GenARM",
        limits=(
            "The rewards of whole answers are trained, not those of prefixes: sampling token by token approximates the "
            "optimum, but does not reach it.",
            "Scores of different prompts or lengths cannot be compared.",
        ),
        papers=("pargs", "genarm"),
    ),
)

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (_PARTIAL_BT, _FULL_BT, _VALUE, _SOFT_VALUE, _CUMULATIVE, _FARMA, _ARM)
}
"""Every objective by its name."""
