"""How well the autoscaler keeps waiting short, and what it costs, against a reference and what others do."""
