"""securecore: mutually authenticated TLS transfer of core dumps."""

__version__ = "0.1.0"
