"""
The numbers of ``make bench``: load from one cheap process, against the real server started as an operator starts it.

Everything listens on 127.0.0.1, lives in a temporary directory and ends with the run.
"""
