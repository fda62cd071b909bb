"""Rewards computed on the host, from text, by any Python function.

`worker.py` runs the function in a process of its own, `pool.py` keeps such
processes alive and kills those that hang, `callback.py` lets a compiled program
call them. The first two import no JAX: a worker starts in a moment.
"""
