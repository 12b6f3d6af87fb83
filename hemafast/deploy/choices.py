"""The choices of commands about models; imports nothing, so that the command line stays fast."""

from typing import Literal

Format = Literal["onnx", "onnx-int8", "torch-export", "safetensors"]
"""Format of an exported model."""
MODELS = (".safetensors", ".onnx", ".pt2")
"""Suffixes of the files of models."""
Layout = Literal["nhwc", "nchw"]
"""Image layout that an exported graph takes: channels last, as decoders give them, or first."""
Engine = Literal["auto", "torch", "onnxruntime", "openvino"]
"""What computes predictions on a CPU: torch in fp32, or another program with the int8 graph of the run."""
Combining = Literal["mean", "fitted", "soup", "snapshots"]
"""How several networks become one model: the mean of their probabilities, with weights fitted on validation images, the
mean of their weights, or the mean of the checkpoints of one run."""
Method = Literal["gradcam", "gradcam++", "hirescam", "layercam", "eigencam"]
"""How a heat map is made."""

UmPerPixel = float | Literal["unknown"] | None
"""Micrometres per pixel of all images; "unknown" to see them whole; None for those of a domain, or of nuclei."""
