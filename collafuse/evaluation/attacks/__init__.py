"""Attacks on what a server receives and gives away, one kind per file. Each works on arrays and returns findings."""
