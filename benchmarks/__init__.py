"""Side-by-side measurements, each one command: ``python -m benchmarks NAME``. They print figures and assert none."""
