"""Demand in, replica counts and reasons out. Pure: state, samples and the clock are arguments."""
