"""Each performance claim as a program: `python -m benchmarks.NAME [--json]`, whose last line is JSON with its bars."""
