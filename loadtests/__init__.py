"""Load on a running Tangram: what `make load` runs, and Locust users for runs by hand."""
