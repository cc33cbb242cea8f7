"""What qtasks costs, measured: `python -m benchmarks`, and beside its peers with `--peers`. See README.md."""
