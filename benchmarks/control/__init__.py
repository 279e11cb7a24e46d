"""The control plane, measured against a live `tangram up`: what it costs at rest, and how soon it acts."""
