"""A test oracle: guidance computed without cache, without padding and without code of the package."""

from collections import defaultdict

import torch
from transformers import LogitsProcessor

REMEMBERED = 100_000
"""Number of rewards remembered before all are forgotten, so that long runs do not fill the memory."""


def padded(prompts, pad):
    """The arguments of `generate` for prompts of several lengths, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


class Recorder(LogitsProcessor):
    """Records the input and output of every call of a processor.

    Attributes:
        calls: Rows, scores and output of each call.
        last_input: Rows and scores of the last call, also if it raised an error.
    """

    supports_continuous_batching = False

    def __init__(self, processor):
        self.processor = processor
        self.calls = []
        self.last_input = None

    def before(self):
        """Comes before each call."""

    def __call__(self, input_ids, scores):
        self.before()
        before = scores.clone()
        self.last_input = (input_ids.clone(), before)
        output = self.processor(input_ids, scores)
        assert torch.equal(before, scores), "the scores were edited in place"
        assert output.data_ptr() != scores.data_ptr()
        assert not output.isnan().any()
        self.calls.append((input_ids.clone(), before, output.clone()))
        return output


def of_prompt(calls, place, prompts):
    """The calls with the rows of one of so many prompts alone."""
    repeats = [rows.shape[0] // prompts for rows, _, _ in calls]
    own = [slice(place * repeat, (place + 1) * repeat) for repeat in repeats]
    return [tuple(part[rows] for part in call) for call, rows in zip(calls, own, strict=True)]


class Rewards:
    """Rewards of texts, each read from start to end, and remembered only to save time.

    Texts of one length share a forward, which needs no padding.

    Args:
        source: A transformers reward model, or a function from token ids (texts, length) to rewards (texts,).
    """

    def __init__(self, source):
        self.read = _last_rewards(source) if isinstance(source, torch.nn.Module) else source
        self.known = {}

    def __getitem__(self, text):
        if text not in self.known:
            self.learn([text])
        return self.known[text]

    @torch.no_grad()
    def learn(self, texts):
        if len(self.known) > REMEMBERED:
            self.known.clear()
        lengths = defaultdict(dict)
        for text in texts:
            if text not in self.known:
                lengths[len(text)][text] = None
        for new in lengths.values():
            self.known.update(zip(new, self.read(torch.tensor(list(new))).tolist(), strict=True))


def _last_rewards(model):
    return lambda tokens: model.score(model.base_model(tokens).last_hidden_state[:, -1])[:, 0]


class Oracle:
    """Recomputes calls.

    Args:
        rewards: A transformers reward model, a function from token ids (texts, length) to rewards, or `Rewards`.
        eos: The token that ends a row, or several.
    """

    def __init__(self, rewards, *, beta, top_k, pad, eos, top_p=None, min_p=None):
        self.rewards = rewards if isinstance(rewards, Rewards) else Rewards(rewards)
        self.beta, self.top_k, self.top_p, self.min_p = beta, top_k, top_p, min_p
        self.ends = {pad, *([eos] if isinstance(eos, int) else eos)}
        self.probes = 0

    def check(self, calls, prompts, *, tolerance=1e-4, length=None):
        """Compares every unfinished row of every call; returns how many rows were compared, and the worst error.

        Args:
            calls: Rows, scores and output of each call.
            prompts: The prompts without padding.
            tolerance: Largest error in nats.
            length: The padded length of the prompts; by default the first call shows it.
        """
        rows = list(self.unfinished(calls, prompts, length))
        self.rewards.learn([(*text, token) for text, scores, output in rows for token in support(output)])
        worst = 0.0
        for text, scores, output in rows:
            expected = self.expected(text, scores, support(output))
            error = max(abs(float(output[token]) - value) for token, value in expected.items())
            assert error <= tolerance, f"row {text}: {error}"
            worst = max(worst, error)
        return len(rows), worst

    def unfinished(self, calls, prompts, length=None):
        """Yields text, scores and output of each row that has not finished."""
        length = length or self.length(calls)
        for rows, all_scores, output in calls:
            repeat = rows.shape[0] // len(prompts)
            for index, row in enumerate(rows.tolist()):
                prompt = list(prompts[index // repeat])
                text, generated = row[length - len(prompt) :], row[length:]
                assert text[: len(prompt)] == prompt
                if self.ends.intersection(generated):
                    continue
                if len(rows) == 1 and self.is_probe(all_scores[index]):
                    self.probes += 1
                    assert not {*support(output[index])} - {*support(all_scores[index])}
                    continue
                yield tuple(text), all_scores[index], output[index]

    def is_probe(self, scores):
        """Whether more tokens than can be candidates score 1, and no others are possible.

        Prompt lookup passes such scores to learn which tokens are forbidden. The output for the others is free.
        """
        finite = scores[scores > -torch.inf]
        fewest, _ = self.numbers(finite[: self.top_k].double().softmax(-1))
        return finite.numel() > fewest and bool((finite == 1).all())

    def expected(self, prefix, scores, tokens=None):
        """Guided log-probabilities of the candidates.

        Args:
            tokens: The candidates, where scores that tie or lie within rounding of a threshold leave a choice; checked
                to be a right choice.
        """
        best = scores[scores > -torch.inf].double().sort(descending=True).values[: self.top_k]
        fewest, most = self.numbers(best.softmax(-1))
        if tokens is None:
            tokens = scores.double().topk(fewest).indices.tolist()
        assert fewest <= len(tokens) <= most, f"{len(tokens)} candidates, but {fewest} to {most} are right"
        chosen = scores[tokens].double()
        assert torch.equal(chosen.sort(descending=True).values, best[: len(tokens)]), f"{tokens} are not the best"
        rewards = torch.tensor([self.rewards[(*prefix, token)] for token in tokens], dtype=torch.float64)
        log_probs = (chosen.log_softmax(-1) + self.beta * rewards).log_softmax(-1)
        return dict(zip(tokens, log_probs.tolist(), strict=True))

    def numbers(self, probability, margin=1e-5):
        """The fewest and the most candidates that `top_p` and `min_p` may leave, up to rounding."""
        before = probability.cumsum(-1) - probability
        numbers = []
        for slack in (-margin, margin):
            kept = torch.ones_like(probability, dtype=torch.bool)
            if self.top_p is not None:
                kept &= before < self.top_p + slack
            if self.min_p is not None:
                kept &= probability >= (self.min_p - slack) * probability[0]
            numbers.append(max(1, int(kept.sum())))
        return numbers

    @staticmethod
    def length(calls):
        """The padded length of the prompts."""
        return calls[0][0].shape[1]


def support(log_probs):
    """The tokens that can be drawn."""
    return (log_probs > -torch.inf).nonzero()[:, 0].tolist()


def count_reads(module, act):
    """Calls `act` and returns its result, with the number of tokens (rows × columns) in each forward of `module`."""
    reads = []

    def record(_module, args, kwargs):
        reads.append((args[0] if args else kwargs["input_ids"]).numel())

    hook = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        result = act()
    finally:
        hook.remove()
    return result, reads
