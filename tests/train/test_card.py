from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from rgtg_logits.card import BaseCardFacts, CardFacts, Evaluation, render_card
from rgtg_logits.errors import InvalidArgumentError


def test_a_card_of_few_facts_invents_nothing() -> None:
    text = render_card(CardFacts(model_id="org/rm", objective="partial_bt"))
    card = ModelCard(text)

    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "reward-guided-decoding", "rgtg-logits"],
    }
    assert "None" not in text
    for absent in ("Trained from", "Data:", "Pairs", "Prefix accuracy", "Versions", "tokens in training", "\n\n\n"):
        assert absent not in text
    assert "It was not evaluated on held-out pairs" in text


def test_a_card_of_all_facts() -> None:
    evaluation = Evaluation(name="eval", pairs=200, step=50, loss=0.5, prefix_accuracy={10: 0.55, 100: 0.8125})
    text = render_card(
        CardFacts(
            model_id="org/rm",
            objective="full_bt",
            base_model="org/lm",
            dataset="org/pairs",
            dataset_on_hub=True,
            train_pairs=1000,
            cut_pairs=3,
            left_out_pairs=4,
            max_length=256,
            steps=50,
            evaluations=(evaluation,),
            hyperparameters={"learning_rate": 5e-6},
            versions={"torch": "2.13.0"},
            license="apache-2.0",
            language=("en",),
            tags=("trl",),
            pad_is_eos=True,
            adapter=True,
            notes=("Pairs of film reviews.",),
        )
    )
    card = ModelCard(text)

    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "org/lm"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    for line in (
        "| cut at | 10 % | 100 % |\n|---|---|---|\n| accuracy | 0.550 | 0.812 |\n",
        "`eval`: 200 pairs, after step 50, loss 0.5000 nats per comparison.",
        "- Of these, cut at 256 tokens: 3",
        "| `learning_rate` | 5e-06 |",
        "- torch 2.13.0",
        "Pairs of film reviews.",
        "Padding and end of text are the same token",
    ):
        assert line in text
    assert "\n\n\n" not in text


def test_a_card_of_a_base_model() -> None:
    few = render_card(BaseCardFacts(model_id="org/lm"))
    text = render_card(
        BaseCardFacts(model_id="org/lm", parameters=15191712, tokens=10_000_000, loss_before=5.1, loss_after=4.2)
    )

    assert ModelCard(text).data.to_dict() == {"library_name": "transformers", "pipeline_tag": "text-generation"}
    assert "None" not in few
    assert "held-out" not in few
    assert "\n\n\n" not in few
    assert "- Parameters: 15,191,712\n- Tokens trained on: 10,000,000\n" in text
    assert "before: 5.1000 nats per token\n- Loss on held-out texts after: 4.2000 nats per token" in text


def test_unknown_objective() -> None:
    with pytest.raises(InvalidArgumentError, match="one of 'partial_bt', 'full_bt', .*, but got 'ranking'"):
        CardFacts(model_id="org/rm", objective="ranking")
