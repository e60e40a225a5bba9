"""headrace's batches and guards in other libraries' loops. One module a library, and one for loops of any kind.

Each needs the library that it is for and nothing else, so there is no extra: who uses the loop has the library.
"""
