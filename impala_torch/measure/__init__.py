"""What the parts cost on this machine: sampling, acting, learning, averaging."""
