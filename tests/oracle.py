"""Guidance done the slow, obviously right way: no cache, one unpadded row per candidate, no code of the package."""

import torch
from transformers import LogitsProcessor


class Recorder(LogitsProcessor):
    """Keeps what a processor was shown and what it answered at every call."""

    supports_continuous_batching = False

    def __init__(self, processor):
        self.processor, self.calls = processor, []

    def __call__(self, input_ids, scores):
        before = scores.clone()
        output = self.processor(input_ids, scores)
        assert torch.equal(before, scores), "the scores were edited in place"
        assert output.data_ptr() != scores.data_ptr()
        self.calls.append((input_ids.clone(), before, output.clone()))
        return output


class Oracle:
    """Recomputes calls from a transformers reward model; rewards are remembered by text only to save time."""

    def __init__(self, reward_model, *, beta, top_k, pad, eos):
        self.model, self.beta, self.top_k, self.pad, self.eos = reward_model, beta, top_k, pad, eos
        self.known = {}

    @torch.no_grad()
    def reward(self, text):
        if text not in self.known:
            state = self.model.base_model(torch.tensor([text])).last_hidden_state[0, -1]
            self.known[text] = float(self.model.score(state))
        return self.known[text]

    def expected(self, prefix, scores):
        finite = (scores > -torch.inf).nonzero()[:, 0].tolist()
        candidates = sorted(finite, key=lambda token: -scores[token])[: self.top_k]
        rewards = torch.tensor([self.reward((*prefix, token)) for token in candidates], dtype=torch.float64)
        log_probs = (scores[candidates].double().log_softmax(-1) + self.beta * rewards).log_softmax(-1)
        return dict(zip(candidates, log_probs.tolist(), strict=True))

    def check(self, calls, prompts, *, tolerance=1e-4):
        """Compares every unfinished row of every call; returns how many rows were compared, and the worst error."""
        compared, worst = 0, 0.0
        for rows, scores, output in calls:
            repeat = rows.shape[0] // len(prompts)
            for index, row in enumerate(rows.tolist()):
                prompt = prompts[index // repeat]
                start = rows.shape[1] - (len(row) - self.length(calls)) - len(prompt)
                text, generated = row[start:], row[self.length(calls) :]
                assert text[: len(prompt)] == prompt
                if self.eos in generated:
                    continue
                expected = self.expected(tuple(text), scores[index])
                got = output[index]
                assert (got > -torch.inf).nonzero()[:, 0].tolist() == sorted(expected)
                error = max(abs(float(got[token]) - value) for token, value in expected.items())
                assert error <= tolerance, f"row {index} at length {len(row)}: {error}"
                compared, worst = compared + 1, max(worst, error)
        return compared, worst

    @staticmethod
    def length(calls):
        """The padded length of the prompts."""
        return calls[0][0].shape[1]
