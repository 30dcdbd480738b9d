"""The benchmarks of `make bench-search`: our search algorithm beside hyperopt's, random search and Optuna's."""
