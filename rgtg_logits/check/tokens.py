"""Whether the tokens of a base model and of a reward model fit each other; no model is run."""

from __future__ import annotations

from rgtg_logits.check.findings import Finding
from rgtg_logits.check.models import ModelPair
from rgtg_logits.scorers import Detokenizer


def check_vocabulary(pair: ModelPair) -> Finding:
    """Whether token ids mean the same to both models, or the reward model reads text."""
    vocabulary = pair.tokenizer.get_vocab()
    shared = pair.shared_vocabulary
    figures = {
        "base_tokens": len(vocabulary), "reward_model_tokens": len(pair.rm_vocabulary),
        "differing_tokens": shared.differing,
    }  # fmt: skip

    def finding(status: str, value: str, advice: str = "") -> Finding:
        return Finding("tokens", "vocabulary", status, value, advice, figures)

    relation = _relation(pair)
    if not shared.shares_ids and not pair.reads_text:
        return finding(
            "fail",
            f"{relation}, and a model of kind {pair.reward_model.kind} scores its own next tokens",
            "Use a reward model trained from this base model's family.",
        )
    read = set(pair.rm_vocabulary.values() if not shared.shares_ids else vocabulary.values())
    if max(read - shared.unshared) >= pair.readable:
        relation += "" if shared.shares_ids else ", which it reads as text"
        return finding(
            "fail",
            f"{relation}, but the reward model reads ids below {pair.readable} only and some are above",
            "Resize its embeddings to the tokenizer and train it again.",
        )
    if pair.prompt_format is not None:
        return finding(
            "note",
            f"{relation}. It reads chats (RetokenizingScorer), for top_k tokenisations per token",
            f"Pass tokenizer= and prompt_format={pair.prompt_format!r} to the processor.",
        )
    if not shared.shares_ids:
        return finding(
            "note",
            f"{relation}. It reads text (RetokenizingScorer), for top_k tokenisations per token",
            "Pass tokenizer= to the processor, which takes ids to mean the same in both otherwise. If it was trained "
            "on chats, check again with --prompt-format chat.",
        )
    base_rows = pair.base.config.get_text_config().vocab_size
    if shared.unshared or base_rows > pair.readable:
        if base_rows > pair.readable:
            relation += f"; the base model has {base_rows - pair.readable} padding rows that the reward model lacks "
            relation += f"(ids from {pair.readable})"
        return finding("note", relation, "Pass tokenizer= to the processor: ids of no token, or of one that only the "
                       "base model has, are then no candidates, and an error otherwise.")  # fmt: skip
    return finding("ok", relation)


def _relation(pair: ModelPair) -> str:
    """The base model's tokens beside the reward model's, in words."""
    total = len(pair.tokenizer.get_vocab())
    shared = pair.shared_vocabulary
    if not shared.differing:
        return f"the same {total} tokens"
    if shared.shares_ids:
        example = pair.tokenizer.convert_ids_to_tokens(min(shared.unshared))
        return f"the same {total - shared.differing} tokens, and {shared.differing} of the base model's own ({example})"
    return (
        f"different: {shared.differing} of {total} tokens of the base model (such as {shared.needed!r}) have another "
        f"id, or none, among the reward model's {len(pair.rm_vocabulary)}"
    )


def check_ends(pair: ModelPair) -> list[Finding]:
    """Whether a reward model that reads text has to be told which tokens end the base model's text."""
    if not pair.reads_text:
        return []
    known = Detokenizer(pair.tokenizer)
    more = [token for token in pair.eos_token_ids if not known.is_end(token)]
    if not more:
        return []
    names = ", ".join(map(repr, pair.tokenizer.convert_ids_to_tokens(more)))
    return [
        Finding(
            "tokens", "ends", "note", f"the generation config also ends texts with {names}",
            "Pass eos_token_id=model.generation_config.eos_token_id to the processor.",
        )
    ]  # fmt: skip


def check_padding(pair: ModelPair) -> list[Finding]:
    """Whether padding can be told from text."""
    pad = pair.pad_token_id
    tokenizer = pair.tokenizer
    if pad is None:
        unknown = "the base model's tokenizer names no" if pair.reads_text else "neither tokenizer names a"
        return [
            Finding(
                "tokens", "padding", "note", f"{unknown} pad token: batches of prompts of different "
                "lengths would be refused, single prompts work",
                "Set tokenizer.pad_token (the end-of-text token will do) and pass tokenizer= to the processor.",
            )
        ]  # fmt: skip
    value = f"token {pad}, {tokenizer.convert_ids_to_tokens(pad)!r}"
    status = "ok"
    advice = ""
    if tokenizer.pad_token_id is None:
        status = "note"
        advice = "Set tokenizer.pad_token to the same token, with which rows have to be padded."
        value += ", named by the reward model only"
    if pad == tokenizer.eos_token_id:
        value += ", also the end-of-text token"
    if pad == tokenizer.bos_token_id:
        status = "note"
        advice = "Pass the prompts' attention_mask= to the processor if prompts begin with it."
        value += ", which also opens texts"
    findings = [Finding("tokens", "padding", status, value, advice)]
    if tokenizer.padding_side != "left":
        findings.append(
            Finding(
                "tokens", "padding side", "note", f"{tokenizer.padding_side}, where generate needs left",
                "Set tokenizer.padding_side = 'left'.",
            )
        )  # fmt: skip
    return findings
