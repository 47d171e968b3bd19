"""What the parts of this project must agree on: names, limits, file formats, exit codes.

Standard library only, so that every other package, and every process, can import it.
"""
