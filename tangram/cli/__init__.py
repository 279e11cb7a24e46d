"""The command `tangram`. Each command imports what it needs when it runs, so that all of them start at once."""
