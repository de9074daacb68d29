"""The parts of `gpu_check.py`: each measures case by case and yields rows; `pages` makes tables of them."""
