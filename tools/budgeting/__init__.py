"""A part of `bench_budget.py`: `tables` reads its lines and makes a page of them."""
