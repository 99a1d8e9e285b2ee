"""The sentiment model behind the gold reward and its judge, each trained on one half of the reviews with star ratings.

The gold model labels the preference pairs. The judge labels nothing, so that rewards which guidance gains by exploiting
errors of the gold model do not show in the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

# The best of 1, 3 and 10 on the other half of the training reviews; 30 gains 0.1 points but doubles the log-odds.
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
        """Share of whole reviews whose label it predicts."""
        return float(np.mean((self.log_odds(reviews["text"]) > 0) == np.array(reviews["label"], dtype=bool)))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON, because a pickle would be code instead of data."""
        return {
            "terms": self.vectorizer.get_feature_names_out().tolist(),
            "idf": self.vectorizer.idf_.tolist(),
            "weights": self.weights.tolist(),
            "intercept": self.intercept,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SentimentModel:
        """Rebuilds a model from the output of `to_dict`."""
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=values["terms"])
        vectorizer.idf_ = np.array(values["idf"])
        return cls(vectorizer, np.array(values["weights"]), values["intercept"])
