"""`python -m halp_fx` is `halp-fx`."""

from .cli import main

if __name__ == "__main__":
    main()
