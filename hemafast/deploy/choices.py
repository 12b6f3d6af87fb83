"""What `export` and `explain` let a user choose from; imports nothing, so that the command line may read it."""

from typing import Literal

Format = Literal["onnx", "torch-export", "safetensors"]
"""Of an exported model."""
Layout = Literal["nhwc", "nchw"]
"""Of the images that an exported graph takes: channels last, as decoders give them, or first."""
Method = Literal["gradcam", "gradcam++", "hirescam", "layercam", "eigencam"]
"""Of a heat map."""
