"""Sentences on a model card about each kind of checkpoint, and the papers that it cites.

Those about each objective are in `rgtg_logits.objectives`.
"""

from __future__ import annotations

READING: dict[str, str] = {
    "causal": (
        "A scalar head reads the score from the state of each token, so one forward gives the scores of all prefixes."
    ),
    "vocabulary": (
        "The logit of a token after a prefix is the score of the prefix with that token, so one forward gives the "
        "scores of all next tokens. The logits are not log-probabilities: text sampled from them is meaningless."
    ),
    "log_ratio": (
        "Each token adds its log-probability to the score, so the score of a text is a sum over its tokens, those of "
        "the prompt included."
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
"""BibTeX entries by key."""
