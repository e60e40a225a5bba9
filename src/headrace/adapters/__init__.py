"""headrace's batches in other libraries' loops, where a loader alone is not enough. One module a library.

Each needs the library that it is for and nothing else, so there is no extra: who uses the loop has the library.
"""
