from __future__ import annotations

import itertools
import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from rgtg_logits import objectives
from rgtg_logits.card import (
    CardFacts,
    DataFacts,
    Guidance,
    GuidedPoint,
    PrefixEvaluation,
    RewardDistribution,
    ScoredExample,
    render_card,
)
from rgtg_logits.card.words import PAPERS
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.objectives import OBJECTIVES
from rgtg_logits.reward_model.config import KINDS
from rgtg_logits.train.objectives import LOSSES, LossSettings

ALL_KINDS = list(itertools.product(OBJECTIVES, KINDS))


def accuracy(**changes) -> PrefixEvaluation:
    options = {
        "name": "eval",
        "pairs": 200,
        "prefix_accuracy": {10: 0.55, 100: 0.8125},
        "standard_error": {10: 0.035, 100: 0.028},
        "step": 50,
        "loss": 0.5,
    }
    return PrefixEvaluation(**{**options, **changes})


def everything(objective: str, kind: str) -> CardFacts:
    data = DataFacts(
        name="org/data",
        on_hub=True,
        configuration="small",
        split="train",
        revision="a" * 40,
        rows=1000,
        cut=3,
        left_out={"empty": 1, "unusable": 0, "identical": 3},
    )
    held_out = DataFacts(name="org/data", on_hub=True, split="test", revision="b" * 40)
    correlation = PrefixEvaluation(name="labels", texts=90, correlation={50: 0.25, 100: 0.5}, standard_error={50: 0.1})
    points = tuple(GuidedPoint(beta=b, reward=b / 2, kl=b / 10, kl_interval=(b / 11, b / 9)) for b in (0.0, 1.0, 2.0))
    return CardFacts(
        model_id="org/rm",
        objective=objective,
        kind=kind,
        settings={"beta": 2.0, "clip": 5.0, "arm_beta": 0.5, "farma_weight": 3.0},
        base_model="org/lm",
        data=data,
        max_length=256,
        steps=50,
        evaluations=(accuracy(data=held_out), accuracy(name="another model", baseline=True), correlation),
        rewards=RewardDistribution(
            prefixes=1234, mean=0.5, standard_deviation=1.5, quantiles={5: -2.0, 50: 0.25, 95: 3.0}, source="eval"
        ),
        guidance=Guidance(
            points=points, reward="points of a judge", kl="nats per token", prompts=40, confidence=95,
            base_model="org/big-lm", setting="sampling",
        ),
        suggested_beta=1.5,
        beta_source="the knee of the curve below",
        example=ScoredExample(prompt='Say "<hi>"', answers=(" hi", " ho\n"), scores=(1.26, -0.5)),
        hyperparameters={"learning_rate": 5e-6, "max_length": None},
        hardware="NVIDIA H200",
        processes=2,
        training_seconds=5400.0,
        versions={"torch": "2.13.0"},
        license="apache-2.0",
        language=("en",),
        tags=("trl",),
        pad_is_eos=True,
        adapter=True,
        notes=("Pairs of film reviews.",),
        limits=("It has read no books.",),
    )  # fmt: skip


def test_every_objective_has_a_loss_and_words() -> None:
    assert set(LOSSES) == set(OBJECTIVES)
    for name, objective in OBJECTIVES.items():
        assert objective.name == name
        assert objective.rows == {"pairs": "pairs", "labels": "answers with a reward"}[objective.data]
        assert set(objective.kinds) <= set(KINDS)
        assert all(hasattr(LossSettings(), setting) for setting in objective.settings)
        assert objective.strength in (None, *objective.settings)
        assert (objective.suggested_beta is None) == (objective.card.beta_reason is None)
        # The card cites the source that the table of objectives names.
        for number in re.findall(r"\d{4}\.\d{5}", objective.source):
            assert any(number in PAPERS[key] for key in objective.card.papers)
        assert objective.card.papers[0] == "pargs"


def test_the_table_of_objectives_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_path(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, objectives.__file__], check=True)


@pytest.mark.parametrize(("objective", "kind"), ALL_KINDS)
def test_a_card_of_few_facts_invents_nothing(objective: str, kind: str) -> None:
    text = render_card(CardFacts(model_id="org/rm", objective=objective, kind=kind))

    assert ModelCard(text).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if kind == "causal" else "text-generation",
        "tags": ["reward-model", "reward-guided-decoding", "rgtg-logits"],
    }
    absent = (
        "None", "Trained from", "Data:", "Rows", "Prefix accuracy", "Correlation", "KL |", "Versions", "Hardware",
        "Training time", "no text longer than", "Settings", "quantile", "```text", ".png",
        "| setting", "\n\n\n", "{", "}",
    )  # fmt: skip
    for words in absent:
        assert words not in text.split("```bibtex")[0], words
    assert "- This card holds no evaluation on held-out data.\n" in text
    assert "|---" not in text
    assert all(line != "#" and not re.fullmatch(r"#+ *", line) for line in text.splitlines())


@pytest.mark.parametrize(("objective", "kind"), ALL_KINDS)
def test_a_card_of_all_facts(objective: str, kind: str) -> None:
    text = render_card(everything(objective, kind), {"prefix_accuracy.png", "prefix_correlation.png"})
    card = ModelCard(text)

    assert card.data.license == "apache-2.0" and card.data.language == ["en"] and card.data.datasets == "org/data"
    assert card.data.base_model == "org/lm" and card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.tags == ["reward-model", "reward-guided-decoding", "rgtg-logits", "trl"]
    words = OBJECTIVES[objective]
    for line in (
        f"Unit: {words.unit}. ",
        "Scores of 1,234 held-out prefixes (eval), in that unit:\n\n"
        "| mean | standard deviation | 5 % quantile | 50 % quantile | 95 % quantile |\n|---|---|---|---|---|\n"
        "| 0.500 | 1.500 | -2.000 | 0.250 | 3.000 |\n",
        'PartialRewardLogitsProcessor("org/rm", beta=1.5, top_k=20, tokenizer=tokenizer)',
        "`beta=1.5` is a strength to begin with: the knee of the curve below.",
        'answers = [\n    " hi",\n    " ho\\n",\n]\nscores = rm.score(["Say \\"<hi>\\""] * 2, answers)\n',
        "```text\n[1.26, -0.5]\n```\n",
        "(a PEFT adapter: `pip install peft`)",
        f"- Data: `org/data`, configuration `small`, split `train`, revision `{'a' * 40}`\n",
        f"- Rows trained on: 1,000 {words.rows}\n- Rows cut at 256 tokens: 3\n"
        "- Rows left out: 4 (1 empty, 3 identical)\n- Optimiser steps: 50\n- Hardware: 2 × NVIDIA H200\n"
        "- Training time: 90 minutes\n",
        "| `learning_rate` | 5e-06 |\n| `max_length` | none |\n",
        "| cut at | 10 % | 100 % |\n|---|---|---|\n| accuracy | 0.550 | 0.812 |\n| standard error | 0.035 | 0.028 |\n",
        f"`eval`: 200 pairs of `org/data`, split `test`, revision `{'b' * 40}`, after step 50, "
        f"loss 0.5000 {words.card.loss}.\n",
        "| correlation | 0.250 | 0.500 |\n| standard error | 0.100 |  |\n",
        "`labels`: 90 answers.\n",
        "](prefix_accuracy.png)",
        "| 2 | 1.000 | 0.200 [0.182, 0.222] |\n",
        "on 40 held-out prompts, with `org/big-lm`; sampling.\n",
        "- torch 2.13.0",
        "Pairs of film reviews.",
        "- It has read no books.\n",
        "- Language of the training data: en. ",
        *(PAPERS[key] for key in words.card.papers),
    ):
        assert line in text, line
    loader = "AutoModelForSequenceClassification" if kind == "causal" else "AutoModelForCausalLM"
    assert f'{loader}.from_pretrained("org/rm"' in text
    assert ("Padding and end of text are the same token" in text) == (kind == "causal")
    assert "reward_against_kl.png" not in text and "\n\n\n" not in text and "None" not in text
    assert "no evaluation" not in text


def test_results_on_data_of_the_hub_are_in_its_index() -> None:
    results = ModelCard(render_card(everything("partial_bt", "causal"))).data.eval_results

    # That of the other model and that of data from elsewhere are not this model's results on a Hub data set.
    assert [(item.metric_name, item.metric_value) for item in results] == [
        ("Prefix accuracy at 10 % of the answer", 0.55),
        ("Prefix accuracy at 100 % of the answer", 0.8125),
    ]
    found = results[0]
    assert (found.dataset_type, found.dataset_split, found.dataset_revision) == ("org/data", "test", "b" * 40)
    assert (found.task_type, found.metric_type) == ("text-classification", "accuracy")


def test_a_soft_value_says_what_it_is_the_value_of() -> None:
    known = render_card(CardFacts(model_id="org/rm", objective="soft_value", settings={"beta": 0.5, "clip": 4.0}))
    unknown = render_card(CardFacts(model_id="org/rm", objective="soft_value", unit="nats of a judge"))

    assert "estimates log E[exp(0.5 · r) | prefix]" in known and "larger than 4," in known
    assert "- Settings of the objective: `beta` 0.5, `clip` 4\n" in known
    assert "estimates log E[exp(beta · r) | prefix]" in unknown and "Unit: nats of a judge." in unknown
    for text in (known, unknown):
        assert 'PartialRewardLogitsProcessor("org/rm", beta=1.0,' in text
        assert "`beta=1.0` is a strength to begin with: the strength that the objective is made for" in text


def test_a_strength_that_nobody_measured() -> None:
    text = render_card(CardFacts(model_id="org/rm", objective="value"))
    assert "No strength was measured for this model; `beta=1.0` is the default of the library." in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "less than a second"), (86.4, "86 seconds"), (227.0, "4 minutes"), (18000.0, "5.0 hours")],
)
def test_durations(seconds: float, words: str) -> None:
    text = render_card(CardFacts(model_id="org/rm", objective="arm", training_seconds=seconds))
    assert f"- Training time: {words}\n" in text


def test_a_finetuned_model_says_so() -> None:
    text = render_card(CardFacts(model_id="org/rm", objective="arm", kind="log_ratio", base_model="org/lm"))
    assert ModelCard(text).data.to_dict()["base_model_relation"] == "finetune"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CardFacts(model_id="m", objective="ranking"), "one of 'partial_bt', 'full_bt', .* but got 'ranking'"),
        (lambda: CardFacts(model_id="m", objective="arm", kind="head"), "kind to be one of 'causal', .* got 'head'"),
        (
            lambda: CardFacts(model_id="m", objective="arm", suggested_beta=2.0),
            "together with its source, but got suggested_beta=2.0 and beta_source=None. Say where",
        ),
        (
            lambda: PrefixEvaluation(name="e", pairs=3),
            "prefix_accuracy with pairs, or correlation with texts, but got pairs=3",
        ),
        (lambda: accuracy(correlation={10: 0.5}), "one evaluation for each kind of figure"),
        (lambda: accuracy(standard_error={25: 0.1}), r"at \[10, 100\] percent, but got them at \[25\]"),
        (lambda: ScoredExample(prompt="p", answers=("a",), scores=()), "but got 1 answers and 0 scores"),
    ],
)
def test_facts_that_do_not_fit_together(make, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()
