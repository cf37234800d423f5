"""Files, terminals, signals and processes.

Imports only `maskformer.errors`; every other package may import it.
"""
