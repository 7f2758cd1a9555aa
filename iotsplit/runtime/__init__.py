"""Code that touches the world: sockets, threads, wall time and written files."""
