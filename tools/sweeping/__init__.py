"""What `tools/sweep.py` is made of: cases of each library, the check of one of them, processes, tables."""
