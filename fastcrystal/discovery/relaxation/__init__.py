"""Relaxation of candidates with an interatomic potential, in processes that can be killed.

candidates     many, side by side: `relax_candidates`
settings       how
process        one relaxing process for each thread; `worker` is what it runs
batch          several together by torch-sim; `batch_worker` is what its process runs
folder         a folder of relaxed crystals that goes on where it was
options        on the command line
"""
