"""Servers that Tangram brings along for models that have none of their own."""
