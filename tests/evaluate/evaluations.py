"""Results of an evaluation that never was, of the size and shape of a real one."""

import math
import random

from rgtg_logits.evaluate.results import EqualKL, Estimate, EvaluationResults, JudgeResult, PolicyResult, Sample

NASTY = "</td></table><script>alert(\"x\")</script> & <b onclick='x'> | `a|b`\n\\| $x_{$ \u202e\x00\x1b[31m"
JUDGES = ("judge", "second-judge")
GUIDED = {
    "ARGS": 0.45, "CD": 0.8, "RAD": 0.75, "FaRMA": 0.7, "GenARM": 0.65, "PARGS-G": 0.85, "PARGS": 0.8,
    "soft value": 1.0, "soft value, vocabulary head": 0.95,
}  # fmt: skip
SINGLE = {
    "best of 4": (0.64, 0.5), "best of 16": (1.84, 0.95), "ARGS greedy": (38.0, 0.4), "PARGS greedy": (31.0, 1.1),
    "DPO": (9.0, 1.5), "DPO, beta 0.05": (21.0, 1.9), "online RL": (12.0, 1.9), f"_{NASTY}": (6.0, 0.1),
}  # fmt: skip


def estimate(value, width):
    return Estimate(value, value - width, value + 1.1 * width)


def policy(name, kl, reward, *, beta=0.0, greedy=False, ms=8.0, baseline=False):
    draw = random.Random(f"{name}{beta}")
    levels = {JUDGES[0]: reward, JUDGES[1]: 0.4 * reward - 0.002 * kl**1.5 + draw.uniform(-0.05, 0.05)}
    judges = {
        judge: JudgeResult(
            reward=estimate(value, 0.11),
            difference=None if baseline else estimate(value, 0.08),
            win_rate=None if baseline else estimate(0.5 + 0.18 * math.tanh(value), 0.02),
        )
        for judge, value in levels.items()
    }
    return PolicyResult(
        name=name, curve=name, beta=beta, greedy=greedy, answers=1500, judges=judges, kl=estimate(kl, 0.03 * kl),
        cut=estimate(0.1 * kl, 0.002 * kl),
        kl_per_token=estimate(kl / 61, 0.0004 * kl), log_ratio=estimate(kl + draw.uniform(-0.2, 0.2), 0.04 * kl),
        perplexity=estimate(12.3 * math.exp(0.03 * kl), 0.3), distinct=(0.81 - 0.003 * kl, 0.97 - 0.004 * kl, 0.99),
        self_bleu=None if greedy else 2.1 + 0.2 * kl, length=61.3 - 0.1 * kl, ended=0.12,
        guide_forwards=float(beta > 0), guide_tokens=20.0 * (beta > 0), ms_per_token=ms,
    )  # fmt: skip


def synthetic():
    policies = [policy("base", 0.0, 0.0, baseline=True)]
    for number, (name, strength) in enumerate(GUIDED.items()):
        for beta in (0.5, 1.0, 2.0, 4.0, 8.0)[: 5 - number % 2]:
            kl = 1.6 * beta**1.45 * (1 + 0.07 * number)
            reward = strength * math.sqrt(kl) * (1 - 0.011 * kl)
            policies.append(policy(name, kl, reward, beta=beta, ms=11.0 + 3 * number + 0.2 * beta))
    for name, (kl, reward) in SINGLE.items():
        cost = 8.0 * (int(name.split()[-1]) if name.startswith("best") else 1)
        policies.append(policy(name, kl, reward, greedy="greedy" in name, ms=cost))
    pairs = [("PARGS", "ARGS"), ("PARGS", "online RL"), ("soft value", "PARGS"), ("soft value", "CD"), ("PARGS", "DPO"),
             ("soft value, vocabulary head", "soft value")]  # fmt: skip
    return EvaluationResults(
        settings={
            "base": "reviews-base", "prompts": "prompts.jsonl", "judges": {judge: f"{judge}-model" for judge in JUDGES},
            "methods": [{"name": "base", "guide": ()}, {"name": "PARGS", "guide": ("rm",), "beta": (1.0, 2.0)}],
            "seeds": 3, "seed": 0, "max_new_tokens": 64, "limit": None, "prompt_prefix": NASTY,
        },
        versions={"rgtg_logits": "0.5.0", "torch": "2.13.0", "transformers": "5.23.0"},
        prompts=500, prompts_left_out={"longer than the context": 3}, baseline="base", policies=tuple(policies),
        comparisons=tuple(comparison(judge, *pair) for judge in JUDGES for pair in pairs),
        samples=tuple(sample(number, policies) for number in range(4)),
    )  # fmt: skip


def comparison(judge, first, second):
    draw = random.Random(f"{judge}{first}{second}")
    kl = (1.0, 2.5, 5.0, 10.0, 20.0)
    low = tuple(0.6 * math.sqrt(at) for at in kl)
    gaps = tuple(draw.uniform(-0.2, 0.6) for _ in kl)
    return EqualKL(
        judge=judge, first=first, second=second, kl=kl, second_reward=low,
        first_reward=tuple(a + b for a, b in zip(low, gaps, strict=True)),
        difference=tuple(estimate(gap, 0.15) for gap in gaps), overall=estimate(sum(gaps) / len(gaps), 0.1),
    )  # fmt: skip


def sample(number, policies):
    answers = (
        (item.title, f"{'the film was good and ' * 9}{NASTY}" if number else f"answer of {item.title}", {
            judge: said.reward.value + number for judge, said in item.judges.items()
        })
        for item in policies
    )  # fmt: skip
    return Sample(prompt=f"prompt {number} {NASTY}", answers=tuple(answers))
