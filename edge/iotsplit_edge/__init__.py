"""The edge tier: the middle layers, one frozen part for all its sessions."""
