"""Tangram: many inference models from few GPUs. This package is the hall that joins gateway, autoscaler and packer."""

__version__ = "0.1.0"
