"""NARS: the joint search for architectures and training recipes (Sec. 3)."""
