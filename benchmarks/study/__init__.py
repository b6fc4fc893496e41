"""The study: methods, cuts and seeds as a list of cells, each one committed line of results.

``python -m benchmarks.study DATA --work DIR`` trains and measures what has no line yet; ``--table`` prints the lines.
"""
