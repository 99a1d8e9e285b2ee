"""The gold reward and its judge: two sentiment models, trained on disjoint halves of the reviews with star ratings.

The gold model labels the preference pairs. The judge never labels anything, so what guidance gains by flattering the
gold model in particular, it does not gain from the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

# The best of 1, 3 and 10 on the other half of the training reviews; 30 gains 0.1 points and doubles the log-odds.
INVERSE_REGULARISATION = 10.0


@dataclass(frozen=True)
class SentimentModel:
    """Logistic regression on TF-IDF of words and word pairs."""

    vectorizer: TfidfVectorizer
    weights: np.ndarray
    intercept: float

    @classmethod
    def fit(cls, reviews: Dataset) -> SentimentModel:
        """Trains on the texts and their star-rating labels; deterministic."""
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
        features = vectorizer.fit_transform(reviews["text"])
        regression = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=500)
        regression.fit(features, np.array(reviews["label"]))
        return cls(vectorizer, regression.coef_[0], float(regression.intercept_[0]))

    def log_odds(self, texts: Sequence[str]) -> np.ndarray:
        """Log-odds, in nats, that each text is positive."""
        return self.vectorizer.transform(list(texts)) @ self.weights + self.intercept

    def accuracy(self, reviews: Dataset) -> float:
        """Share of whole reviews whose label it gives."""
        return float(np.mean((self.log_odds(reviews["text"]) > 0) == np.array(reviews["label"], dtype=bool)))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON: a stored model is data, not code as a pickle would be."""
        return {
            "terms": self.vectorizer.get_feature_names_out().tolist(),
            "idf": self.vectorizer.idf_.tolist(),
            "weights": self.weights.tolist(),
            "intercept": self.intercept,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SentimentModel:
        """Rebuilds what `to_dict` wrote."""
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=values["terms"])
        vectorizer.idf_ = np.array(values["idf"])
        return cls(vectorizer, np.array(values["weights"]), values["intercept"])


def gold_and_judge(train: Dataset, held_out: Dataset) -> dict[str, Any]:
    """Trains one model on each half of the (shuffled) training reviews and measures both on held-out reviews."""
    half = len(train) // 2
    halves = {"gold": train.select(range(half)), "judge": train.select(range(half, len(train)))}
    stage: dict[str, Any] = {"reviews_each": half, "held_out_reviews": len(held_out)}
    for name, reviews in halves.items():
        model = SentimentModel.fit(reviews)
        stage[name] = {"accuracy": model.accuracy(held_out), **model.to_dict()}
    return stage
