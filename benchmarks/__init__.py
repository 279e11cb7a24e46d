"""Each performance claim as a program."""
