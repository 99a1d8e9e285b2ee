"""The table of data set formats: the columns by which each is recognised, and how its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rgtg_logits.data_formats import converters as rows
from rgtg_logits.data_formats.converters import Row, Rows


@dataclass(frozen=True, kw_only=True)
class DatasetFormat:
    """The format of a well-known data set.

    Attributes:
        name: Value of `--dataset_format`.
        sets: Data sets of this format, in words.
        columns: The columns by which it is recognised.
        pairs: Makes preference pairs of a row, or of all rows; None if there are none in it.
        labels: The same for answers with a reward each.
        whole: The kinds of rows that are made of several rows, so that all are read at once.
        native: Whether its rows are texts, which `between` joins where there is no chat template; chats need one.
        between: Stands between question and answer where there is no chat template.
        margin: Whether its pairs have a margin.
        fits: Whether a first row fits, for formats that have the columns of another one.
    """

    name: str
    sets: str
    columns: tuple[str, ...]
    pairs: Callable[[Any], Rows] | None = None
    labels: Callable[[Any], Rows] | None = None
    whole: tuple[str, ...] = ()
    native: bool = True
    between: str = "\n\n"
    margin: bool = False
    fits: Callable[[Row], bool] = lambda row: True

    def converter(self, data: str) -> Callable[[Any], Rows] | None:
        """The function that makes "pairs" or "labels" of its rows."""
        return self.pairs if data == "pairs" else self.labels


_RATINGS = ("chosen_rating", "rejected_rating")
_DASHED_RATINGS = ("chosen-rating", "rejected-rating")
_SCORES = ("score_chosen", "score_rejected")
_STEPS = ("completions", "labels")


def _is_text(row: Row, column: str) -> bool:
    return isinstance(row.get(column), str)


def _shp_preferred(row: Row) -> int | None:
    return {1: 0, 0: 1}.get(row["labels"])


def _has_steps(row: Row) -> bool:
    return isinstance(row.get("label"), Mapping) and "steps" in row["label"]


FORMATS: tuple[DatasetFormat, ...] = (
    DatasetFormat(
        name="ultrafeedback_binarized",
        sets="UltraFeedback, binarized (H4)",
        columns=("chosen", "rejected", *_SCORES),
        pairs=rows.answered(lambda row: row.get("prompt"), _SCORES),
        labels=rows.rated(lambda row: row.get("prompt"), _SCORES),
        native=False,
    ),
    DatasetFormat(
        name="ultrafeedback",
        sets="UltraFeedback (OpenBMB)",
        columns=("instruction", "completions"),
        pairs=rows.ultrafeedback_pairs,
        labels=rows.ultrafeedback_labels,
        fits=lambda row: isinstance(row["completions"], list),
    ),
    DatasetFormat(
        name="pku_saferlhf",
        sets="PKU-SafeRLHF, the better answer (help)",
        columns=("prompt", "response_0", "response_1", "better_response_id"),
        pairs=rows.chosen_by(
            rows.asked("prompt"), "response_0", "response_1", lambda row: _zero_or_one(row["better_response_id"])
        ),
    ),
    DatasetFormat(
        name="pku_saferlhf_safer",
        sets="PKU-SafeRLHF, the safer answer",
        columns=("prompt", "response_0", "response_1", "safer_response_id"),
        pairs=rows.chosen_by(
            rows.asked("prompt"), "response_0", "response_1", lambda row: _zero_or_one(row["safer_response_id"])
        ),
    ),
    DatasetFormat(
        name="helpsteer2",
        sets="HelpSteer, HelpSteer2 (helpfulness)",
        columns=("prompt", "response", "helpfulness", "correctness", "coherence"),
        pairs=rows.helpsteer_pairs,
        labels=rows.helpsteer_labels,
        whole=("pairs",),
    ),
    DatasetFormat(
        name="helpsteer3",
        sets="HelpSteer3 (strength of the preference as margin)",
        columns=("context", "response1", "response2", "overall_preference"),
        pairs=rows.helpsteer3_pairs,
        native=False,
        margin=True,
    ),
    DatasetFormat(
        name="nectar",
        sets="Nectar",
        columns=("prompt", "answers", "num_responses"),
        pairs=rows.nectar_pairs,
    ),
    DatasetFormat(
        name="shp",
        sets="SHP",
        columns=("history", "human_ref_A", "human_ref_B", "labels"),
        pairs=rows.chosen_by(rows.asked("history"), "human_ref_A", "human_ref_B", _shp_preferred),
    ),
    DatasetFormat(
        name="oasst",
        sets="OASST1, OASST2 (trees; quality as reward)",
        columns=("message_id", "parent_id", "text", "role", "rank"),
        pairs=rows.oasst_pairs,
        labels=rows.oasst_labels,
        whole=("pairs", "labels"),
    ),
    DatasetFormat(
        name="webgpt",
        sets="WebGPT comparisons",
        columns=("question", "answer_0", "answer_1", "score_0", "score_1"),
        pairs=rows.webgpt_pairs,
        labels=rows.webgpt_labels,
    ),
    DatasetFormat(
        name="summarize_from_feedback",
        sets="summarize_from_feedback, comparisons",
        columns=("info", "summaries", "choice"),
        pairs=rows.summary_pairs,
        between=" ",
    ),
    DatasetFormat(
        name="summarize_from_feedback_axis",
        sets="summarize_from_feedback, axis (overall grade)",
        columns=("info", "summary"),
        labels=rows.summary_labels,
        between=" ",
    ),
    DatasetFormat(
        name="offsetbias",
        sets="OffsetBias",
        columns=("instruction", "output_1", "output_2", "label"),
        pairs=rows.chosen_by(
            rows.asked("instruction"), "output_1", "output_2", lambda row: {1: 0, 2: 1}.get(row["label"])
        ),
    ),
    DatasetFormat(
        name="arena",
        sets="Chatbot Arena conversations",
        columns=("conversation_a", "conversation_b", "winner"),
        pairs=rows.arena_pairs,
        native=False,
    ),
    DatasetFormat(
        name="arena_55k",
        sets="Arena human preference 55k",
        columns=("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        pairs=rows.arena_turns_pairs,
        native=False,
    ),
    DatasetFormat(
        name="orca_dpo_pairs",
        sets="Intel orca_dpo_pairs",
        columns=("system", "question", "chosen", "rejected"),
        pairs=rows.answered(rows.asked("question", "system")),
    ),
    DatasetFormat(
        name="distilabel_orca",
        sets="argilla distilabel-intel-orca-dpo-pairs",
        columns=("system", "input", "chosen", "rejected"),
        pairs=rows.answered(rows.asked("input", "system")),
    ),
    DatasetFormat(
        name="ultrainteract",
        sets="UltraInteract pairs",
        columns=("trajectory", "chosen", "rejected"),
        pairs=rows.answered(lambda row: rows.turns(row["trajectory"], "trajectory")),
        native=False,
    ),
    DatasetFormat(
        name="argilla",
        sets="argilla preferences",
        columns=("instruction", "chosen", "rejected", *_DASHED_RATINGS),
        pairs=rows.answered(rows.asked("instruction"), _DASHED_RATINGS),
        labels=rows.rated(rows.asked("instruction"), _DASHED_RATINGS),
    ),
    DatasetFormat(
        name="argilla",
        sets="argilla preferences",
        columns=("instruction", "chosen", "rejected"),
        pairs=rows.answered(rows.asked("instruction")),
    ),
    DatasetFormat(
        name="tulu",
        sets="Tulu preference mixtures, argilla dpo-mix",
        columns=("chosen", "rejected", *_RATINGS),
        pairs=rows.answered(lambda row: row.get("prompt"), _RATINGS),
        labels=rows.rated(lambda row: row.get("prompt"), _RATINGS),
        native=False,
        fits=lambda row: not _is_text(row, "chosen"),
    ),
    DatasetFormat(
        name="sharegpt",
        sets="preference pairs behind ShareGPT lists",
        columns=("conversations", "chosen", "rejected"),
        pairs=rows.answered(lambda row: rows.turns(row["conversations"], "conversations")),
        native=False,
    ),
    DatasetFormat(
        name="jigsaw",
        sets="Jigsaw toxic comments (reward: 1 minus toxicity)",
        columns=("comment_text", "toxic"),
        labels=rows.toxicity_labels("comment_text", "toxic"),
    ),
    DatasetFormat(
        name="jigsaw_bias",
        sets="Jigsaw unintended bias (reward: 1 minus toxicity)",
        columns=("comment_text", "target"),
        labels=rows.toxicity_labels("comment_text", "target"),
    ),
    DatasetFormat(
        name="civil_comments",
        sets="Civil Comments (reward: 1 minus toxicity)",
        columns=("text", "toxicity", "severe_toxicity"),
        labels=rows.toxicity_labels("text", "toxicity"),
    ),
    DatasetFormat(
        name="prm800k",
        sets="PRM800K (a reward for each step)",
        columns=("question", "label"),
        labels=rows.prm800k_labels,
        fits=_has_steps,
    ),
    DatasetFormat(
        name="math_shepherd",
        sets="Math-Shepherd (a reward for each step)",
        columns=("input", "label", "task"),
        labels=rows.math_shepherd_labels,
        fits=lambda row: _is_text(row, "label"),
    ),
    DatasetFormat(
        name="stepwise",
        sets="stepwise supervision of TRL (a reward for each step)",
        columns=("prompt", *_STEPS),
        labels=rows.step_labels,
        fits=lambda row: all(isinstance(row[name], list) for name in _STEPS),
    ),
    DatasetFormat(name="tokenized", sets="tokenised pairs", columns=("chosen_ids", "rejected_ids")),
    DatasetFormat(
        name="hh_rlhf",
        sets="HH-RLHF (whole transcripts)",
        columns=("chosen", "rejected"),
        fits=lambda row: _is_text(row, "chosen") and row["chosen"].lstrip().startswith("Human:"),
    ),
    DatasetFormat(
        name="preference", sets="TRL's preference format, Skywork", columns=("chosen", "rejected"), native=False
    ),
    DatasetFormat(
        name="labels",
        sets="answers with a reward each, KTO",
        columns=("completion",),
        native=False,
    ),
    DatasetFormat(name="texts", sets="texts with a reward each, RAD", columns=("text",), native=False),
)
"""Every format; the first one whose columns are there and whose `fits` says so is taken."""

NAMES = tuple(dict.fromkeys(each.name for each in FORMATS))
"""Names of all formats."""


def _zero_or_one(value: Any) -> int | None:
    return int(value) if value in (0, 1) else None
