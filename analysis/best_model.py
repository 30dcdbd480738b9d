"""Fetch the best trial's model: python analysis/best_model.py EXP_KEY -o best.keras [options of `hyperfarm pull`]."""

import sys

from hyperfarm.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["hyperfarm", "pull"]
    main()
