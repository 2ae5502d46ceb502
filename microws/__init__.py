"""The decorator micro-framework for real-time Python."""

__version__ = "0.1.0"
