"""One module for each kind of measurement file: its tables for Markdown, its section of the report.

Strict about types (a string where a number belongs is an error that names file and key), tolerant about what is not there yet.
"""
