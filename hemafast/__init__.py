"""hemafast: a high-throughput training engine for single-cell blood images."""

__version__ = "0.1.0"
