"""`python -m rgtg_logits.cli`, which `accelerate launch` runs in each process of an evaluation."""

from rgtg_logits.cli.app import main

if __name__ == "__main__":
    main()
