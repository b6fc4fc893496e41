"""The command line: one file per command; each parses, calls one library function and prints.

``--help`` of every command is instant: nothing heavy is imported before a command runs.
"""
