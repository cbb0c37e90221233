"""The MXNet `.rec` format: read, index, write."""
