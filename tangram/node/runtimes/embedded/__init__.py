"""A small Open Inference Protocol server around one Python class: `python -m tangram.node.runtimes.embedded`.

A model is a Python file with one subclass of `Model`:

    from tangram.node.runtimes.embedded import Inputs, Model, Tensor

    class Doubler(Model):
        inputs = [Tensor("x", "FP32", (-1,))]
        outputs = [Tensor("y", "FP32", (-1,))]

        def predict(self, inputs):
            return {"y": inputs["x"] * 2}

How it works: the event loop speaks HTTP (`server`, `openai`), one thread runs the model's code a call at a time
(`worker`), so that health is answered under any load, and each call waits its turn within the CPU budget (`budget`)
that stands for the replica's share of a device. `tensors` translates between the protocol and numpy.
"""

from tangram.node.runtimes.embedded.api import Inputs, Model, Tensor, UnsupportedError

__all__ = ["Inputs", "Model", "Tensor", "UnsupportedError"]
