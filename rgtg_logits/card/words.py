"""What a model card says of each objective and of each kind of checkpoint, and the papers it cites.

The words follow the optimum that each objective has (see `train.losses`), not what one model reached.
"""

from __future__ import annotations

from dataclasses import dataclass

_LOG_ODDS = "log-odds of Bradley-Terry"
_DATA_UNIT = "unit of the data's rewards"
_PREFIXES = (
    "A reward model of **unfinished** texts: it gives a score to every prefix, so that it can guide a language model "
    "token by token."
)
_AS_TRAINED = (
    "The mean is over texts like those of the training data. A base model that goes on in another way than they do has "
    "other means."
)


@dataclass(frozen=True, kw_only=True)
class ObjectiveWords:
    """What a card says of an objective; `{name}` stands for a setting of it, or for its name where it is not known.

    Attributes:
        rows: What a row of the training data is.
        summary: What such a model is, in the first paragraph.
        unit: Of a score.
        meaning: What a score says, and which scores may be compared.
        training: What was minimised.
        loss: What a reported loss is, as it follows the number.
        beta: A strength that follows from the objective itself, with the reason; None where none does.
        limits: What the objective brings with it.
        papers: Keys of `PAPERS`.
    """

    rows: str
    summary: str
    unit: str
    meaning: str
    training: str
    loss: str
    beta: tuple[float, str] | None = None
    limits: tuple[str, ...] = ()
    papers: tuple[str, ...] = ("pargs",)


OBJECTIVES: dict[str, ObjectiveWords] = {
    "partial_bt": ObjectiveWords(
        rows="pairs",
        summary=_PREFIXES,
        unit=_LOG_ODDS,
        meaning=(
            "The score of a text belongs to the whole prefix up to its last token; higher is better. Of two prefixes "
            "of the same length and prompt, the one whose score is higher by 1 leads to the preferred answer with odds "
            "e (73 %). Only differences between continuations of one prompt at one length mean something."
        ),
        training=(
            "Bradley-Terry on the prefixes of both answers at every position from the first token that differs, with "
            "the label of the finished pair (PARGS); the mean over all prefix pairs of a batch."
        ),
        loss="nats per comparison",
        limits=("Scores of different prompts or lengths cannot be compared.",),
    ),
    "full_bt": ObjectiveWords(
        rows="pairs",
        summary=(
            "A reward model of **finished** texts. It gives a score to prefixes too, but was not trained on them: "
            "guiding a language model token by token with it is arbitrary (see the first paper below). It serves as a "
            "baseline, or to rank finished texts."
        ),
        unit=_LOG_ODDS,
        meaning=(
            "The score belongs to a finished text, with its end-of-text token; higher is better. Of two answers to the "
            "same prompt, the one whose score is higher by 1 is preferred with odds e (73 %). Only differences between "
            "answers to one prompt mean something."
        ),
        training="Bradley-Terry on the finished answers.",
        loss="nats per comparison",
        limits=("Scores of different prompts cannot be compared.",),
        papers=("pargs", "instruct"),
    ),
    "value": ObjectiveWords(
        rows="answers with a reward",
        summary=_PREFIXES,
        unit=_DATA_UNIT,
        meaning=(
            "The score of a prefix estimates E[r | prefix], the mean reward r of the finished answers that begin like "
            "this; higher is better. It is in the unit of the rewards in the data, so scores of different lengths, and "
            "of different prompts, can be compared as far as those rewards can."
        ),
        training=(
            "Half the squared difference between the score of every prefix of an answer and the reward of the finished "
            "answer (CD-FUDGE); the mean over all prefixes of a batch. TD(λ) with λ = {td_lambda}: below 1, the reward "
            "is replaced by what the model says of the prefixes that follow."
        ),
        loss="per prefix (half the squared difference)",
        limits=(
            _AS_TRAINED,
            "Guidance by a mean is right for small strengths only: a rare high reward counts by its share, however "
            "large `beta` is.",
        ),
        papers=("pargs", "cd"),
    ),
    "soft_value": ObjectiveWords(
        rows="answers with a reward",
        summary=_PREFIXES,
        unit="nats",
        meaning=(
            "The score of a prefix estimates log E[exp({beta} · r) | prefix]: r is the reward of the finished answer "
            "in the data's own unit, and the mean is over answers that begin like this; higher is better. This is "
            "{beta} times the soft value of KL-regularised RLHF. Guided by it with strength 1, the model that the "
            "answers were drawn from becomes the optimum of KL-regularised RLHF with strength {beta}, token by token, "
            "as far as the estimates are right. Other strengths do not give the optimum for another `beta`: train for "
            "that one instead."
        ),
        training=(
            "The LINEX loss exp(d) − d − 1 at every prefix of an answer, with d = {beta} · r − score; the mean over "
            "all prefixes of a batch. Its minimiser is the formula above. TD(λ) with λ = {td_lambda}: below 1, {beta} "
            "· r is replaced by what the model says of the prefixes that follow."
        ),
        loss="per prefix (LINEX)",
        beta=(1.0, "the strength that the objective is made for; its own `beta` is already in the scores"),
        limits=(
            _AS_TRAINED,
            "The exponential in the LINEX loss goes on as a straight line where d is larger than {clip}, so rewards "
            "far above what was expected count less than in the formula.",
        ),
        papers=("pargs", "bayes"),
    ),
    "cumulative": ObjectiveWords(
        rows="answers with a reward",
        summary=_PREFIXES,
        unit=_DATA_UNIT,
        meaning=(
            "The score of a prefix estimates E[r | prefix], the mean reward r of the finished answers that begin like "
            "this; higher is better. It is in the unit of the rewards in the data, so scores of different lengths, and "
            "of different prompts, can be compared as far as those rewards can. Late prefixes weighed more in training "
            "than early ones."
        ),
        training=(
            "The squared difference between the score of every prefix of an answer and the reward of the finished "
            "answer, the t-th prefix with weight t (RAD); the mean over the answers of a batch."
        ),
        loss="per answer (weighted squared difference)",
        limits=(
            _AS_TRAINED,
            "Guidance by a mean is right for small strengths only: a rare high reward counts by its share, however "
            "large `beta` is.",
        ),
        papers=("pargs", "rad"),
    ),
    "farma": ObjectiveWords(
        rows="pairs",
        summary=_PREFIXES,
        unit=_LOG_ODDS,
        meaning=(
            "The score of a finished text is a reward of Bradley-Terry: of two answers to the same prompt, the one "
            "whose score is higher by 1 is preferred with odds e (73 %). The score of an unfinished text estimates the "
            "largest score that any continuation of it can reach; higher is better. Only differences between texts "
            "with one prompt mean something."
        ),
        training=(
            "Bradley-Terry on the finished answers, plus {farma_weight} times the squared difference between the score "
            "of a prefix and the largest score one token later, which is taken as given (FaRMA)."
        ),
        loss="per pair (nats and squared differences)",
        limits=(
            "Scores of unfinished texts are optimistic: one good continuation among many bad ones is enough.",
            "Scores of different prompts cannot be compared.",
        ),
        papers=("pargs", "farma"),
    ),
    "arm": ObjectiveWords(
        rows="pairs",
        summary=(
            "A reward model in the shape of a language model: the log-probabilities of the tokens add up to the reward "
            "of a text, so that it can guide a language model token by token."
        ),
        unit="nats of log-probability",
        meaning=(
            "The score of a text is the sum of log π_r of its tokens, where π_r is this model; higher is better. Of "
            "two answers to the same prompt, the one whose score is higher by 1 nat is preferred with log-odds "
            "{arm_beta}. Only differences between texts with one prompt mean something, and longer texts have lower "
            "scores."
        ),
        training="Bradley-Terry on {arm_beta} · Σ log π_r of the finished answers (GenARM).",
        loss="nats per pair",
        beta=(1.0, "the probabilities of the language model are multiplied by those of this one, as in GenARM"),
        limits=(
            "The rewards of whole answers are trained, not those of prefixes: drawing token by token comes near the "
            "optimum, but is not it.",
            "Scores of different prompts or lengths cannot be compared.",
        ),
        papers=("pargs", "genarm"),
    ),
}
"""Every objective of `train.objectives` by its name."""

READING: dict[str, str] = {
    "causal": (
        "A scalar head reads the score from the state of each token, so one forward gives the scores of all prefixes."
    ),
    "vocabulary": (
        "The logit of a token behind a prefix is the score of the prefix with that token, so one forward gives the "
        "scores of all next tokens. The logits are not log-probabilities: text drawn from them means nothing."
    ),
    "log_ratio": (
        "The log-probability of each token is what it adds to the score, so the score of a text is a sum over its "
        "tokens, those of the prompt included."
    ),
}
"""How a score is read, by kind of checkpoint."""

PAPERS: dict[str, str] = {
    "pargs": """@inproceedings{rashid2025critical,
  title     = {A Critical Look At Tokenwise Reward-Guided Text Generation},
  author    = {Rashid, Ahmad and Wu, Ruotian and Grosse, Julia and Kristiadi, Agustinus and Poupart, Pascal},
  booktitle = {Conference on Language Modeling (COLM)},
  year      = {2025},
  url       = {https://arxiv.org/abs/2406.07780}
}""",
    "instruct": """@inproceedings{ouyang2022training,
  title     = {Training language models to follow instructions with human feedback},
  author    = {Ouyang, Long and Wu, Jeffrey and Jiang, Xu and Almeida, Diogo and others},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022},
  url       = {https://arxiv.org/abs/2203.02155}
}""",
    "cd": """@inproceedings{mudgal2024controlled,
  title     = {Controlled Decoding from Language Models},
  author    = {Mudgal, Sidharth and Lee, Jong and Ganapathy, Harish and Li, YaGuang and Wang, Tao and others},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  url       = {https://arxiv.org/abs/2310.17022}
}""",
    "bayes": """@inproceedings{korbak2022rl,
  title     = {RL with KL penalties is better viewed as Bayesian inference},
  author    = {Korbak, Tomasz and Perez, Ethan and Buckley, Christopher},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP},
  year      = {2022},
  url       = {https://arxiv.org/abs/2205.11275}
}""",
    "rad": """@inproceedings{deng2023reward,
  title     = {Reward-Augmented Decoding: Efficient Controlled Text Generation With a Unidirectional Reward Model},
  author    = {Deng, Haikang and Raffel, Colin},
  booktitle = {Conference on Empirical Methods in Natural Language Processing (EMNLP)},
  year      = {2023},
  url       = {https://arxiv.org/abs/2310.09520}
}""",
    "farma": """@inproceedings{rashid2025towards,
  title     = {Towards Cost-Effective Reward Guided Text Generation},
  author    = {Rashid, Ahmad and Wu, Ruotian and Fan, Rongqi and Li, Hongliang and Kristiadi, Agustinus and others},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2025},
  url       = {https://arxiv.org/abs/2502.04517}
}""",
    "genarm": """@inproceedings{xu2025genarm,
  title     = {GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment},
  author    = {Xu, Yuancheng and Sehwag, Udari Madhushani and Koppel, Alec and Zhu, Sicheng and An, Bang and others},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2025},
  url       = {https://arxiv.org/abs/2410.08193}
}""",
}
"""BibTeX of what is cited."""
