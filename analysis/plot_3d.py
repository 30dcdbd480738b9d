"""Draw an experiment in three dimensions: python analysis/plot_3d.py EXP_KEY [options of `hyperfarm plot`]."""

import sys

from hyperfarm.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["hyperfarm", "plot", "--kind", "3d"]
    main()
