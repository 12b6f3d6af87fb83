"""The choices of `export` and `explain`; imports nothing, so that the command line stays fast."""

from typing import Literal

Format = Literal["onnx", "onnx-int8", "torch-export", "safetensors"]
"""Format of an exported model."""
Layout = Literal["nhwc", "nchw"]
"""Image layout that an exported graph takes: channels last, as decoders give them, or first."""
Engine = Literal["auto", "torch", "onnxruntime", "openvino"]
"""What computes predictions on a CPU: torch in fp32, or another program with the int8 graph of the run."""
Method = Literal["gradcam", "gradcam++", "hirescam", "layercam", "eigencam"]
"""How a heat map is made."""

UmPerPixel = float | Literal["unknown"] | None
"""Micrometres per pixel of all images; "unknown" to see them whole; None for those of a domain, or of nuclei."""
