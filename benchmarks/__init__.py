"""The benchmarks of `make bench`: hyperfarm beside hyperopt's own MongoDB mode, one table."""
