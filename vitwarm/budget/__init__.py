"""Turns many runs into curves, intervals, tables and figures. Reads run folders; never trains."""
