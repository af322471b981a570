"""The parameter endpoint: actors pull weights from it and push unrolls to it (ZeroMQ)."""
