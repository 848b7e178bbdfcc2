"""The programs' bodies, one module each: the top floor, which may import everything, each thing when it is needed."""
